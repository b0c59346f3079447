"""Every key that a LLaMA-Factory user may have in a file has a verdict."""

import re
from pathlib import Path

import pytest
from transformers import Seq2SeqTrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from raytune.config.compat import compat
from raytune.config.keys import KEYS, choices
from raytune.config.load import load_config
from raytune.config.rules import check_built
from raytune.errors import ConfigError, NotBuiltError

REFERENCE = Path(__file__).parents[3].parent / "shared" / "reference" / "llamafactory.md"


def section(number: str) -> str:
    """The text of a numbered section of the reference."""
    text = REFERENCE.read_text(encoding="utf-8")
    return text.split(f"\n### {number} ", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]


def known() -> set[str]:
    return set(KEYS) | compat().names()


def test_every_declared_key_has_a_verdict() -> None:
    keys = re.findall(r"^- `(\w+)`", section("1.1"), flags=re.MULTILINE)
    assert len(keys) == 274
    assert sorted(set(keys) - known()) == []


def test_every_inherited_key_has_a_verdict() -> None:
    paragraph = next(line for line in section("1.2").splitlines() if line.startswith("`output_dir`"))
    keys = re.findall(r"`(\w+)`", paragraph)
    assert len(set(keys)) >= 90
    assert sorted(set(keys) - known()) == []


def test_every_field_of_the_installed_trainer_arguments_has_a_verdict() -> None:
    assert sorted(set(Seq2SeqTrainingArguments.__dataclass_fields__) - known()) == []


def test_every_scheduler_is_a_choice() -> None:
    assert set(choices(KEYS["lr_scheduler_type"])) == {kind.value for kind in SchedulerType}


def test_every_optimizer_name_has_a_verdict() -> None:
    names = set(choices(KEYS["optim"])) | {str(name) for name in compat().values["optim"]}
    assert sorted({name.value for name in OptimizerNames} - names) == []


