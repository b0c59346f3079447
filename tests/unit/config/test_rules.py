import json
from pathlib import Path

import pytest

from raytune.config.load import load_config
from raytune.config.rules import READS, RULES, VERB_RULES, Verb, check_built, check_verb
from raytune.config.run import RunConfig
from raytune.errors import ConfigError, NotBuiltError

ZERO3 = {"zero_optimization": {"stage": 3}}

# Rule -> keys that break it and nothing else, and the change that mends it.
CASES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "predict_with_generate_is_sft": ({"predict_with_generate": True, "stage": "pt"}, {"stage": "sft"}),
    "neat_packing_is_sft": ({"neat_packing": True, "stage": "pt"}, {"stage": "sft"}),
    "train_on_prompt_is_sft": ({"train_on_prompt": True, "stage": "dpo"}, {"stage": "sft"}),
    "smoothing_has_a_vocabulary": ({"label_smoothing_factor": 0.1, "stage": "rm"}, {"stage": "sft"}),
    "trained_padding_is_sft": ({"ignore_pad_token_for_loss": False, "stage": "pt"}, {"stage": "sft"}),
    "mask_history_is_sft": ({"mask_history": True, "stage": "rm"}, {"stage": "sft"}),
    "predict_needs_generate": ({"do_predict": True}, {"predict_with_generate": True}),
    "generate_excludes_accuracy": (
        {"predict_with_generate": True, "compute_accuracy": True}, {"compute_accuracy": False},
    ),
    "generate_excludes_zero3": ({"predict_with_generate": True, "deepspeed": ZERO3}, {"deepspeed": {"stage": 2}}),
    "best_model_is_not_rm_or_ppo": (
        {"load_best_model_at_end": True, "stage": "rm", "eval_strategy": "epoch", "save_strategy": "epoch"},
        {"stage": "sft"},
    ),
    "best_model_needs_evaluation": ({"load_best_model_at_end": True}, {"eval_strategy": "steps", "eval_steps": 100}),
    "best_model_is_saved": ({"load_best_model_at_end": True, "eval_strategy": "epoch"}, {"save_strategy": "epoch"}),
    "best_model_steps_match": (
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 200, "save_steps": 500},
        {"save_steps": 400},
    ),
    "early_stopping_needs_evaluation": ({"early_stopping_steps": 3}, {"eval_strategy": "epoch"}),
    "adapters_travel_alone": (
        {"stage": "grpo", "weight_sync": "adapter", "finetuning_type": "full"},
        {"weight_sync": "merged"},
    ),
    "replicas_read_their_keys": ({"stage": "grpo", "sglang_maxlen": 100}, {"sglang_maxlen": 4096}),
    "engines_read_their_keys": (
        {"stage": "grpo", "rollout_backend": "hf", "vllm_config": {"swap_space": 1}}, {"rollout_backend": "vllm"},
    ),
    "colocated_rewards_have_their_ranks_cpus": (
        {"stage": "grpo", "placement": "colocated", "reward_cpus": 2}, {"placement": "disaggregated"},
    ),
    "reward_functions_are_asked": (
        {"stage": "grpo", "reward_funcs": "number", "overlong_buffer_len": 8}, {"reward_funcs": "number,overlong"},
    ),
    "reward_types_are_of_a_model": (
        {"stage": "grpo", "reward_funcs": "number", "reward_model_type": "full"}, {"reward_model": "m"},
    ),
    "preferences_are_dpos": ({"stage": "ppo", "pref_beta": 0.2}, {"pref_beta": 0.1}),
    "divergences_are_weighed": ({"stage": "grpo", "kl_estimator": "k2"}, {"kl_coef": 0.1}),
    "dual_clips_are_ppos": ({"stage": "grpo", "clip_type": "cispo", "dual_clip": 3.0}, {"clip_type": "ppo"}),
    "answers_have_tokens": ({"stage": "grpo", "max_new_tokens": 0}, {"max_new_tokens": 16}),
    "critics_are_trained": ({"stage": "grpo", "lam": 0.9}, {"lam": 0.95}),
    "critics_of_their_own_have_a_rate": ({"stage": "ppo", "critic_learning_rate": 1e-5}, {"critic": "own"}),
    "shared_critics_are_weighed": ({"stage": "ppo", "critic": "own", "vf_coef": 0.5}, {"critic": "shared"}),
    "whole_answers_have_no_discount": ({"stage": "grpo", "gamma": 0.9}, {"advantage": "reinforce++"}),
    "divergence_has_a_target": ({"stage": "ppo", "ppo_target": 3.0, "kl_in_reward": False}, {"kl_in_reward": True}),
    "corrections_are_made": ({"stage": "grpo", "correction_high": 3.0}, {"rollout_correction": "mask"}),
    "ppo_keys_are_ppos": ({"stage": "grpo", "ppo_score_norm": True}, {"stage": "ppo"}),
    "rounds_are_of_dynamic_sampling": ({"stage": "grpo", "max_sampling_rounds": 3}, {"dynamic_sampling": True}),
    "replicas_compute_the_trained_model": ({"stage": "grpo", "rope_scaling": "yarn"}, {"rope_scaling": None}),
    "draws_are_the_policys": ({"stage": "ppo", "repetition_penalty": 1.1}, {"repetition_penalty": 1.0}),
    "groups_need_answers": ({"stage": "grpo", "num_generations": 1}, {"num_generations": 4}),
    "grpo_has_no_critic": ({"stage": "grpo", "advantage": "gae"}, {"advantage": "group"}),
    "own_critic_is_asked": ({"stage": "ppo", "critic": "own", "advantage": "reinforce++"}, {"advantage": "gae"}),
    "whitened_rewards_have_a_critic": (
        {"stage": "ppo", "ppo_whiten_rewards": True, "advantage": "reinforce++"}, {"advantage": "gae"},
    ),
    "truncated_draws_have_no_ratio": (
        {"stage": "grpo", "top_p": 0.9, "rollout_correction": "truncate"},
        {"rollout_correction": "off"},
    ),
    "answers_are_drawn": ({"stage": "grpo", "temperature": 0}, {"temperature": 1}),
    "taking_turns_is_synchronous": (
        {"stage": "grpo", "placement": "colocated", "max_staleness": 1},
        {"placement": "disaggregated"},
    ),
    "dynamic_sampling_has_groups": ({"stage": "ppo", "dynamic_sampling": True}, {"num_generations": 4}),
    "reward_adapters_have_a_model": (
        {"stage": "ppo", "reward_model": "m", "reward_model_adapters": "a"}, {"reward_model_type": "full"},
    ),
    "ppo_excludes_shift_attn": ({"stage": "ppo", "shift_attn": True}, {"shift_attn": False}),
    "ppo_monitors": ({"stage": "ppo", "report_to": "mlflow"}, {"report_to": "wandb,tensorboard"}),
    "long_samples_can_be_split": ({"on_long_sample": "split", "stage": "rm"}, {"on_long_sample": "drop"}),
    "split_samples_are_trained_whole": (
        {"on_long_sample": "split", "mask_history": True}, {"on_long_sample": "drop"},
    ),
    "joined_texts_are_never_long": ({"on_long_sample": "drop", "stage": "pt"}, {"packing": False}),
    "prompt_or_history": ({"mask_history": True, "train_on_prompt": True}, {"mask_history": False}),
    "streaming_needs_max_steps": ({"streaming": True}, {"max_steps": 10}),
    "streaming_excludes_max_samples": ({"streaming": True, "max_steps": 9, "max_samples": 5}, {"max_samples": None}),
    "streaming_counts_val_size": ({"streaming": True, "max_steps": 9, "val_size": 0.1}, {"val_size": 10}),
    "streaming_feeds_supervised_stages": ({"streaming": True, "max_steps": 9, "stage": "kto"}, {"stage": "pt"}),
    "streaming_prepares_nothing": (
        {"streaming": True, "max_steps": 9, "tokenized_path": "rows"}, {"tokenized_path": None},
    ),
    "held_out_rows_do_not_come_again": (
        {"streaming": True, "max_steps": 9, "val_size": 9, "mix_strategy": "interleave_over"},
        {"mix_strategy": "interleave_once"},
    ),
    "val_size_is_share_or_count": ({"val_size": 1.5}, {"val_size": 1}),
    "one_source_of_evaluation": ({"eval_dataset": "a", "val_size": 0.1}, {"val_size": 0}),
    "probs_need_interleaving": (
        {"interleave_probs": "0.5,0.5", "dataset": "a,b"}, {"mix_strategy": "interleave_under"},
    ),
    "probs_match_datasets": (
        {"interleave_probs": "0.5,0.5", "dataset": "a", "mix_strategy": "interleave_over"}, {"dataset": "a,b"},
    ),
    "probs_match_evaluation": (
        {
            "interleave_probs": "0.5,0.5", "dataset": "a,b", "eval_dataset": "a,b,c", "compat": "llamafactory",
            "mix_strategy": "interleave_over",
        },
        {"eval_on_each_dataset": True},
    ),
    "probs_are_probabilities": (
        {"interleave_probs": "0.5,0.6", "dataset": "a,b", "mix_strategy": "interleave_over"},
        {"interleave_probs": "0.4,0.6"},
    ),
    "neat_packing_packs": ({"neat_packing": True, "packing": False}, {"packing": True}),
    "a_row_fits_a_batch": ({"max_tokens_per_batch": 100}, {"cutoff_len": 100}),
    "one_way_to_size_a_step": (
        {"global_batch_size": 8, "gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 1},
    ),
    "one_half_precision": ({"fp16": True, "bf16": True}, {"fp16": False}),
    "pure_bf16_excludes_zero3": ({"pure_bf16": True, "deepspeed": ZERO3}, {"pure_bf16": False, "bf16": True}),
    "fp8_excludes_quantization": ({"fp8": True, "quantization_bit": 4}, {"fp8": False}),
    "adapters_need_lora": ({"adapter_name_or_path": "a", "finetuning_type": "full"}, {"finetuning_type": "lora"}),
    "quantization_needs_adapter": ({"quantization_bit": 4, "finetuning_type": "freeze"}, {"finetuning_type": "oft"}),
    "quantization_keeps_vocab": ({"quantization_bit": 4, "resize_vocab": True}, {"resize_vocab": False}),
    "full_excludes_llama_pro": ({"use_llama_pro": True, "finetuning_type": "full"}, {"finetuning_type": "freeze"}),
    "loraplus_is_lora": ({"loraplus_lr_ratio": 16, "finetuning_type": "full"}, {"finetuning_type": "lora"}),
    "rslora_is_lora": ({"use_rslora": True, "finetuning_type": "full"}, {"finetuning_type": "lora"}),
    "dora_is_lora": ({"use_dora": True, "finetuning_type": "oft"}, {"finetuning_type": "lora"}),
    "pissa_is_lora": ({"pissa_init": True, "finetuning_type": "full"}, {"finetuning_type": "lora"}),
    "pissa_excludes_zero3": ({"pissa_init": True, "deepspeed": {"stage": 3}}, {"deepspeed": None}),
    "pissa_excludes_quantization": ({"pissa_init": True, "quantization_bit": 8}, {"quantization_bit": 16}),
    "pissa_excludes_reference": ({"pissa_init": True, "stage": "dpo"}, {"pref_loss": "simpo"}),
    "smoothing_is_sigmoid": ({"dpo_label_smoothing": 0.1, "pref_loss": "ipo"}, {"pref_loss": "sigmoid"}),
    "one_special_optimizer": (
        {"use_galore": True, "use_badam": True, "finetuning_type": "full"}, {"use_badam": False},
    ),
    "special_optimizers_train_weights": ({"use_apollo": True}, {"finetuning_type": "full"}),
    "layerwise_is_one_rank": (
        {"use_galore": True, "galore_layerwise": True, "finetuning_type": "full", "num_workers": 2}, {"num_workers": 1},
    ),
    "layerwise_excludes_accumulation": (
        {"use_apollo": True, "apollo_layerwise": True, "finetuning_type": "full", "gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 1},
    ),
    "lowrank_excludes_deepspeed": (
        {"use_galore": True, "finetuning_type": "full", "deepspeed": {"stage": 2}}, {"deepspeed": None},
    ),
    "badam_ratio_is_one_rank": (
        {"use_badam": True, "badam_mode": "ratio", "finetuning_type": "full", "num_workers": 2}, {"num_workers": 1},
    ),
    "badam_layer_needs_zero3": (
        {"use_badam": True, "finetuning_type": "full", "num_workers": 2}, {"deepspeed": ZERO3},
    ),
    "unsloth_excludes_zero3": ({"use_unsloth": True, "deepspeed": ZERO3}, {"use_unsloth": False}),
    "kt_excludes_zero3": ({"use_kt": True, "deepspeed": ZERO3}, {"use_kt": False}),
    "single_is_one_rank": ({"engine": "single", "num_workers": 2}, {"engine": "ddp"}),
    "turns_have_an_environment": ({"max_turns": 2}, {"environment": "raytune.stages.calculator:Calculator"}),
    "steps_end_before_their_answer": (
        {"environment": "raytune.stages.calculator:Calculator", "rollout_timeout": 60, "environment_time_limit": 60},
        {"rollout_timeout": 61},
    ),
    "the_likeliest_answer_is_one": ({"eval_temperature": 0.0}, {"eval_num_generations": 1}),
    "held_out_prompts_are_one_set": ({"stage": "grpo", "eval_on_each_dataset": True}, {"eval_on_each_dataset": False}),
    "rewards_say_what_is_best": ({"stage": "grpo", "metric_for_best_model": "pass@3"}, {"eval_num_generations": 3}),
    "schedules_follow_no_reward": (
        {"stage": "grpo", "lr_scheduler_type": "reduce_lr_on_plateau"}, {"lr_scheduler_type": "cosine"},
    ),
    "shards_over_all_ranks": ({"fsdp_size": 2, "num_workers": 4}, {"num_workers": 2}),
}  # fmt: skip


def load(**given: object) -> RunConfig:
    return load_config({"model_name_or_path": "m", **given}).config


def test_every_rule_has_a_case() -> None:
    assert sorted(CASES) == sorted(rule.__name__ for rule in RULES)


@pytest.mark.parametrize("name", CASES)
def test_rule_refuses_and_names_its_keys(name: str) -> None:
    bad, change = CASES[name]
    with pytest.raises(ConfigError) as caught:
        load(**bad)
    assert "problems" not in str(caught.value), "the case breaks more than its own rule"
    assert any(key in str(caught.value) for key in bad)
    load(**(bad | change))


def test_a_single_answer_is_compared_with_the_greedy_one() -> None:
    made = load(stage="grpo", advantage="remax", num_generations=1, dynamic_sampling=True)
    assert (made.policy.advantage, made.rl.num_generations, made.rl.dynamic_sampling) == ("remax", 1, True)
    with pytest.raises(ConfigError, match="num_generations is 1"):
        load(stage="grpo", advantage="reinforce++", num_generations=1, dynamic_sampling=True)


def test_zero_stage_is_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(ZERO3), encoding="utf-8")
    with pytest.raises(ConfigError, match="ZeRO-3"):
        load(pure_bf16=True, deepspeed=str(path))
    path.write_text("{", encoding="utf-8")
    load(pure_bf16=True, deepspeed=str(path))


