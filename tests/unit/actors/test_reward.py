"""Functions and a trained reward model together: who is asked, and what each one weighs."""

from pathlib import Path
from typing import Any

import pytest

from actors.reward import MODEL, RewardJob, load_functions, make_decoder
from actors.reward_desk import RewardLimits
from actors.reward_model import ModelReward, model_job
from raytune.config.adapter import AdapterConfig
from raytune.config.model import ModelConfig
from raytune.config.reward import RewardConfig
from raytune.config.template import TemplateConfig
from raytune.errors import ConfigError, DataError
from tests.helpers.tiny import tiny_model_folder

POLICY = ModelConfig(model_name_or_path="m", model_revision="v2")


def loaded(*funcs: str, weights: tuple[float, ...] = ()) -> dict[str, float]:
    reward = RewardConfig(reward_funcs=funcs, reward_weights=weights)
    job = RewardJob(reward, POLICY, TemplateConfig(), ("solution",), 64, "worker")
    return {one.name: one.weight for one in load_functions(job, ModelReward("worker", seconds=1.0))}


def test_the_last_weight_is_the_models():
    assert loaded("exact", "length") == {"exact": 1.0, "length": 1.0, MODEL: 1.0}
    assert loaded("exact", "length", weights=(0.0, 0.5, 2.0)) == {"exact": 0.0, "length": 0.5, MODEL: 2.0}
    assert loaded("exact", weights=(0.0, 1.0)) == {"exact": 0.0, MODEL: 1.0}
    assert loaded(weights=(3.0,)) == {MODEL: 3.0}


def test_each_has_to_have_a_weight():
    with pytest.raises(ConfigError, match=r"1 reward_weights for 2 reward functions \(exact, reward_model\)"):
        loaded("exact", weights=(1.0,))
    with pytest.raises(ConfigError, match="all reward_weights are 0"):
        loaded("exact", weights=(0.0, 0.0))


def test_which_model_is_loaded():
    adapter = AdapterConfig(adapter_name_or_path=("sft",))

    def job(**keys: Any) -> Any:
        return model_job(RewardConfig(**keys), POLICY, adapter, cutoff_len=96)

    assert job() is None
    assert job(reward_model="http://host", reward_model_type="api") is None
    lora = job(reward_model="rm")
    assert (lora.model, lora.adapters, lora.below) == (POLICY, ("rm",), adapter)
    full = job(reward_model="rm", reward_model_type="full", reward_model_adapters=("a", "b"))
    assert (full.model.model_name_or_path, full.model.model_revision) == ("rm", "main")
    assert (full.adapters, full.below.adapter_name_or_path) == (("a", "b"), ())


def test_each_function_has_its_time_twice():
    def seconds(**keys: Any) -> float:
        return RewardLimits.of(RewardConfig(reward_time_limit=60.0, **keys)).seconds

    alone = seconds(reward_funcs=("exact",))
    assert alone > 2 * 60
    assert seconds(reward_funcs=("exact", "math", "code")) - alone == 2 * 2 * 60
    assert seconds(reward_funcs=("exact",), reward_model="rm") - alone == 2 * 60
    assert seconds(reward_model="rm") == seconds(reward_model="http://host", reward_model_type="api") == alone


def test_the_decoder_takes_a_template_that_came_with_the_config(tmp_path: Path):
    model = ModelConfig(model_name_or_path=str(tiny_model_folder(tmp_path)))
    template = TemplateConfig(template={"name": "mine.yaml", "extends": "chatml", "system": "S {{content}}"})
    decoder = make_decoder(RewardJob(RewardConfig(reward_funcs=("exact",)), model, template, None, 64))
    assert decoder.decode([1, 2]) == "<|im_start|><|im_end|>"
    with pytest.raises(DataError, match="has a broken key"):
        make_decoder(
            RewardJob(RewardConfig(), model, TemplateConfig(template={"name": "mine.yaml", "usr": ""}), None, 64)
        )
