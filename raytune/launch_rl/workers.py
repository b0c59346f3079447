"""Whether a model can be cut into as many parts as a replica has workers: vLLM itself says so only when it loads it."""

from typing import Literal

from raytune.errors import ConfigError
from raytune.launch_rl.window import number_in_config

# What model configurations call them.
_HEADS = ("num_attention_heads", "n_head")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "num_attention_groups")
_INNER = ("intermediate_size", "n_inner")


def check_workers(workers: int, folder: str, backend: Literal["vllm", "hf"]) -> None:
    """Raise ConfigError where the backend, or the shape of the model in `folder`, does not allow so many."""
    if workers == 1:
        return
    if backend == "hf":
        raise ConfigError(
            f"transformers draws answers in one process, and rollout_tp_size is {workers}",
            fix="Set rollout_tp_size: 1, or rollout_backend: vllm where vLLM is installed.",
        )
    heads = number_in_config(folder, _HEADS)
    if heads is None:
        return
    kv_heads, inner = number_in_config(folder, _KV_HEADS) or heads, number_in_config(folder, _INNER)
    if _divides(workers, heads, kv_heads, inner):
        return
    possible = [str(count) for count in range(1, heads + 1) if _divides(count, heads, kv_heads, inner)]
    raise ConfigError(
        f"{workers} workers cannot share a model of {heads} attention heads, {kv_heads} of keys and values"
        f"{f' and inner size {inner}' if inner else ''}: each takes an equal part",
        where="rollout_tp_size",
        fix=f"Set rollout_tp_size to one of {', '.join(possible)}.",
    )


def _divides(workers: int, heads: int, kv_heads: int, inner: int | None) -> bool:
    """As vLLM's layers cut: where there are fewer heads of keys and values than workers, each is had several times."""
    shared = kv_heads % workers == 0 if kv_heads >= workers else workers % kv_heads == 0
    return heads % workers == 0 and shared and (inner or 0) % workers == 0
