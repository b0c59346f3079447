import pytest

from raytune.engine.checkpoint import CheckpointStore
from raytune.engine.output import Decision, claim_output, decide_start, publish_weights
from raytune.errors import CheckpointError, ConfigError

RUN = {"model_name_or_path": "m", "stage": "sft", "dataset": "d"}


def open_output(folder, identity, *, overwrite, resume) -> Decision:
    """What a run does: decide first, claim the folder once it is ready."""
    decision = decide_start(folder, identity, overwrite=overwrite, resume=resume)
    with claim_output(folder, identity, decision):
        return decision


def with_checkpoint(folder, step=4, run=RUN):
    open_output(folder, run, overwrite=False, resume=None)
    store = CheckpointStore(folder)
    (store.stage(step) / "model.safetensors").write_text("w")
    store.commit(step)


def test_a_fresh_folder_starts_at_the_beginning(tmp_path):
    decision = open_output(tmp_path / "new", RUN, overwrite=False, resume=None)
    assert decision.checkpoint is None


@pytest.mark.parametrize("resume", [None, True, "auto"])
def test_a_folder_with_a_checkpoint_is_resumed_and_says_so(tmp_path, resume):
    with_checkpoint(tmp_path)
    decision = open_output(tmp_path, RUN, overwrite=False, resume=resume)
    assert decision.checkpoint == tmp_path / "checkpoint-4"
    assert "resuming from" in str(decision.message)
    assert "overwrite_output_dir" in str(decision.message)


def test_overwriting_starts_anew_and_leaves_foreign_files(tmp_path):
    with_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    decision = open_output(tmp_path, {**RUN, "dataset": "other"}, overwrite=True, resume=None)
    assert decision.checkpoint is None
    assert CheckpointStore(tmp_path).steps() == []
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_another_runs_folder_is_refused_with_what_differs(tmp_path):
    with_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="dataset was d, is now other"):
        open_output(tmp_path, {**RUN, "dataset": "other"}, overwrite=False, resume=None)


@pytest.mark.parametrize("way", ["plain", "overwriting", "elsewhere"])
def test_another_shape_is_refused_with_key_values_and_remedy(tmp_path, way):
    run = {**RUN, "lora_rank": "4"}
    with_checkpoint(tmp_path / "a", run=run)
    out = tmp_path / ("b" if way == "elsewhere" else "a")
    resume = None if way == "plain" else str(tmp_path / "a" / "checkpoint-4")
    with pytest.raises(ConfigError, match=r"lora_rank was 4, is now 8\..* [Ss]et back what changed"):
        open_output(out, {**run, "lora_rank": "8"}, overwrite=way == "overwriting", resume=resume)
    assert not (tmp_path / "b").exists()


def test_a_run_may_go_on_elsewhere_with_other_data(tmp_path):
    with_checkpoint(tmp_path / "a")
    resume = str(tmp_path / "a" / "checkpoint-4")
    moved = {**RUN, "dataset": "other", "model_name_or_path": "/moved/m"}
    assert str(open_output(tmp_path / "b", moved, overwrite=False, resume=resume).checkpoint) == resume


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds no run of raytune"):
        open_output(tmp_path, RUN, overwrite=False, resume=None)


def test_resume_true_without_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        open_output(tmp_path / "new", RUN, overwrite=False, resume=True)


def test_resume_false_beside_a_checkpoint_is_an_error(tmp_path):
    with_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="resume_from_checkpoint is false"):
        open_output(tmp_path, RUN, overwrite=False, resume=False)


def test_a_named_checkpoint_is_verified(tmp_path):
    with_checkpoint(tmp_path / "a")
    path = str(tmp_path / "a" / "checkpoint-4")
    decision = open_output(tmp_path / "b", RUN, overwrite=False, resume=path)
    assert str(decision.checkpoint) == path
    with pytest.raises(CheckpointError, match="no checkpoint"):
        open_output(tmp_path / "b", RUN, overwrite=False, resume=str(tmp_path / "nowhere"))


def test_published_weights_leave_the_resume_state_behind(tmp_path):
    source, target = tmp_path / "checkpoint-1", tmp_path / "out"
    (source / "optimizer").mkdir(parents=True)
    target.mkdir()
    for name in ("adapter_model.safetensors", "trainer_state.json", "manifest.json", "small_state.json"):
        (source / name).write_text(name)
    publish_weights(source, target)
    assert [path.name for path in target.iterdir()] == ["adapter_model.safetensors"]


def test_deciding_writes_nothing(tmp_path):
    with_checkpoint(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    decide_start(tmp_path / "new" / "run", RUN, overwrite=False, resume=None)
    assert decide_start(tmp_path, {**RUN, "dataset": "other"}, overwrite=True, resume=None).clears
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_whose_run_left_nothing_may_be_taken(tmp_path):
    """A run that failed at its data must not lock the folder against the corrected run."""
    open_output(tmp_path, {**RUN, "dataset": "tpyo"}, overwrite=False, resume=None)
    assert open_output(tmp_path, RUN, overwrite=False, resume=None).checkpoint is None


@pytest.mark.parametrize("resume", [True, "auto", "path"])
def test_an_explicit_resume_wins_over_overwriting(tmp_path, resume):
    """As in LLaMA-Factory, whose examples all set overwrite_output_dir."""
    with_checkpoint(tmp_path)
    given = str(tmp_path / "checkpoint-4") if resume == "path" else resume
    decision = open_output(tmp_path, RUN, overwrite=True, resume=given)
    assert decision.checkpoint == tmp_path / "checkpoint-4"
    assert CheckpointStore(tmp_path).steps() == [4]


def test_an_output_dir_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        decide_start(tmp_path / "file" / "out", RUN, overwrite=False, resume=None)


def test_a_damaged_run_file_is_named(tmp_path):
    with_checkpoint(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json cannot be read"):
        decide_start(tmp_path, RUN, overwrite=False, resume=None)


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    decision = decide_start(tmp_path, RUN, overwrite=False, resume=None)
    with claim_output(tmp_path, RUN, decision):
        with (
            pytest.raises(ConfigError, match="another run is writing to output_dir"),
            claim_output(tmp_path, RUN, decision),
        ):
            pass
        (CheckpointStore(tmp_path).stage(3) / "model.safetensors").write_text("half")
    assert not list(tmp_path.glob(".staging-*"))


def test_published_weights_leave_nothing_of_an_earlier_model(tmp_path):
    source, target = tmp_path / "checkpoint-1", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    (source / "model.safetensors").write_text("new")
    for name in ("adapter_model.safetensors", "adapter_config.json", "model-00001-of-00002.safetensors", "notes.txt"):
        (target / name).write_text("old")
    publish_weights(source, target)
    assert sorted(path.name for path in target.iterdir()) == ["model.safetensors", "notes.txt"]