# Guide text -> what it means (raytune keys), or the reason it is refused with.
ROWS: list[tuple[dict[str, object], dict[str, object] | str]] = [
    ({"stage": "grpo"}, {"stage": "grpo"}),
    ({"grpo_beta": 0.1}, {"kl_coef": 0.1}),
    ({"grpo_num_generate_samples": 16}, {"num_generations": 16}),
    ({"stage": "orpo", "pref_beta": 0.2}, {"stage": "dpo", "pref_loss": "orpo", "pref_beta": 0.2}),
    ({"stage": "simpo"}, {"stage": "dpo", "pref_loss": "simpo"}),
    ({"desirable_weight": 0.5, "undesirable_weight": 2}, {"kto_chosen_weight": 0.5, "kto_rejected_weight": 2.0}),
    ({"gamma": 0.9, "lam": 0.8, "clip_range": 0.1}, {"gamma": 0.9, "lam": 0.8, "clip_range": 0.1}),
    ({"use_fsdp": True}, {"engine": "fsdp2"}),
    ({"use_fsdp": False}, {"engine": "auto"}),
    ({"fsdp": "full_shard auto_wrap"}, {"engine": "fsdp2", "fsdp": None}),
    ({"fsdp_config": {"fsdp_size": 4, "fsdp_sharding_strategy": 1}}, {"fsdp_size": 4, "num_workers": 4}),
    ({"fsdp_config": {"cpu_offload": True}}, {"fsdp_cpu_offload": True}),
    ({"fsdp_config": {"sharding_strategy": "HYBRID_SHARD"}}, {"fsdp_sharding_strategy": "hybrid_shard"}),
    ({"bnb_4bit_compute_dtype": "bf16"}, {"bnb_4bit_compute_dtype": "bfloat16"}),
    ({"bnb_4bit_quant_type": "fp4"}, {"quantization_type": "fp4"}),
    ({"bnb_4bit_use_double_quant": False}, {"double_quantization": False}),
    ({"quantization_bit": 16}, {"quantization_bit": None}),
    ({"quantization_bit": 2}, {"quantization_bit": 2, "quantization_method": "hqq"}),
    ({"finetuning_type": "qlora"}, {"finetuning_type": "lora", "quantization_bit": 4}),
    ({"finetuning_type": "qlora", "quantization_bit": 8}, {"finetuning_type": "lora", "quantization_bit": 8}),
    ({"finetuning_type": "qoft"}, {"finetuning_type": "oft", "quantization_bit": 4}),
    ({"use_loftq": True}, {"use_loftq": True}),
    ({"optim": "muon"}, {"use_muon": True, "optim": "adamw_torch_fused"}),
    ({"optim": "adam-mini"}, {"use_adam_mini": True}),
    ({"galore_rank": 128, "finetuning_type": "full"}, {"galore_rank": 128, "use_galore": True}),
    ({"galore_rank": 128, "use_galore": False}, {"use_galore": False}),
    ({"oft_alpha": 1}, {}),
    ({"freeze_extra_modules": "all"}, {"freeze_extra_modules": ("all",)}),
    ({"flash_attn": True}, {"flash_attn": "fa2"}),
    ({"flash_attn": "false"}, {"flash_attn": "disabled"}),
    ({"flash_attn": 1}, {"flash_attn": "fa2"}),
    ({"gradient_checkpointing": True}, {"gradient_checkpointing": True}),
    ({"disable_gradient_checkpointing": True}, {"gradient_checkpointing": False}),
    ({"disable_gradient_checkpointing": False}, {"gradient_checkpointing": "auto"}),
    ({"evaluation_strategy": "steps"}, {"eval_strategy": "steps"}),
    ({"image_grid_pinpoints": "[[336, 672]]"}, {"image_grid_pinpoints": "[[336, 672]]"}),
    ({"spatial_merge_size": 2}, {"spatial_merge_size": 2}),
    ({"vision_tower": "openai/clip-vit-large-patch14-336"}, "models are not put together from parts"),
    ({"projector_type": "mlp"}, "models are not put together from parts"),
    ({"mm_module_name": ".*w_pack"}, "put these modules into lora_target"),
    ({"freeze_llm_module": True}, {"freeze_language_model": True}),
    ({"lora_target": "q_proj,vision_projector"}, {"lora_target": ("q_proj", "vision_projector")}),
    ({"export_quantization_bit": "Q4_K_M"}, {"export_quantization_bit": "Q4_K_M"}),
    ({"export_without_template": True}, {"export_without_template": True}),
    ({"export_size": 4}, {"export_size": 4.0}),
    ({"template": "auto"}, {"template": None}),
    ({"template": "default"}, {"template": "default"}),
    ({"num_gpus": 8}, "set num_workers"),
    ({"deepspeed": {"stage": 3}}, {"deepspeed": {"stage": 3}}),
    ({"use_kt": True}, {"use_kt": True}),
]


@pytest.mark.parametrize(("given", "meant"), ROWS)
def test_what_guides_write_means_what_they_mean(given: dict[str, object], meant: dict[str, object] | str) -> None:
    flat = {"model_name_or_path": "m", **given}
    if isinstance(meant, str):
        with pytest.raises(ConfigError, match=meant):
            load_config(flat)
        return
    groups = dict(load_config(flat).config)
    assert {key: dict(groups[KEYS[key].group])[key] for key in meant} == meant


@pytest.mark.parametrize("key", [key for key, entry in KEYS.items() if entry.not_built and not entry.not_built.values])
def test_keys_that_come_later_are_refused_by_name(key: str) -> None:
    other = "anything but the default"
    config = load_config({"model_name_or_path": "m"}).config
    group = dict(config)[KEYS[key].group].model_copy(update={key: other})
    verb = "export" if KEYS[key].group == "export" else "chat" if KEYS[key].group == "rollout" else "train"
    with pytest.raises(NotBuiltError, match=f"'{key}: "):
        check_built(config.model_copy(update={KEYS[key].group: group}), verb)
