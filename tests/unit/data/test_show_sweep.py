"""`raytune data show --json` for every stage with each of the 124 templates and the embedded model's tokenizer."""

import copy
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from transformers import PreTrainedTokenizerBase

from raytune.config.load import load_config
from raytune.data import compare_template, show
from raytune.data.template import Token, read_template, template_names
from raytune.errors import DataError
from raytune.types import PAIR_STAGES, PROMPT_STAGES, Stage
from tests.helpers.tokenizers import decode

STAGES: tuple[Stage, ...] = get_args(Stage)
CUTOFF = 512
LONG = " ".join(f"word{number}" for number in range(400))

# (question, an answer, a worse one); the last answer is longer than a row may be.
ASKED = (
    ("What is 3 + 4?", "It is 7.", "Eleven,\n I think."),
    ("Name a sea.", "The Caspian <Sea> \u00e9\U0001f30a", "Oslo"),
    ("Count.", LONG, "One two three."),
)
ALPACA = [{"instruction": question, "input": "", "output": answer} for question, answer, _ in ASKED]
PAIRS = [{"instruction": question, "chosen": answer, "rejected": worse} for question, answer, worse in ASKED]
TAGGED = [{**row, "tag": number != 1} for number, row in enumerate(ALPACA)]
TEXTS = [{"text": answer} for _, answer, _ in ASKED]
COLUMNS = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
SETS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "answers": (ALPACA, {}),
    "pairs": (PAIRS, {"ranking": True, "columns": COLUMNS}),
    "tagged": (TAGGED, {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "tag"}}),
    "texts": (TEXTS, {"columns": {"prompt": "text"}}),
}
SET_OF_STAGE: dict[Stage, str] = {"pt": "texts", "rm": "pairs", "dpo": "pairs", "kto": "tagged"}

