"""Loading tokenizers."""

import shutil
from pathlib import Path

import pytest

from raytune.config.model import ModelConfig
from raytune.errors import ModelError
from raytune.models.tokenizer import load_tokenizer
from tests.helpers.tiny import tiny_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def test_special_ids_and_padding_side(folder: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path=str(folder)))
    assert tokenizer.padding_side == "right"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.decode(tokenizer("caf\u00e9 <|im_end|>")["input_ids"]) == "caf\u00e9 <|im_end|>"


def test_split_special_tokens(folder: Path) -> None:
    cfg = ModelConfig(model_name_or_path=str(folder), split_special_tokens=True)
    assert len(load_tokenizer(cfg)("<|im_end|>")["input_ids"]) == len("<|im_end|>")


def test_added_tokens_are_single(folder: Path) -> None:
    cfg = ModelConfig(model_name_or_path=str(folder), add_tokens=("<a>",), add_special_tokens=("<b>",))
    tokenizer = load_tokenizer(cfg)
    assert tokenizer("<a><b>")["input_ids"] == [259, 260]
    assert tokenizer.decode([259, 260], skip_special_tokens=True) == "<a>"


def test_folder_without_tokenizer(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(ModelError, match=r"has no tokenizer.*there is: config.json"):
        load_tokenizer(ModelConfig(model_name_or_path=str(tmp_path)))


def test_broken_tokenizer(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_tokenizer(ModelConfig(model_name_or_path=str(copy)))
