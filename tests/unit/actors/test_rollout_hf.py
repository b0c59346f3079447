"""Which models a replica on transformers can be sent weights for."""

import pytest

from actors.rollout_hf import _check_entries
from raytune.errors import RolloutError
from raytune.models.published import Published
from tests.helpers.tiny import tiny_model


@pytest.mark.parametrize("tied", [True, False])
def test_a_dense_model_takes_what_its_trainer_sends(tied: bool) -> None:
    entries = Published(tiny_model(tied=tied)).entries
    _check_entries({entry.name: tuple(entry.shape) for entry in entries}, tiny_model(seed=1, tied=tied))


def test_less_than_the_whole_model_is_refused() -> None:
    entries = Published(tiny_model()).entries[1:]
    with pytest.raises(RolloutError, match=r"1 would not come"):
        _check_entries({entry.name: tuple(entry.shape) for entry in entries}, tiny_model())


def test_experts_that_are_joined_in_memory_are_refused_with_a_remedy() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    model = MixtralForCausalLM(config)
    entries = Published(model).entries
    with pytest.raises(RolloutError, match=r"MixtralForCausalLM.*rollout_backend: vllm"):
        _check_entries({entry.name: tuple(entry.shape) for entry in entries}, model)
