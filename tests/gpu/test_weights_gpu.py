"""Weights from GPU to GPU by vLLM's engines; each test is skipped where it has not the GPUs that it needs."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.rollout_replica import ReplicaSettings, start_replica
from actors.rollout_vllm import VllmReplica, vllm_env
from actors.weights_gpu import Backend, DirectSender, replica_env
from raytune.models.published import Published
from raytune.stages.samples import Prompt, Sampling
from tests.helpers.tiny import tiny_model, tiny_model_folder

DEADLINE = 300.0
GPUS = torch.cuda.device_count()


class Rank:
    """A trainer rank on a GPU."""

    def open(self, backend: Backend, replicas: list[Any]) -> None:
        self._model = tiny_model(seed=5).cuda()
        published = Published(self._model, dtype=torch.float32)
        self._sender = DirectSender(published, rank=0, device=torch.device("cuda", 0), deadline=DEADLINE)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._sender.open(backend, replicas, workers=1, address="127.0.0.1", port=port)

    def send(self, version: int) -> None:
        self._sender.send(version)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("ipc", marks=pytest.mark.skipif(GPUS < 1, reason="needs a GPU")),
        pytest.param("nccl", marks=pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")),
    ],
)
def test_answers_are_those_of_the_weights_that_were_sent(backend: Backend, tmp_path: Path) -> None:
    share = 0.4 if backend == "ipc" else 1.0
    model = str(tiny_model_folder(tmp_path / "model"))
    ray.init(num_cpus=4, include_dashboard=False)
    try:
        settings = ReplicaSettings(model, dtype="float32", max_length=128, eager=True, gpu_memory=0.3, transfer=backend)
        env = {**vllm_env(settings, gpu=True), **replica_env(backend)}
        replica = start_replica(VllmReplica, settings, gpus=share, env=env)
        ray.get(replica.build.remote(), timeout=DEADLINE)
        rank: Any = ray.remote(Rank).options(num_gpus=share).remote()
        ray.get(rank.open.remote(backend, [replica]), timeout=DEADLINE)
        ray.get(rank.send.remote(1), timeout=DEADLINE)
        ids = np.arange(3, 20, dtype=np.int32)
        group = ray.get(replica.generate.remote(Prompt(0, 0, ids), Sampling(max_new_tokens=8), 1), timeout=DEADLINE)
        answer = group.completions[0]
        whole = torch.tensor([[*ids.tolist(), *answer.ids.tolist()]])
        with torch.no_grad():
            logits = tiny_model(seed=5)(input_ids=whole).logits[0, len(ids) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(answer.ids)[:, None].long())[:, 0]
        np.testing.assert_allclose(answer.logprobs, expected.numpy(), atol=1e-3)
        assert answer.oldest == 1
    finally:
        ray.shutdown()
