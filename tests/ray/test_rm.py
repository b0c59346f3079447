"""`stage: rm` as a user runs it, on a real Ray: the reward model learns which answers were chosen."""

import json

import pytest

from raytune.config.load import load_config
from raytune.launch import train
from raytune.models.scorer import load_scorer
from raytune.models.tokenizer import load_tokenizer
from tests.helpers.runs import run_keys, write_pairs

pytestmark = pytest.mark.usefixtures("ray_local")


def test_a_reward_model_is_trained_evaluated_saved_and_used(tmp_path):
    write_pairs(tmp_path / "data", count=32)
    keys = run_keys(
        tmp_path, stage="rm", dataset="pairs", val_size=8, num_train_epochs=4, num_workers=2, max_tokens_per_batch=512
    )
    summary = train(load_config(keys))
    lines = [json.loads(line) for line in (summary.folder / "trainer_log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert {"loss", "accuracy", "margin"} <= steps[0].keys()
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert summary.results["eval"]["eval_accuracy"] == 1.0
    assert summary.results["eval"]["eval_margin"] > 0.0
    assert (summary.folder / "value_head.safetensors").is_file()

    config = load_config(keys).config
    tokenizer = load_tokenizer(config.model)
    scorer = load_scorer(config.model, (str(summary.folder),))
    texts = [
        f"<|im_start|>user\nquestion 99<|im_end|>\n<|im_start|>assistant\n{word}<|im_end|>\n"
        for word in ("please", "never")
    ]
    polite, rude = scorer.score([tokenizer(text)["input_ids"] for text in texts])
    assert polite > rude
