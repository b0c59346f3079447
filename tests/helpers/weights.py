"""Both ends of weight sync in small: a trainer rank over a tiny model, and a replica over a real vLLM engine."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

from actors.weights_messages import Sent, WeightSettings
from actors.weights_sender import WeightSender
from tests.helpers.tiny import tiny_model

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = "[vllm.general_plugins]\nraytune_flat = actors.vllm_plugin:register\n"


def plugin_folder(folder: Path) -> Path:
    """What pip writes for the entry point, for a tree that is not installed."""
    info = folder / "raytune_plugin-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: raytune-plugin\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (info / "RECORD").write_text("")
    return folder


def vllm_env(plugins: Path, *, threads: int = 1) -> dict[str, str]:
    """Environment of an actor with a vLLM engine in one more process."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(plugins)]),
    }


class TinyRank:
    """A trainer rank without training: its weights depend on the seed alone."""

    def __init__(self, seed: int = 0, *, lora: bool = False, tied: bool = False) -> None:
        torch.set_num_threads(1)
        self._lora, self._tied = lora, tied
        self.model: Any = tiny_model(seed=seed, tied=tied)
        if lora:
            self.model = with_lora(self.model)

    def set_seed(self, seed: int) -> None:
        """Become another model of the same shape; with an adapter, another adapter."""
        if self._lora:
            randomize_lora(self.model, seed)
        else:
            self.model.load_state_dict(tiny_model(seed=seed, tied=self._tied).state_dict())

    def open_weights(self, settings: WeightSettings) -> tuple[str, list[list[Any]]]:
        self._settings = settings
        self._sender = WeightSender(self.model, settings, rank=0)
        return self._sender.opening

    def publish_weights(self, version: int, receivers: Mapping[str, Any]) -> Sent | None:
        return self._sender.publish(version, receivers)

    def resend_weights(self, receivers: Mapping[str, Any]) -> Sent:
        return self._sender.resend(receivers)

    def save_weights(self, path: Path) -> None:
        self._sender.save(path)

    def folder(self) -> str:
        return str(self._settings.on_node(ray.get_runtime_context().get_node_id()))

    def logprobs(self, ids: list[int]) -> list[float]:
        """Of each token after the first, under the model as it is now."""
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0]
        picked = torch.log_softmax(logits[:-1].float(), -1).gather(1, torch.tensor(ids[1:])[:, None])
        return [float(value) for value in picked[:, 0]]


class VllmReplica:
    """A replica that serves nothing but what a test asks it."""

    def __init__(self, model: str, *, lora_rank: int = 0, dtype: str = "float32", max_length: int = 256) -> None:
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors.weights_vllm import EngineWeights

        lora: dict[str, Any] = {"enable_lora": True, "max_lora_rank": lora_rank, "max_loras": 2} if lora_rank else {}
        arguments = AsyncEngineArgs(
            model=model,
            dtype=dtype,  # type: ignore[arg-type]
            max_model_len=max_length,
            max_num_seqs=8,
            enforce_eager=True,
            disable_log_stats=True,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            weight_transfer_config=WeightTransferConfig(backend="raytune_flat"),
            **lora,
        )
        self.engine = AsyncLLM.from_engine_args(arguments)
        self.weights = EngineWeights(self.engine, deadline=60.0)
        self._requests = 0

    async def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    async def init_transfer(self, info: dict[str, Any]) -> None:
        await self.weights.init_transfer(info)

    async def receive(self, update: dict[str, Any], version: int) -> dict[str, float]:
        return await self.weights.receive(update, version)

    async def add_adapter(self, path: str, version: int) -> dict[str, float]:
        return await self.weights.add_adapter(path, version)

    async def version(self) -> str:
        return await self.engine.get_weight_version()

    async def is_paused(self) -> bool:
        return await self.engine.is_paused()

    async def greedy(self, ids: list[int], num_tokens: int) -> tuple[list[int], list[float], int, list[Any]]:
        """Token ids, their log-probs, how many prompt tokens came from the cache, and the versions of the weights."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        self._requests += 1
        sampling = SamplingParams(
            max_tokens=num_tokens,
            temperature=0.0,
            logprobs=0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt: Any = {"prompt_token_ids": ids}
        answers = self.engine.generate(prompt, sampling, str(self._requests), lora_request=self.weights.adapter)
        (output,) = [answer async for answer in answers]
        found: Any = output.outputs[0]
        logprobs = [step[token].logprob for token, step in zip(found.token_ids, found.logprobs, strict=True)]
        return list(found.token_ids), logprobs, output.num_cached_tokens or 0, list(found.weight_versions or [])

    async def stop(self) -> None:
        self.engine.shutdown()


@contextmanager
def vllm_replica(model: Path, plugins: Path, **keys: Any) -> Iterator[Any]:
    """A VllmReplica actor, up and ended properly."""
    actor = ray.remote(VllmReplica).options(num_cpus=1, runtime_env={"env_vars": vllm_env(plugins)})
    replica: Any = actor.remote(str(model), **keys)
    try:
        ray.get(replica.is_paused.remote(), timeout=240)
        yield replica
    finally:
        ray.wait([replica.stop.remote()], timeout=20)
        ray.kill(replica)


def with_lora(model: Any, *, rank: int = 4, seed: int | None = None) -> Any:
    """The model under a LoRA adapter on all linear layers; B is zero unless there is a seed."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    wrapped: Any = get_peft_model(model, config).eval()
    if seed is not None:
        randomize_lora(wrapped, seed)
    return wrapped


def randomize_lora(model: Any, seed: int) -> None:
    """Give an adapter values that change the answers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_" in name:
                param.copy_(torch.randn(param.shape, generator=generator) * 0.3)