PAIR_KEYS = ["chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"]
KEYS: dict[Stage, list[str]] = {
    "pt": ["input_ids", "labels"],
    "sft": ["input_ids", "labels"],
    "rm": PAIR_KEYS,
    "dpo": PAIR_KEYS,
    "kto": ["input_ids", "labels", "kl_input_ids", "kl_labels", "kto_tags"],
    "ppo": ["input_ids", "labels", "columns"],
    "grpo": ["input_ids", "labels", "columns"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sets")
    for name, (rows, _) in SETS.items():
        (made / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    info = {name: {"file_name": f"{name}.json", **entry} for name, (_, entry) in SETS.items()}
    (made / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return made


def config(folder: Path, name: str, stage: Stage, compat: str | None) -> dict[str, Any]:
    return {
        "model_name_or_path": "unused",
        "stage": stage,
        "template": name,
        "compat": compat,
        "dataset": SET_OF_STAGE.get(stage, "answers"),
        "dataset_dir": str(folder),
        "data_cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
        "cutoff_len": CUTOFF,
        "packing": False,
    }


def shown(flat: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, rows: int = 5) -> list[dict[str, Any]]:
    """What the command prints, read by a JSON reader."""
    out = io.StringIO()
    show.show_rows(load_config(flat).config, tokenizer, rows=rows, as_json=True, out=out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def check_row(row: dict[str, Any], stage: Stage, *, cutoff: int, num_tokens: int) -> None:
    """What holds for a row of a stage, whatever is said in it. Args: num_tokens: of the tokenizer."""
    assert list(row) == KEYS[stage]
    lists = [value for key, value in row.items() if key.endswith(("input_ids", "labels"))]
    assert all(0 <= token < num_tokens for ids in lists[::2] for token in ids)
    assert all(len(ids) <= cutoff for ids in lists[::2])
    if stage == "kto":
        assert isinstance(row["kto_tags"], bool)
    if stage in PROMPT_STAGES:
        assert row["input_ids"]
        return
    for ids, labels in zip(lists[::2], lists[1::2], strict=True):
        assert len(labels) == len(ids)
        assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
        assert set(labels) != {-100}


def trained(labels: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return decode(tokenizer, [label for label in labels if label != -100])


def check_rows(rows: list[dict[str, Any]], stage: Stage, tokenizer: PreTrainedTokenizerBase) -> None:
    """The rows of the sets above."""
    assert len(rows) == len(ASKED)
    for row in rows:
        check_row(row, stage, cutoff=CUTOFF, num_tokens=len(tokenizer))
    for number, (row, (question, answer, worse)) in enumerate(zip(rows, ASKED, strict=True)):
        expected = {"chosen_labels": answer, "rejected_labels": worse} if stage in PAIR_STAGES else {"labels": answer}
        if stage == "kto":
            assert row["kto_tags"] is (number != 1)
            expected["kl_labels"] = ASKED[number - 1][1]
        for key, text in expected.items():
            cut = text == LONG and stage not in PROMPT_STAGES
            assert ("word0 word1 " if cut else text) in trained(row[key], tokenizer)
            if cut:
                assert len(row[key]) == CUTOFF
                assert "word399" not in trained(row[key], tokenizer)
        if stage != "pt":
            given = decode(tokenizer, next(iter(row.values())))
            assert question in given or (answer == LONG and stage not in PROMPT_STAGES)
            assert stage not in PROMPT_STAGES or answer not in given


@pytest.fixture
def fitted_tokenizer(
    name: str, monkeypatch: pytest.MonkeyPatch, smollm2_tokenizer: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase:
    """A tokenizer for one template, the session's where the template changes nothing in it.

    The command copies its own at each call, and a second one to compare, which takes longer than all else here.
    """
    template = read_template(name)
    added = set(template.stop_words) - smollm2_tokenizer.get_added_vocab().keys()
    same_end = not template.replace_eos or template.stop_words[0] == smollm2_tokenizer.eos_token
    tokenizer = smollm2_tokenizer if same_end and not added else copy.deepcopy(smollm2_tokenizer)
    for module in (show, compare_template):
        monkeypatch.setattr(module, "deepcopy", lambda given: given)
    return tokenizer


@pytest.fixture(scope="module")
def vocabulary(smollm2_tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    return frozenset(smollm2_tokenizer.get_vocab())


def lacking(name: str, vocabulary: frozenset[str]) -> list[str]:
    """The tokens that a template names and the vocabulary does not have."""
    template = read_template(name)
    looked_up = [part.text for slot in template.slots for part in slot if isinstance(part, Token)]
    return [token for token in dict.fromkeys([*template.tokens, *looked_up]) if token not in vocabulary]


def test_some_templates_fit_the_tokenizer_and_others_do_not(vocabulary: frozenset[str]) -> None:
    fitting = {name for name in template_names() if not lacking(name, vocabulary)}
    # ChatML's two tokens are there, and plain text needs none.
    assert {"chatml", "smollm2", "qwen", "qwen3", "alpaca", "default", "empty", "vicuna"} <= fitting
    assert not {"llama3", "gemma4", "chatglm3", "glm4", "phi", "gpt_oss"} & fitting


@pytest.mark.parametrize("name", template_names())
def test_every_stage(
    name: str,
    folder: Path,
    fitted_tokenizer: PreTrainedTokenizerBase,
    vocabulary: frozenset[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A template whose tokens the tokenizer lacks is refused by default, and warned of under compat."""
    lacks = lacking(name, vocabulary)
    for stage in STAGES:
        if not lacks:
            check_rows(shown(config(folder, name, stage, None), fitted_tokenizer), stage, fitted_tokenizer)
            continue
        with pytest.raises(DataError, match=f"template '{name}' does not fit the tokenizer") as refused:
            shown(config(folder, name, stage, None), fitted_tokenizer)
        assert all(token in str(refused.value) for token in lacks)
    for stage in STAGES:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="raytune"):
            check_rows(shown(config(folder, name, stage, "llamafactory"), fitted_tokenizer), stage, fitted_tokenizer)
        # Stop words that the tokenizer was without are its tokens from the first stage on.
        misfits = [message for message in caplog.messages if "does not fit the tokenizer" in message]
        stop_words = read_template(name).stop_words
        assert len(misfits) == bool(lacks if stage == STAGES[0] else set(lacks) - set(stop_words))
        assert all(token in misfits[0] for token in lacks if stage == STAGES[0])
