"""A reward model: its loss and gradient are the formula's, it is saved whole, and it can be used again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from raytune.data.batches import Position
from raytune.data.encode import encode_samples
from raytune.data.inputs import DataOptions, ready_template
from raytune.data.prepared import PreparedData
from raytune.data.store import Manifest, to_table, write_block, write_manifest
from raytune.errors import ModelError
from raytune.models.scorer import RewardScorer, check_same_tokenizer, load_scorer
from raytune.models.tokenizer import load_tokenizer
from raytune.models.values import ValueHead
from raytune.stages.rank import RankTrainer
from raytune.types import Encoded, Message, Sample
from tests.helpers.runs import run_config
from tests.helpers.tiny import tiny_model, tiny_model_folder

CPU = torch.device("cpu")
PAIRS = [("red", "a green cat"), ("the old dog sleeps", "x"), ("blue", "yes"), ("a", "b"), ("large house", "tree")]


def prepared(folder: Path, **keys: Any) -> tuple[Any, list[Encoded], PreparedData]:
    cfg = run_config(folder, stage="rm", max_grad_norm=0, freeze_trainable_layers=1, **keys)
    tokenizer = load_tokenizer(cfg.model)
    template = ready_template(DataOptions.of(cfg), tokenizer)
    samples = [
        Sample((Message("user", f"say {good}"), Message("assistant", good)), rejected=Message("assistant", bad))
        for good, bad in PAIRS
    ]
    rows = encode_samples(samples, "rm", template, tokenizer, cfg.data)
    rows_folder = folder / "rows"
    if not rows_folder.exists():
        rows_folder.mkdir()
        write_manifest(rows_folder, Manifest("key", (write_block(rows_folder, 0, to_table(rows)),)))
    return cfg, rows, PreparedData(folder, "key", train=rows_folder, eval={"": rows_folder})


def started(cfg: Any, data: PreparedData, checkpoint: Path | None = None) -> RankTrainer:
    rank = RankTrainer(cfg, rank=0, world_size=1, device=CPU)
    rank.build(checkpoint)
    rank.start(data, total_steps=10, checkpoint=checkpoint)
    return rank


def halves(row: Encoded) -> tuple[list[int], list[int]]:
    border = row.attention_mask.count(1)
    return row.input_ids[:border], row.input_ids[border:]


def score(model: Any, ids: list[int]) -> Tensor:
    """By hand: the last token's hidden state behind the last norm, times the head's weights."""
    hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
    head = model.get_submodule("v_head").summary
    return hidden @ head.weight[0] + head.bias[0]


def by_hand(model: Any, rows: list[Encoded]) -> tuple[Tensor, int, float]:
    """Bradley-Terry, -log(1 / (1 + exp(-(chosen - rejected)))), summed; wins; the sum of the margins."""
    total, wins, margins = torch.zeros(()), 0, 0.0
    for row in rows:
        chosen, rejected = (score(model, ids) for ids in halves(row))
        total = total + torch.log1p(torch.exp(rejected - chosen))
        wins += int(chosen > rejected)
        margins += float((chosen - rejected).detach())
    return total, wins, margins


@pytest.mark.parametrize("method", ["lora", "full", "freeze"])
@pytest.mark.parametrize(
    "cut",
    [{"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 2}, {"max_tokens_per_batch": 300}],
    ids=str,
)
def test_loss_and_gradient_are_those_of_the_formula(tmp_path, cut, method):
    cfg, rows, data = prepared(tmp_path, finetuning_type=method, **cut)
    rank = started(cfg, data)
    caught: dict[str, Tensor] = {}

    def catch() -> None:
        caught.update({n: p.grad.clone() for n, p in rank.model.named_parameters() if p.grad is not None})

    rank.engine.optimizer.step = catch  # type: ignore[method-assign]
    evaluated = rank.evaluate("", 0, len(rows))
    found = rank.train_step(1, Position())
    model = started(cfg, data).model
    model.set_attn_implementation("eager")
    total, wins, margins = by_hand(model, rows)
    (total / len(rows)).backward()
    for sums in (found, evaluated):
        assert sums.loss == pytest.approx(float(total.detach()), rel=1e-5)
        assert (sums.correct, sums.num_label_tokens, sums.num_rows) == (wins, len(rows), len(rows))
        assert sums.extra["margin"] == pytest.approx(margins, rel=1e-4, abs=1e-5)
    expected = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
    assert caught.keys() == expected.keys()
    assert "v_head.summary.weight" in expected
    for name, grad in expected.items():
        torch.testing.assert_close(caught[name], grad, rtol=1e-5, atol=3e-6, msg=name)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_saved_reward_model_scores_and_goes_on_as_before(tmp_path, method):
    cfg, rows, data = prepared(tmp_path, finetuning_type=method)
    rank = started(cfg, data)
    rank.train_step(1, Position())
    folder = tmp_path / "saved"
    folder.mkdir()
    rank.save(folder, with_state=True)
    head = load_file(folder / "value_head.safetensors")
    assert {name: tuple(value.shape) for name, value in head.items()} == {
        "v_head.summary.weight": (1, 64),
        "v_head.summary.bias": (1,),
    }
    others = [path for path in folder.glob("*.safetensors") if path.name != "value_head.safetensors"]
    assert not any("v_head" in name for path in others for name in load_file(path))

    lora = method == "lora"
    base = cfg.model if lora else cfg.model.model_copy(update={"model_name_or_path": str(folder)})
    scorer = load_scorer(base, (str(folder),) if lora else (), max_tokens=100)
    flat = [ids for row in rows for ids in halves(row)]
    rank.model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = [float(score(rank.model.eval(), ids)) for ids in flat]
    assert scorer.score(flat) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) > 1

    again = started(cfg, data, folder)
    assert again.train_step(2, Position()).loss == pytest.approx(rank.train_step(2, Position()).loss, rel=1e-6)


def test_padding_changes_no_score():
    torch.manual_seed(0)
    scorer = RewardScorer(tiny_model(), ValueHead(64, std=0.1), device=CPU)
    rows = [[5, 6, 7], [9] * 40, [11, 12]]
    assert scorer.score(rows) == pytest.approx([scorer.score([row])[0] for row in rows], abs=1e-6)


def test_what_is_no_reward_model_is_refused(tmp_path):
    tiny_model_folder(tmp_path / "model")
    cfg = run_config(tmp_path).model
    with pytest.raises(ModelError, match=r"is no reward model: it has no value_head.safetensors"):
        load_scorer(cfg)
    check_same_tokenizer(cfg, cfg)
