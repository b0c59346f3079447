"""The files that the users' guides print load, or stop at what is not built, and say which names are not ours."""

import re
from pathlib import Path

import pytest

from raytune.config.load import Resolved, dump, load_config
from raytune.config.rules import Verb, check_built, check_verb
from raytune.errors import ConfigError, NotBuiltError

FILES = Path(__file__).parent / "guide_yamls"

# File -> the verb it is for, what is not built in it, the names it should be told about.
GUIDES: dict[str, tuple[Verb, set[str], set[str]]] = {
    "basic": ("train", set(), set()),
    "lora_keys": ("train", {"use_dora", "quantization_bit", "bnb_4bit_compute_dtype"}, set()),
    "rl_keys": ("train", set(), set()),
    "flash_attn": ("train", set(), set()),
    "unsloth": ("train", {"use_unsloth"}, set()),
    "liger": ("train", {"enable_liger_kernel"}, set()),
    "wandb": ("train", {"report_to"}, set()),
    "swanlab": ("train", {"use_swanlab", "swanlab_run_name"}, set()),
    "full_sft": ("train", {"deepspeed"}, set()),
    "freeze": ("train", set(), set()),
    "lora_dora": ("train", {"use_dora"}, set()),
    "qlora": (
        "train",
        {"quantization_bit", "bnb_4bit_compute_dtype"},
        {"bnb_4bit_quant_type", "bnb_4bit_use_double_quant"},
    ),
    "dpo": ("train", {"stage"}, set()),
    "orpo": ("train", {"stage", "pref_loss"}, {"stage: orpo"}),
    "kto": ("train", {"stage"}, {"desirable_weight", "undesirable_weight"}),
    "ppo": ("train", set(), set()),
    "multimodal": ("train", {"image_grid_pinpoints"}, set()),
    "long_context": ("train", {"shift_attn", "spatial_merge_size"}, set()),
    "fsdp": ("train", set(), {"use_fsdp", "fsdp_backward_prefetch"}),
    "merge_export": ("export", set(), set()),
    "gguf_export": ("export", {"export_quantization_bit"}, set()),
    "ollama_export": ("export", {"export_quantization_bit", "export_without_template"}, set()),
    "grpo": ("train", set(), {"grpo_beta", "grpo_num_generate_samples"}),
}


def load(name: str) -> Resolved:
    file = FILES / f"{name}.yaml"
    fragment = "model_name_or_path" not in file.read_text(encoding="utf-8")
    return load_config(file, ["model_name_or_path=m"] if fragment else [])


def test_every_file_is_expected() -> None:
    assert {file.stem for file in FILES.glob("*.yaml")} == set(GUIDES)


@pytest.mark.parametrize("name", GUIDES)
def test_guide_loads_and_stops_at_what_is_not_built(name: str) -> None:
    verb, unbuilt, told = GUIDES[name]
    resolved = load(name)
    assert {re.findall(r"'([^']+)'", warning)[0] for warning in resolved.warnings} == told
    if not unbuilt:
        check_built(resolved.config, verb)
        return
    with pytest.raises(NotBuiltError) as caught:
        check_built(resolved.config, verb)
    assert {found.partition(":")[0] for found in re.findall(r"'(\w+: [^']+)'", str(caught.value))} == unbuilt


@pytest.mark.parametrize("name", GUIDES)
def test_dumped_guide_loads_back_equal(name: str) -> None:
    resolved = load(name)
    again = load_config(dump(resolved.config))
    assert again.config == resolved.config
    assert again.warnings == ()


def test_the_basic_guide_is_ready_to_train() -> None:
    config = load("basic").config
    check_verb(config, "train")
    assert config.trains
    assert config.data.dataset == ("identity", "alpaca_en_demo")
    assert (config.optim.learning_rate, config.optim.warmup_ratio) == (5e-5, 0.1)


def test_a_guide_without_output_dir_says_so() -> None:
    with pytest.raises(ConfigError, match="training needs output_dir"):
        check_verb(load("freeze").config, "train")


def test_fsdp_guide_is_four_ranks_of_fsdp2() -> None:
    cluster = load("fsdp").config.cluster
    assert (cluster.engine, cluster.num_workers) == ("fsdp2", 4)


COMMAND = """
--stage sft --do_train True --model_name_or_path /models/qwen3_0_6b --preprocessing_num_workers 16
--finetuning_type lora --template qwen3 --flash_attn auto --dataset_dir data --dataset child_chat_5k_sharegpt
--cutoff_len 2048 --learning_rate 5e-05 --num_train_epochs 3.0 --max_samples 100000 --per_device_train_batch_size 1
--gradient_accumulation_steps 8 --lr_scheduler_type cosine --max_grad_norm 1.0 --logging_steps 10 --save_steps 100
--warmup_steps 100 --neftune_noise_alpha 5 --packing True --neat_packing True --enable_thinking False
--report_to tensorboard --logging_dir saves/Qwen3-0.6B-Thinking/lora/runs
--output_dir saves/Qwen3-0.6B-Thinking/lora/train_2025-08-15-17-58-52 --bf16 True --plot_loss True
--trust_remote_code True --ddp_timeout 180000000 --include_num_input_tokens_seen True --optim adamw_torch
--lora_rank 8 --lora_alpha 16 --lora_dropout 0.05
--lora_target q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj
--val_size 0.1 --eval_strategy steps --eval_steps 100 --per_device_eval_batch_size 1
"""


def test_the_command_of_the_web_page_guide_is_ready_to_train() -> None:
    resolved = load_config({}, COMMAND.split())
    assert resolved.warnings == ()
    check_built(resolved.config, "train")
    check_verb(resolved.config, "train")
    assert resolved.config.optim.learning_rate == 5e-5
    assert resolved.config.template.enable_thinking is False
    assert resolved.config.adapter.lora_target[-1] == "down_proj"


def test_the_serving_overrides_of_the_guide_stop_at_the_engine() -> None:
    overrides = ["infer_backend=vllm", "vllm_enforce_eager=true"]
    config = load_config(FILES / "merge_export.yaml", overrides).config
    with pytest.raises(NotBuiltError, match="not built yet: 'infer_backend: vllm'"):
        check_built(config, "chat")
