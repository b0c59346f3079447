import io
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from raytune.config.load import load_config
from raytune.config.run import RunConfig
from raytune.data.show import show_rows
from raytune.errors import DataError
from tests.helpers.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def config(folder: Path, rows: list[Any], **keys: Any) -> RunConfig:
    (folder / "a.json").write_text(json.dumps(rows))
    flat = {
        "model_name_or_path": "unused",
        "template": "chatml",
        "dataset": str(folder / "a.json"),
        "data_cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
        **keys,
    }
    return load_config(flat).config


def alpaca(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"q{n}", "input": "", "output": f"a{n}"} for n in range(count)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_trained_tokens_stand_in_brackets(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    out = io.StringIO()
    show_rows(config(tmp_path, alpaca(3)), tokenizer, rows=2, out=out)
    expected = "".join(
        f"--- row {n}: 25 tokens, 4 trained\n<|im_start|>user\nq{n}<|im_end|>\n"
        f"<|im_start|>assistant\n[[a{n}<|im_end|>\n]]\n"
        for n in range(2)
    )
    assert out.getvalue() == expected


def test_trained_tokens_are_coloured_on_a_terminal(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    out = Terminal()
    show_rows(config(tmp_path, alpaca(1)), tokenizer, out=out)
    assert "\x1b[32ma0<|im_end|>\n\x1b[0m" in out.getvalue()
    assert "[[" not in out.getvalue()


def test_json_is_one_object_a_row(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    out = io.StringIO()
    show_rows(config(tmp_path, alpaca(5)), tokenizer, rows=9, as_json=True, out=out)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(rows) == 5
    for number, row in enumerate(rows):
        assert list(row) == ["input_ids", "labels"]
        text = f"<|im_start|>user\nq{number}<|im_end|>\n<|im_start|>assistant\na{number}<|im_end|>\n"
        assert row["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_json_of_packed_rows_has_positions_and_mask(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    out = io.StringIO()
    show_rows(config(tmp_path, alpaca(2), packing=True, cutoff_len=100), tokenizer, as_json=True, out=out)
    row = json.loads(out.getvalue())
    assert row["position_ids"] == [*range(25), *range(25)]
    assert row["attention_mask"] == [1] * 25 + [2] * 25


def test_only_the_blocks_that_are_shown_are_encoded(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [*alpaca(4), {"instruction": "q", "input": "", "output": None}]
    out = io.StringIO()
    show_rows(config(tmp_path, rows, preprocessing_batch_size=2), tokenizer, rows=4, out=out)
    assert out.getvalue().count("--- row") == 4
    with pytest.raises(DataError, match=r"a\.json row 5: 'output' is null"):
        show_rows(config(tmp_path, rows, preprocessing_batch_size=2), tokenizer, rows=5, out=out)


def test_a_folder_that_holds_no_prepared_rows_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "tokenized").mkdir()
    (tmp_path / "tokenized" / "other.txt").write_text("x")
    with pytest.raises(DataError, match=r"no prepared data.*tokenized"):
        show_rows(config(tmp_path, alpaca(1), tokenized_path=str(tmp_path / "tokenized")), tokenizer)
