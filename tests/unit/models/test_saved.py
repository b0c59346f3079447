"""Weights in safetensors files: for recovery, and what an engine was loaded from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raytune.errors import RolloutError
from raytune.models.published import Published
from raytune.models.saved import check_against_folder, verify_saved, write_saved
from tests.helpers.tiny import tiny_model


def entries(*, tied: bool = False) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(one.name, one.dtype, one.shape) for one in Published(tiny_model(tied=tied)).entries]


@pytest.mark.parametrize("tied", [True, False])
def test_a_models_own_folder_fits(tmp_path: Path, tied: bool) -> None:
    tiny_model(tied=tied).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    check_against_folder(tmp_path, entries(tied=tied))


def test_missing_surplus_and_resized_weights_are_named(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    whole = entries()
    with pytest.raises(RolloutError, match=r"model\.norm\.weight is missing"):
        check_against_folder(tmp_path, [one for one in whole if one[0] != "model.norm.weight"])
    with pytest.raises(RolloutError, match="value_head is not in it"):
        check_against_folder(tmp_path, [*whole, ("value_head", "float32", (1,))])
    grown = [("model.embed_tokens.weight", "float32", (300, 64)), *whole[1:]]
    with pytest.raises(
        RolloutError, match=r"model\.embed_tokens\.weight is \[300, 64\] in the trainer and \[259, 64\]"
    ):
        check_against_folder(tmp_path, grown)


def test_an_untied_head_must_come_too(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    with pytest.raises(RolloutError, match=r"lm_head\.weight is missing"):
        check_against_folder(tmp_path, [one for one in entries() if one[0] != "lm_head.weight"])


def test_a_model_that_is_not_in_a_folder_is_taken_at_its_word(tmp_path: Path) -> None:
    few = entries()[:1]
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(RolloutError, match="is missing"):
        check_against_folder(tmp_path, few)
    assert not (tmp_path / "name").exists()
    check_against_folder(tmp_path / "name/of-a-hub", few)


def test_a_recovery_file_is_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "recovery.safetensors"
    model = tiny_model(seed=3)
    write_saved(path, 7, Published(model).tensors())
    verify_saved(path, entries())
    found = load_file(path)
    assert torch.equal(found["model.norm.weight"], model.model.norm.weight)
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(RolloutError, match="their digest is wrong"):
        verify_saved(path, entries())
    path.write_bytes(bytes(content[:-100]))
    with pytest.raises(RolloutError, match="cannot be read"):
        verify_saved(path, entries())


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    save_file({"model.norm.weight": torch.zeros(64)}, tmp_path / "model.safetensors")
    with pytest.raises(RolloutError, match="is missing, too much or of another shape"):
        verify_saved(tmp_path, entries())
