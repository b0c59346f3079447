import hashlib
import json

import pytest

from raytune.engine.checkpoint import CheckpointStore, damaged_files, verify, write_json
from raytune.errors import CheckpointError


def save(store: CheckpointStore, step: int, text: str = "weights") -> None:
    folder = store.stage(step)
    (folder / "model.safetensors").write_text(text)
    (folder / "optimizer").mkdir()
    (folder / "optimizer" / "part").write_text("state")
    store.commit(step)


def test_manifest_holds_size_and_sha256_of_every_file(tmp_path):
    save(CheckpointStore(tmp_path), 3)
    manifest = json.loads((tmp_path / "checkpoint-3" / "manifest.json").read_text())
    expected = {"size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert manifest["files"]["model.safetensors"] == expected
    assert set(manifest["files"]) == {"model.safetensors", "optimizer/part"}


def test_what_was_only_staged_is_never_picked_up(tmp_path):
    store = CheckpointStore(tmp_path)
    (store.stage(5) / "model.safetensors").write_text("half")
    assert store.steps() == []
    assert store.latest() is None
    store.sweep_staging()
    assert list(tmp_path.iterdir()) == []


def test_latest_passes_over_a_damaged_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 9)
    save(store, 10)
    (tmp_path / "checkpoint-10" / "model.safetensors").write_text("WEIGHTS")
    assert store.latest() == tmp_path / "checkpoint-9"
    assert damaged_files(tmp_path / "checkpoint-10") == ["model.safetensors differs"]
    with pytest.raises(CheckpointError, match=r"damaged: model\.safetensors differs"):
        verify(tmp_path / "checkpoint-10")


def test_a_missing_file_is_named(tmp_path):
    save(CheckpointStore(tmp_path), 1)
    (tmp_path / "checkpoint-1" / "optimizer" / "part").unlink()
    with pytest.raises(CheckpointError, match="optimizer/part is missing"):
        verify(tmp_path / "checkpoint-1")


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint: it has no manifest\.json"):
        verify(tmp_path)


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in range(1, 6):
        save(store, step)
    store.prune(3, keep=1)
    assert store.steps() == [1, 4, 5]
    store.prune(1, keep=1)
    assert store.steps() == [1, 5]


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_going_back_drops_what_came_after(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (2, 4, 6):
        save(store, step)
    assert store.drop_after(4) == [6]
    assert store.steps() == [2, 4]