READY: dict[Verb, dict[str, object]] = {
    "train": {"output_dir": "out", "dataset": "a"},
    "data": {"dataset": "a"},
    "export": {"export_dir": "out"},
    "chat": {},
}

# Verb, what is changed in a config that is ready for it, and what is said.
VERB_CASES: list[tuple[Verb, dict[str, object], str]] = [
    ("train", {"output_dir": None}, "training needs output_dir"),
    ("train", {"dataset": None}, "training needs dataset"),
    ("train", {"do_eval": True, "do_train": True}, "do_eval needs rows to evaluate on"),
    ("train", {"do_predict": True, "predict_with_generate": True}, "do_predict needs rows to evaluate on"),
    ("train", {"do_eval": True, "val_size": 2}, "do_eval without training is not built yet"),
    ("train", {"eval_strategy": "steps"}, "eval_strategy needs rows to evaluate on"),
    ("train", {"infer_backend": "vllm"}, "infer_backend vllm cannot train"),
    ("train", {"quantization_device_map": "auto"}, "quantization_device_map is for inference only"),
    ("train", {"stage": "ppo", "do_train": False, "reward_model": "m"}, "stage ppo can only train"),
    ("train", {"stage": "grpo"}, "nothing that rewards answers"),
    ("train", {"global_batch_size": 9, "num_workers": 2}, "global_batch_size .9. is not divisible by num_workers .2."),
    ("data", {"dataset": None}, "there is no data set to show"),
    ("export", {"export_dir": None}, "export needs export_dir"),
    ("export", {"export_quantization_bit": 4}, "needs export_quantization_dataset"),
]


