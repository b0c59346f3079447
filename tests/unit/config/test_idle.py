"""Keys that a run of ppo or grpo would not read: those of this program are refused, LLaMA-Factory's warned of."""

from pathlib import Path

import pytest

from raytune.config.keys import KEYS
from raytune.config.load import Resolved, load_config
from raytune.config.readers import readers
from raytune.errors import ConfigError

# A file of stage ppo as users of LLaMA-Factory have it: all of these are its keys, some left from a file of sft.
USERS_FILE: dict[str, object] = {
    "stage": "ppo", "do_train": True, "model_name_or_path": "m", "trust_remote_code": True, "reward_model": "saves/rm",
    "reward_model_type": "lora", "finetuning_type": "lora", "lora_target": "all", "lora_rank": 16, "lora_dropout": 0.1,
    "dataset": "identity", "template": "qwen3", "cutoff_len": 1024, "max_samples": 500, "overwrite_cache": True,
    "preprocessing_num_workers": 4, "packing": False, "output_dir": "saves/ppo", "overwrite_output_dir": True,
    "logging_steps": 5, "save_steps": 100, "save_only_model": False, "plot_loss": True, "report_to": "none",
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 2.0e-5,
    "num_train_epochs": 1.0, "lr_scheduler_type": "cosine", "warmup_ratio": 0.05, "bf16": True, "ddp_timeout": 9000,
    "max_new_tokens": 256, "top_k": 0, "top_p": 0.9, "pref_beta": 0.1, "per_device_eval_batch_size": 1,
}  # fmt: skip

# What LLaMA-Factory takes in stage ppo and does nothing with, as do its web page's commands and its files of sft.
HARMLESS: dict[str, object] = {
    "lora_dropout": 0.05,
    "neftune_noise_alpha": 5,
    "packing": True,
    "group_by_length": True,
    "buffer_size": 1000,
    "per_device_eval_batch_size": 1,
    "compute_accuracy": True,
    "max_length": 2048,
}

# Function of reward_funcs -> its keys, with values that are not their defaults.
FUNCTION_KEYS: dict[str, dict[str, object]] = {
    "math": {"reward_answer_column": "answer"},
    "exact": {"reward_answer_column": "answer"},
    "number": {"reward_answer_column": "answer"},
    "regex": {"reward_regex": "[0-9]"},
    "overlong": {"overlong_buffer_len": 4096, "overlong_penalty_factor": 0.5},
    "code": {"code_tests_column": "asserts", "code_time_limit": 1.0, "code_memory_limit": 2.0},
    "judge": {
        "judge_url": "http://a/v1", "judge_model": "j", "judge_api_key": "k", "judge_prompt": "{completion}",
        "judge_score_regex": "(1|0)",
    },
}  # fmt: skip

VLLM: dict[str, object] = {
    "vllm_gpu_util": 0.5,
    "vllm_enforce_eager": True,
    "vllm_config": {"max_num_seqz": 4},
    "kv_cache_gb": 2.0,
}


def load(**given: object) -> Resolved:
    return load_config({"model_name_or_path": "m", **given})


def refusal(**given: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**given)
    return str(caught.value)


def test_a_file_of_llamafactory_loads() -> None:
    said = [warning.split("'")[1] for warning in load_config(USERS_FILE).warnings]
    assert said == ["lora_dropout", "per_device_eval_batch_size"]


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
@pytest.mark.parametrize("key", HARMLESS)
def test_a_harmless_key_of_llamafactory_is_warned_of(stage: str, key: str) -> None:
    (said,) = load(stage=stage, **{key: HARMLESS[key]}).warnings
    assert said.startswith(f"'{key}' (given mapping) has no effect in stage {stage}: ")


def test_harmless_keys_are_said_with_their_lines_and_for_their_stages_alone(tmp_path: Path) -> None:
    path = tmp_path / "ppo.yaml"
    path.write_text("model_name_or_path: m\nstage: ppo\nlora_dropout: 0.05\n", encoding="utf-8")
    (said,) = load_config(path).warnings
    assert "'lora_dropout' (ppo.yaml line 3) has no effect in stage ppo" in said
    assert load_config(path, ["stage=sft"]).warnings == ()
    assert load(stage="sft", **HARMLESS).warnings == ()


def test_defaults_are_not_spoken_of() -> None:
    idle = {*HARMLESS, *VLLM, *(key for keys in FUNCTION_KEYS.values() for key in keys), "pref_beta", "dual_clip"}
    defaults = {key: KEYS[key].default for key in idle}
    for stage in ("ppo", "grpo"):
        assert load(stage=stage, rollout_backend="hf", **defaults).warnings == ()
    assert load(stage="ppo", packing=False, neftune_noise_alpha=0).warnings == ()


@pytest.mark.parametrize("function", FUNCTION_KEYS)
def test_keys_of_a_reward_function_need_it(function: str) -> None:
    keys = FUNCTION_KEYS[function]
    for key, value in keys.items():
        said = refusal(stage="grpo", reward_funcs="think_format", **{key: value})
        assert f"{key} changes nothing in stage grpo without " in said
        assert function in said
        assert "add " in said
    assert load(stage="grpo", reward_funcs=f"think_format,{function}", **keys).warnings == ()


def test_no_key_of_a_reward_function_is_forgotten() -> None:
    alone = {key for key, files in readers().items() if files == ("raytune/rewards/builtin.py",)}
    assert alone == {"reward_funcs"} | {key for keys in FUNCTION_KEYS.values() for key in keys}


def test_keys_of_several_functions_are_told_at_once() -> None:
    said = refusal(stage="ppo", reward_funcs="number", reward_regex="a", judge_model="j", judge_url="http://a")
    assert "reward_regex and judge_url and judge_model change nothing in stage ppo without regex and judge in" in said


def test_a_secret_that_nobody_reads_is_not_shown() -> None:
    assert "hush" not in refusal(stage="grpo", judge_api_key="hush")


@pytest.mark.parametrize("key", VLLM)
def test_keys_of_vllm_need_it(key: str) -> None:
    given = {"stage": "grpo", key: VLLM[key]}
    assert f"{key} changes nothing in stage grpo: transformers draws" in refusal(rollout_backend="hf", **given)
    for backend in ("auto", "vllm"):
        assert load(rollout_backend=backend, **given).warnings == ()


def test_the_window_of_replicas_is_no_key_of_vllm() -> None:
    assert load(stage="grpo", rollout_backend="hf", vllm_maxlen=512).config.rollout.vllm_maxlen == 512


def test_what_a_stage_takes_by_default_is_not_given() -> None:
    """The divergence is part of the loss in grpo and of the reward in ppo, and kl_coef is 0 in grpo."""
    assert "kl_in_reward changes nothing in stage grpo: kl_coef is 0" in refusal(stage="grpo", kl_in_reward=True)
    assert "kl_in_reward changes nothing in stage ppo" in refusal(stage="ppo", kl_coef=0, kl_in_reward=False)
    assert load(stage="grpo", kl_in_reward=False).config.policy.kl_in_reward is False
    assert load(stage="ppo", kl_coef=0, kl_in_reward=True).config.policy.kl_in_reward is True
    assert load(stage="grpo", kl_in_reward=True, kl_coef=0.1).config.policy.kl_in_reward is True
