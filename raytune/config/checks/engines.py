"""What does not go with an optimizer, an engine or a number of ranks."""

from raytune.config.checks.broken import Broken, broken
from raytune.config.checks.zero import zero_stage
from raytune.config.run import RunConfig


def special_optimizers(config: RunConfig) -> list[str]:
    """Those of GaLore, APOLLO and BAdam that are asked for, by their keys."""
    wanted = {
        "use_galore": config.lowrank.use_galore,
        "use_apollo": config.lowrank.use_apollo,
        "use_badam": config.badam.use_badam,
    }
    return [key for key, used in wanted.items() if used]


def one_special_optimizer(config: RunConfig) -> Broken | None:
    wanted = special_optimizers(config)
    return broken(len(wanted) > 1, f"{' and '.join(wanted)} exclude each other", *wanted, fix="Keep one of them.")


def special_optimizers_train_weights(config: RunConfig) -> Broken | None:
    wanted = special_optimizers(config)
    wrong = bool(wanted) and config.adapter.finetuning_type == "lora"
    what = f"{' and '.join(wanted)} cannot train finetuning_type lora"
    return broken(wrong, what, *wanted, "finetuning_type", fix="Use full or freeze.")


def layerwise(config: RunConfig) -> list[str]:
    """The layer-wise optimizers that are asked for, by their keys."""
    lowrank = config.lowrank
    wanted = {
        "galore_layerwise": lowrank.use_galore and lowrank.galore_layerwise,
        "apollo_layerwise": lowrank.use_apollo and lowrank.apollo_layerwise,
    }
    return [key for key, used in wanted.items() if used]


def layerwise_is_one_rank(config: RunConfig) -> Broken | None:
    wanted = layerwise(config)
    wrong = bool(wanted) and config.cluster.num_workers > 1
    return broken(wrong, f"{' and '.join(wanted)} works on one rank only", *wanted, "num_workers")


def layerwise_excludes_accumulation(config: RunConfig) -> Broken | None:
    wanted = layerwise(config)
    wrong = bool(wanted) and config.train.gradient_accumulation_steps > 1
    keys = (*wanted, "gradient_accumulation_steps")
    return broken(wrong, f"{' and '.join(wanted)} excludes gradient accumulation", *keys)


def lowrank_excludes_deepspeed(config: RunConfig) -> Broken | None:
    wanted = [key for key in special_optimizers(config) if key != "use_badam"]
    uses = config.cluster.deepspeed is not None or config.cluster.engine == "deepspeed"
    what = f"{' and '.join(wanted)} does not work with DeepSpeed"
    return broken(bool(wanted) and uses, what, *wanted, "deepspeed", "engine")


def badam_ratio_is_one_rank(config: RunConfig) -> Broken | None:
    badam = config.badam
    wrong = badam.use_badam and badam.badam_mode == "ratio" and config.cluster.num_workers > 1
    return broken(wrong, "badam_mode ratio works on one rank only", "use_badam", "badam_mode", "num_workers")


def badam_layer_needs_zero3(config: RunConfig) -> Broken | None:
    badam, cluster = config.badam, config.cluster
    ranks = cluster.num_workers > 1 and zero_stage(cluster.deepspeed) != 3
    wrong = badam.use_badam and badam.badam_mode == "layer" and ranks
    keys = ("use_badam", "badam_mode", "num_workers", "deepspeed")
    return broken(wrong, "badam_mode layer on several ranks needs ZeRO-3", *keys)


def unsloth_excludes_zero3(config: RunConfig) -> Broken | None:
    wrong = config.kernels.use_unsloth and zero_stage(config.cluster.deepspeed) == 3
    return broken(wrong, "use_unsloth does not work with ZeRO-3", "use_unsloth", "deepspeed")


def kt_excludes_zero3(config: RunConfig) -> Broken | None:
    wrong = config.kt.use_kt and zero_stage(config.cluster.deepspeed) == 3
    return broken(wrong, "use_kt does not work with ZeRO-3", "use_kt", "deepspeed")


def single_is_one_rank(config: RunConfig) -> Broken | None:
    cluster = config.cluster
    wrong = cluster.engine == "single" and cluster.num_workers > 1
    what = f"engine single is one rank, not {cluster.num_workers}"
    return broken(wrong, what, "engine", "num_workers", fix="Use ddp, fsdp2 or auto.")


def shards_over_all_ranks(config: RunConfig) -> Broken | None:
    size, ranks = config.fsdp.fsdp_size, config.cluster.num_workers
    what = f"fsdp_size ({size}) differs from num_workers ({ranks}); one copy of the weights spans all ranks"
    wrong = size is not None and size != ranks
    return broken(wrong, what, "fsdp_size", "num_workers", fix="Leave fsdp_size out.")


ENGINE_RULES = (
    one_special_optimizer,
    special_optimizers_train_weights,
    layerwise_is_one_rank,
    layerwise_excludes_accumulation,
    lowrank_excludes_deepspeed,
    badam_ratio_is_one_rank,
    badam_layer_needs_zero3,
    unsloth_excludes_zero3,
    kt_excludes_zero3,
    single_is_one_rank,
    shards_over_all_ranks,
)