@pytest.mark.parametrize("verb", READY)
def test_ready_configs_pass(verb: Verb) -> None:
    assert check_verb(load(**READY[verb]), verb) is None


@pytest.mark.parametrize(("verb", "change", "said"), VERB_CASES)
def test_a_verb_says_what_it_lacks(verb: Verb, change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_verb(load(**(READY[verb] | change)), verb)


def test_all_that_a_verb_lacks_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"train cannot start:\n.*output_dir.*\n.*dataset"):
        check_verb(load(), "train")


def test_every_verb_is_known_everywhere() -> None:
    assert set(READS) == set(VERB_RULES) == set(READY)


def test_training_keys_do_not_hinder_chat_and_export() -> None:
    config = load(stage="dpo", use_dora=True, deepspeed="ds.json", torch_compile=True, use_swanlab=True)
    assert check_built(config, "chat") is None
    assert check_built(config, "export") is None
    with pytest.raises(NotBuiltError):
        check_built(config, "train")


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_rows_of_a_stage_that_cannot_be_trained_yet_can_be_shown(stage: str) -> None:
    config = load(stage=stage)
    assert check_built(config, "data") is None
    with pytest.raises(NotBuiltError, match=f"'stage: {stage}'"):
        check_built(config, "train")


def test_serving_keys_do_not_hinder_training() -> None:
    assert check_built(load(infer_backend="vllm", vllm_maxlen=100, export_quantization_bit=4), "train") is None


def test_what_is_not_built_is_named_with_its_value() -> None:
    with pytest.raises(NotBuiltError) as caught:
        check_built(load(use_dora=True, report_to="tensorboard,wandb", quantization_bit=4), "train")
    assert "not built yet: 'use_dora: true', 'report_to: wandb', 'quantization_bit: 4'." in str(caught.value)


@pytest.mark.parametrize("given", [{}, {"use_dora": False}, {"quantization_bit": None}, {"report_to": "none"}])
def test_defaults_are_built(given: dict[str, object]) -> None:
    for verb in READS:
        assert check_built(load(**given), verb) is None
