import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from actors import data as actors_data
from actors.data import WorkerPool, num_data_workers, prepare_data
from raytune.config.load import load_config
from raytune.config.run import RunConfig
from raytune.data.inputs import DataOptions
from raytune.data.prepared import open_prepared
from raytune.data.store import RowStore
from raytune.errors import DataError
from tests.helpers.tiny import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _small_files_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start as many workers as are asked for, however small the files are."""
    monkeypatch.setattr(actors_data, "_BYTES_PER_WORKER", 1)


def config(folder: Path, model: Path, rows: int = 60, **keys: Any) -> RunConfig:
    listed = [{"instruction": f"q{n}", "input": "", "output": f"a{n}"} for n in range(rows)]
    (folder / "a.json").write_text(json.dumps(listed))
    flat = {
        "model_name_or_path": str(model),
        "template": "chatml",
        "dataset": str(folder / "a.json"),
        "preprocessing_batch_size": 7,
        "preprocessing_num_workers": 2,
        "val_size": 5,
        "data_cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
        **keys,
    }
    return load_config(flat).config


def bytes_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_one_and_two_workers_write_the_same_bytes(tmp_path: Path, model: Path) -> None:
    seen: list[tuple[int, int]] = []
    for count in (1, 2):
        cfg = config(tmp_path, model, preprocessing_num_workers=count, data_cache_dir=str(tmp_path / f"c{count}"))
        prepare_data(cfg, progress=lambda done, total: seen.append((done, total)))
    first, second = (next((tmp_path / f"c{count}" / "prepared").iterdir()) for count in (1, 2))
    assert first.name == second.name
    assert bytes_of(first) == bytes_of(second)
    assert seen == [(n, 9) for n in range(1, 10)] * 2
    prepared = open_prepared(first)
    assert prepared.train is not None
    assert (len(RowStore.open(prepared.train)), len(RowStore.open(prepared.eval[""]))) == (55, 5)


def test_a_cache_hit_starts_nothing(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(tmp_path, model, preprocessing_num_workers=1)
    first = prepare_data(cfg)
    monkeypatch.setattr(actors_data, "WorkerPool", lambda *_: pytest.fail("workers were started"))
    assert prepare_data(cfg) == first


def test_a_damaged_cache_is_made_anew(tmp_path: Path, model: Path) -> None:
    cfg = config(tmp_path, model, preprocessing_num_workers=1)
    first = prepare_data(cfg)
    wanted = bytes_of(first.root)
    (first.root / "train" / "block-00000.arrow").unlink()
    assert bytes_of(prepare_data(cfg).root) == wanted


def test_tokenized_path_is_written_and_then_read_without_the_data(tmp_path: Path, model: Path) -> None:
    kept = tmp_path / "kept"
    first = prepare_data(config(tmp_path, model, preprocessing_num_workers=1, tokenized_path=str(kept)))
    assert first.root == kept
    assert prepare_data(config(tmp_path, model, rows=3, tokenized_path=str(kept))) == first


def test_broken_rows_end_in_one_error_and_leave_nothing(tmp_path: Path, model: Path) -> None:
    cfg = config(tmp_path, model)
    rows = json.loads((tmp_path / "a.json").read_text())
    rows[9]["output"] = rows[44]["output"] = None
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"2 rows break.*\n.*a\.json row 10: .*\n.*a\.json row 45: ") as caught:
        prepare_data(cfg)
    assert type(caught.value) is DataError
    assert list((tmp_path / "cache" / "prepared").iterdir()) == []


def test_a_broken_file_is_the_users_error(tmp_path: Path, model: Path) -> None:
    cfg = config(tmp_path, model)
    (tmp_path / "a.json").write_text('[{"instruction": "q"')
    with pytest.raises(DataError, match=r"not valid JSON.*a\.json line 1, row 1"):
        prepare_data(cfg)


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = prepare_data(config(tmp_path, model, rows=400, data_cache_dir=str(tmp_path / "calm")))
    pools: list[WorkerPool] = []
    pids: list[int] = []

    class Seen(WorkerPool):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            pools.append(self)

    def kill_one(done: int, _total: int) -> None:
        if done in (3, 20):
            pid = ray.get(pools[0].workers[0].__ray_call__.remote(lambda _: os.getpid()), timeout=60)
            os.kill(pid, signal.SIGKILL)
            pids.append(pid)

    monkeypatch.setattr(actors_data, "WorkerPool", Seen)
    stormy = prepare_data(config(tmp_path, model, rows=400, data_cache_dir=str(tmp_path / "storm")), progress=kill_one)
    assert len(set(pids)) == 2
    assert bytes_of(stormy.root) == bytes_of(calm.root)


def test_a_block_that_kills_every_worker_is_an_error(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors_data, "_RESTARTS", 1)
    cfg = config(tmp_path, model)
    pool = WorkerPool(cfg, DataOptions.of(cfg), 2)
    try:
        with pytest.raises(DataError, match=r"every data worker died.*block 7"):
            list(pool.run([(0, "block 7", lambda w: w.__ray_call__.remote(_die))], 120))
    finally:
        pool.close()


def _die(_worker: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_call_that_does_not_end_is_named(tmp_path: Path, model: Path) -> None:
    cfg = config(tmp_path, model, placement_timeout=20)
    pool = WorkerPool(cfg, DataOptions.of(cfg), 1)
    calls = [(n, f"sleep {n}", lambda w, n=n: w.__ray_call__.remote(lambda _, n=n: time.sleep(60 * n))) for n in (0, 1)]
    try:
        with pytest.raises(DataError, match="no data worker finished in time: sleep 1"):
            list(pool.run(calls, 1, in_flight=1))
    finally:
        pool.close()


@pytest.mark.parametrize("anywhere", [False, True])
def test_workers_run_beside_the_ranks_of_a_full_cluster(tmp_path: Path, model: Path, anywhere: bool) -> None:
    group = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    try:
        ray.get(group.ready(), timeout=30)
        prepared = prepare_data(config(tmp_path, model, data_shared_file_system=anywhere, placement_timeout=60))
        assert prepared.train is not None
    finally:
        remove_placement_group(group)


def test_two_runs_may_build_the_same_rows_at_once(tmp_path: Path, model: Path) -> None:
    cfg = config(tmp_path, model)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(prepare_data(cfg))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(results) == 2
    assert results[0] == results[1]
    assert len(list((tmp_path / "cache" / "prepared").iterdir())) == 1
    assert len(RowStore.open(results[0].train)) == 55


def test_how_many_workers_a_run_may_have(tmp_path: Path, model: Path) -> None:
    assert num_data_workers(config(tmp_path, model, preprocessing_num_workers=3)) == 3
    assert 1 <= num_data_workers(config(tmp_path, model, preprocessing_num_workers=None)) <= 8
