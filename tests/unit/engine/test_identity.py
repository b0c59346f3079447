import pytest

from raytune.config.load import load_config
from raytune.engine.identity import differences, identity_of


def changed(before: dict[str, object], after: dict[str, object]) -> list[str]:
    base = {"model_name_or_path": "m", "dataset": "d", "output_dir": "o"}
    return differences(*(identity_of(load_config({**base, **keys}).config) for keys in (before, after)))


@pytest.mark.parametrize(
    ("before", "after", "keys"),
    [
        ({}, {"lora_rank": 4, "lora_alpha": 16}, ["lora_rank"]),
        ({}, {"lora_rank": 4}, ["lora_rank", "lora_alpha"]),
        ({}, {"lora_target": "q_proj,v_proj"}, ["lora_target"]),
        ({}, {"additional_target": "lm_head"}, ["additional_target"]),
        ({}, {"use_rslora": True}, ["use_rslora"]),
        ({}, {"finetuning_type": "full"}, ["finetuning_type"]),
        ({}, {"add_tokens": "x", "resize_vocab": True}, ["resize_vocab", "add_tokens"]),
        ({"finetuning_type": "freeze"}, {"finetuning_type": "freeze", "freeze_trainable_layers": 1}, None),
        ({}, {"optim": "sgd"}, ["optim"]),
        ({}, {"lr_scheduler_type": "greedy", "eval_strategy": "epoch", "val_size": 4}, ["lr_scheduler_type"]),
        ({}, {"dataset": "e"}, ["dataset"]),
    ],
    ids=str,
)
def test_what_shapes_the_state_of_a_run_is_part_of_it(before, after, keys):
    assert changed(before, after) == (keys or ["freeze_trainable_layers"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"lora_alpha": 16}),
        ({}, {"optim": "adamw_torch"}),
        ({"lora_target": "q_proj,v_proj"}, {"lora_target": "v_proj,q_proj"}),
        ({}, {"lr_scheduler_type": "cosine", "learning_rate": 1e-3, "num_train_epochs": 9}),
        ({}, {"lora_dropout": 0.1, "num_workers": 2, "per_device_train_batch_size": 1}),
        ({"finetuning_type": "full"}, {"finetuning_type": "full", "lora_rank": 4}),
        ({"adapter_name_or_path": "a"}, {"adapter_name_or_path": "a", "lora_rank": 4}),
    ],
    ids=str,
)
def test_what_changes_no_tensor_is_not(before, after):
    assert changed(before, after) == []
