"""What does not go together in how weights are stored and trained."""

from raytune.config.checks.broken import Broken, broken
from raytune.config.checks.zero import zero_stage
from raytune.config.run import RunConfig

NO_REFERENCE = ("orpo", "simpo")


def one_half_precision(config: RunConfig) -> Broken | None:
    precision = config.precision
    wrong = precision.fp16 and (precision.bf16 or precision.pure_bf16)
    return broken(wrong, "fp16 excludes bf16 and pure_bf16", "fp16", "bf16", "pure_bf16", fix="Keep one of them.")


def pure_bf16_excludes_zero3(config: RunConfig) -> Broken | None:
    wrong = config.precision.pure_bf16 and zero_stage(config.cluster.deepspeed) == 3
    return broken(wrong, "pure_bf16 does not work with ZeRO-3", "pure_bf16", "deepspeed", fix="Use bf16.")


def fp8_excludes_quantization(config: RunConfig) -> Broken | None:
    wrong = config.precision.fp8 and config.quant.quantization_bit is not None
    return broken(wrong, "fp8 excludes quantization", "fp8", "quantization_bit", fix="Keep one of them.")


def adapters_need_lora(config: RunConfig) -> Broken | None:
    adapter = config.adapter
    wrong = bool(adapter.adapter_name_or_path) and adapter.finetuning_type != "lora"
    what = f"adapter_name_or_path is for finetuning_type lora, not {adapter.finetuning_type}"
    return broken(wrong, what, "adapter_name_or_path", "finetuning_type")


def quantization_needs_adapter(config: RunConfig) -> Broken | None:
    kind = config.adapter.finetuning_type
    wrong = config.quant.quantization_bit is not None and kind in ("freeze", "full")
    what = f"quantized weights cannot be trained, as finetuning_type {kind} would"
    return broken(wrong, what, "quantization_bit", "finetuning_type", fix="Use finetuning_type lora.")


def quantization_keeps_vocab(config: RunConfig) -> Broken | None:
    wrong = config.quant.quantization_bit is not None and config.model.resize_vocab
    return broken(wrong, "resize_vocab does not work on a quantized model", "resize_vocab", "quantization_bit")


def full_excludes_llama_pro(config: RunConfig) -> Broken | None:
    wrong = config.adapter.use_llama_pro and config.adapter.finetuning_type == "full"
    keys = ("use_llama_pro", "finetuning_type")
    return broken(wrong, "use_llama_pro excludes finetuning_type full", *keys, fix="Use freeze or lora.")


def loraplus_is_lora(config: RunConfig) -> Broken | None:
    return lora_only(config, "loraplus_lr_ratio", config.optim.loraplus_lr_ratio is not None)


def rslora_is_lora(config: RunConfig) -> Broken | None:
    return lora_only(config, "use_rslora", config.adapter.use_rslora)


def dora_is_lora(config: RunConfig) -> Broken | None:
    return lora_only(config, "use_dora", config.adapter.use_dora)


def pissa_is_lora(config: RunConfig) -> Broken | None:
    return lora_only(config, "pissa_init", config.adapter.pissa_init)


def lora_only(config: RunConfig, key: str, used: bool) -> Broken | None:
    """A key that says something about LoRA needs LoRA."""
    wrong = used and config.adapter.finetuning_type != "lora"
    what = f"{key} is for finetuning_type lora, not {config.adapter.finetuning_type}"
    return broken(wrong, what, key, "finetuning_type")


def pissa_excludes_zero3(config: RunConfig) -> Broken | None:
    wrong = config.adapter.pissa_init and zero_stage(config.cluster.deepspeed) == 3
    return broken(wrong, "pissa_init does not work with ZeRO-3", "pissa_init", "deepspeed", fix="Use ZeRO-2.")


def pissa_excludes_quantization(config: RunConfig) -> Broken | None:
    wrong = config.adapter.pissa_init and config.quant.quantization_bit is not None
    return broken(wrong, "pissa_init does not work on quantized weights", "pissa_init", "quantization_bit")


def pissa_excludes_reference(config: RunConfig) -> Broken | None:
    # PiSSA changes the frozen weights, so they no longer are the reference model.
    stage = config.train.stage
    referred = stage == "dpo" and config.preference.pref_loss not in NO_REFERENCE
    wrong = config.adapter.pissa_init and (stage in ("ppo", "kto") or referred)
    what = f"pissa_init does not work in stage {stage}, which needs the unchanged model as its reference"
    return broken(wrong, what, "pissa_init", "stage", "pref_loss")


def smoothing_is_sigmoid(config: RunConfig) -> Broken | None:
    preference = config.preference
    wrong = preference.dpo_label_smoothing > 0 and preference.pref_loss != "sigmoid"
    keys = ("dpo_label_smoothing", "pref_loss")
    return broken(wrong, f"dpo_label_smoothing is for pref_loss sigmoid, not {preference.pref_loss}", *keys)


WEIGHT_RULES = (
    one_half_precision,
    pure_bf16_excludes_zero3,
    fp8_excludes_quantization,
    adapters_need_lora,
    quantization_needs_adapter,
    quantization_keeps_vocab,
    full_excludes_llama_pro,
    loraplus_is_lora,
    rslora_is_lora,
    dora_is_lora,
    pissa_is_lora,
    pissa_excludes_zero3,
    pissa_excludes_quantization,
    pissa_excludes_reference,
    smoothing_is_sigmoid,
)
