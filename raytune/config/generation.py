"""Rollout actors: how many, where, and how far ahead of the trainer."""

from typing import Annotated, Literal

from pydantic import Field

from raytune.config.base import Group, Names, NotBuilt


class GenerationConfig(Group):
    rollout_backend: Annotated[Literal["auto", "vllm", "hf", "sglang"], NotBuilt(("sglang",))] = "auto"
    """Library that draws answers in training; auto is vLLM where it is installed, else transformers (hf)."""
    num_rollouts: int = Field(1, ge=1)
    """Replicas that draw answers."""
    rollout_tp_size: int = Field(1, ge=1)
    """Workers that share the model of one replica (vLLM's tensor parallel): GPUs of one node, or processes on a CPU."""
    rollout_cpus: float = Field(1, gt=0)
    """CPUs of each worker of a replica, which are also its threads; a colocated one computes with those of its rank."""
    rollout_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type the replicas compute in; auto is the trainer's."""
    rollout_timeout: float = Field(600, gt=0)
    """Seconds a group of answers may take, all turns of its conversations included."""
    rollout_start_timeout: float = Field(600, gt=0)
    """Seconds a replica may take to start."""
    kv_cache_gb: float = Field(1, gt=0)
    """Memory of a vLLM replica for keys and values on a CPU, in GiB."""
    max_num_seqs: int = Field(64, ge=1)
    """Answers that a replica draws at once."""
    placement: Literal["auto", "colocated", "disaggregated"] = "auto"
    """Whether ranks and replicas take turns on the same devices or have their own; auto: where there is room, own."""
    weight_sync: Literal["auto", "merged", "adapter"] = "auto"
    """What replicas are sent after an update; auto is the adapter alone where vLLM runs on GPUs, else whole weights."""
    max_staleness: int = Field(0, ge=0)
    """How many versions the weights that drew an answer may be behind those that learn from it."""
    stop_strings: Names = ()
    """Texts that end an answer, or a turn of it, besides the template's stop words; they belong to it."""
    num_reward_workers: int = Field(1, ge=1)
    """Actors that score answers."""
    reward_cpus: float = Field(1, gt=0)
    """CPUs of each of them; colocated ones share those of their rank."""
