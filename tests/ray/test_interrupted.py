"""Runs that are killed or stopped, and run again: they end with the bytes of one that nothing disturbed."""

import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from raytune.engine.checkpoint import CheckpointStore, damaged_files
from raytune.errors import ConfigError
from tests.helpers.processes import finish, start_cli, start_python, wait_for, write_config
from tests.helpers.trained import LONG, WEIGHTS, cut_after, losses, run

pytestmark = pytest.mark.usefixtures("ray_local")


def everything(folder: Path) -> set[str]:
    """Names of all files below a run's folder, hidden ones too; the optimizer's shards are a matter of ranks."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if "optimizer" not in path.parts}


def assert_same_end(folder: Path, reference: Path) -> None:
    assert (folder / WEIGHTS).read_bytes() == (reference / WEIGHTS).read_bytes()
    assert losses(folder) == losses(reference)
    assert everything(folder) == everything(reference)
    store = CheckpointStore(folder)
    assert store.steps() == CheckpointStore(reference).steps()
    assert not any(damaged_files(store.path(step)) for step in store.steps())


def kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        process.kill()


def test_resuming_at_an_epochs_end_gives_the_same_bytes(home, whole):
    """A checkpoint every three steps is one at every epoch's end."""
    cut = cut_after(15, whole, home / "cut")
    run(home, **LONG, output_dir=str(cut))
    assert_same_end(cut, whole)


def test_another_adapter_shape_is_refused_before_anything_starts(home, whole):
    with pytest.raises(ConfigError, match=r"lora_rank was 4, is now 8.* set back what changed"):
        run(home, **LONG, lora_rank=8, output_dir=str(whole))


def test_a_killed_driver_goes_on_and_ends_with_the_same_bytes(home, whole):
    folder = home / "killed"
    process = start_cli(home, **LONG, output_dir=str(folder))
    wait_for(folder / "checkpoint-6", process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert not (folder / WEIGHTS).exists()
    process = start_cli(home, **LONG, output_dir=str(folder))
    error = finish(process)
    assert process.returncode == 0, error
    assert "resuming from" in error
    assert_same_end(folder, whole)


@pytest.mark.parametrize(("point", "half"), [("save", ".staging-6/" + WEIGHTS), ("publish", "." + WEIGHTS)])
def test_a_driver_killed_while_it_writes_leaves_nothing_half(home, whole, tmp_path, point, half):
    folder = home / f"killed-in-{point}"
    file = write_config(home, **LONG, output_dir=str(folder))
    process = start_python("-m", "tests.helpers.stall", point, str(tmp_path / "reached"), str(file))
    wait_for(tmp_path / "reached", process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert (folder / half).exists()
    assert not (folder / WEIGHTS).exists()
    run(home, **LONG, output_dir=str(folder))
    assert_same_end(folder, whole)


@pytest.mark.parametrize("victims", [(1,), (0, 1)], ids=["one rank", "all ranks"])
def test_killed_ranks_end_the_run_with_a_name_and_a_second_run_finishes_it(home, whole_of_two, victims):
    folder = home / f"killed-ranks-{len(victims)}"
    process = start_cli(home, **LONG, output_dir=str(folder), num_workers=2)
    wait_for(folder / "checkpoint-6", process)
    children = psutil.Process(process.pid).children(recursive=True)
    ranks = [child for child in children if "TrainerWorker" in " ".join(child.cmdline())]
    assert len(ranks) == 2
    kill(ranks[number] for number in victims)
    error = finish(process)
    assert process.returncode == 1
    assert error.strip().splitlines()[-1].startswith("TrainError: rank "), error
    assert "its process died" in error
    assert "Run the same command again" in error
    run(home, **LONG, output_dir=str(folder), num_workers=2)
    assert_same_end(folder, whole_of_two)


def test_ctrl_c_saves_and_says_how_to_go_on(home, whole):
    folder = home / "stopped"
    process = start_cli(home, **LONG, output_dir=str(folder))
    wait_for(folder / "checkpoint-3", process)
    process.send_signal(signal.SIGINT)
    error = finish(process)
    assert process.returncode == 1
    assert "The same command goes on from there" in error
    assert "Traceback" not in error
    extra = {step for step in CheckpointStore(folder).steps() if step % 3}
    run(home, **LONG, output_dir=str(folder))
    for step in extra:
        shutil.rmtree(CheckpointStore(folder).path(step))
    assert_same_end(folder, whole)
