"""Weights from a trainer rank into a real vLLM engine: answers follow exactly, and no cache of older ones serves."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.weights import WeightPublisher
from actors.weights_messages import WeightSettings
from raytune.errors import RolloutError
from tests.helpers.tiny import tiny_model_folder
from tests.helpers.weights import TinyRank, plugin_folder, vllm_replica

# Longer than a block of vLLM's prefix cache on a CPU (128 tokens), or no cache would ever be asked.
LONG = [1, *(int(token) for token in np.random.default_rng(3).integers(3, 259, size=180))]
SHORT = LONG[:12]
DEADLINE = 120


@dataclass
class Pair:
    """A trainer rank and a replica."""

    rank: Any
    replica: Any
    publisher: WeightPublisher

    def answer(self, ids: list[int], num_tokens: int = 8) -> tuple[list[int], list[float], int, list[Any]]:
        return ray.get(self.replica.greedy.remote(ids, num_tokens), timeout=DEADLINE)

    def become(self, seed: int, version: int) -> None:
        ray.get(self.rank.set_seed.remote(seed), timeout=DEADLINE)
        self.publisher.publish(version)


@pytest.fixture(scope="module")
def home(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sync")
    tiny_model_folder(folder / "model")
    plugin_folder(folder)
    return folder


@pytest.fixture(scope="module")
def pair(home: Path) -> Iterator[Pair]:
    rank: Any = ray.remote(TinyRank).options(num_cpus=1).remote()
    with vllm_replica(home / "model", home) as replica:
        publisher = WeightPublisher([rank], [replica], WeightSettings(f"test-{home.parent.name}", dtype="float32"))
        yield Pair(rank, replica, publisher)
        publisher.close()


def test_weights_there_and_back_give_the_same_answers_to_the_bit(pair: Pair) -> None:
    pair.become(0, version=1)
    first = pair.answer(SHORT)
    pair.become(5, version=2)
    other = pair.answer(SHORT)
    pair.become(0, version=3)
    again = pair.answer(SHORT)
    assert other[0] != first[0]
    assert (again[0], again[1]) == (first[0], first[1])
    assert ray.get(pair.replica.version.remote(), timeout=DEADLINE) == "3"
    assert [(span.version, span.start, span.end) for span in again[3]] == [("3", 0, 8)]


def test_log_probs_are_the_trainers(pair: Pair) -> None:
    pair.become(7, version=4)
    tokens, logprobs, _, _ = pair.answer(SHORT)
    expected = ray.get(pair.rank.logprobs.remote(SHORT + tokens), timeout=DEADLINE)[len(SHORT) - 1 :]
    np.testing.assert_allclose(logprobs, expected, atol=1e-4)


def test_long_prompts_are_not_served_from_the_cache_of_older_weights(pair: Pair) -> None:
    pair.become(8, version=5)
    pair.answer(LONG)
    assert pair.answer(LONG)[2] == 128
    pair.become(9, version=6)
    tokens, logprobs, num_cached, _ = pair.answer(LONG)
    assert num_cached == 0
    expected = ray.get(pair.rank.logprobs.remote(LONG + tokens), timeout=DEADLINE)[len(LONG) - 1 :]
    np.testing.assert_allclose(logprobs, expected, atol=1e-4)


def test_answers_under_way_go_on_with_the_new_weights(pair: Pair) -> None:
    pair.become(0, version=7)
    running = pair.replica.greedy.remote(SHORT, 230)
    ready, _ = ray.wait([running], timeout=0.3)
    assert not ready
    pair.become(5, version=8)
    tokens, logprobs, _, spans = ray.get(running, timeout=DEADLINE)
    assert [span.version for span in spans] == ["7", "8"]
    cut = spans[1].start
    expected = ray.get(pair.rank.logprobs.remote(SHORT + tokens), timeout=DEADLINE)[len(SHORT) - 1 :]
    np.testing.assert_allclose(logprobs[cut:], expected[cut:], atol=1e-4)


def test_a_replica_stays_paused_after_damage_and_serves_again_when_refitted(pair: Pair) -> None:
    pair.become(0, version=9)
    before = pair.answer(SHORT)
    folder = Path(ray.get(pair.rank.folder.remote(), timeout=DEADLINE))
    newest = next(path for path in folder.glob("slot-*.json") if json.loads(path.read_text())["version"] == 9)
    binary = newest.with_suffix(".bin")
    whole = binary.read_bytes()
    with binary.open("r+b") as file:
        file.seek(1000)
        file.write(bytes([whole[1000] ^ 1]))
    with pytest.raises(RolloutError, match=r"bytes 0 to .* are damaged"):
        pair.publisher.refit(0)
    assert ray.get(pair.replica.is_paused.remote(), timeout=DEADLINE)
    with binary.open("r+b") as file:
        file.write(whole)
    assert pair.publisher.refit(0) == 9
    assert pair.answer(SHORT)[:2] == before[:2]


def test_a_safetensors_file_brings_a_replica_back(pair: Pair, tmp_path: Path) -> None:
    pair.become(5, version=10)
    before = pair.answer(SHORT)
    ray.get(pair.rank.save_weights.remote(tmp_path / "recovery.safetensors"), timeout=DEADLINE)
    pair.become(0, version=11)
    update = {"kind": "safetensors", "path": str(tmp_path / "recovery.safetensors"), "version": 10}
    ray.get(pair.replica.receive.remote(update, 10), timeout=DEADLINE)
    assert pair.answer(SHORT)[:2] == before[:2]


def test_another_models_weights_are_refused_before_anything_changes(pair: Pair) -> None:
    pair.become(0, version=12)
    before = pair.answer(SHORT)
    entries = [["model.embed_tokens.weight", "float32", [300, 64]]]
    with pytest.raises(ray.exceptions.RayTaskError, match="is missing"):
        ray.get(pair.replica.init_transfer.remote({"entries": entries}), timeout=DEADLINE)
    assert pair.answer(SHORT)[:2] == before[:2]
    pair.become(0, version=13)
    assert pair.answer(SHORT)[:2] == before[:2]


def test_a_tied_head_follows_the_embeddings(home: Path) -> None:
    tiny_model_folder(home / "tied", tied=True)
    rank: Any = ray.remote(TinyRank).options(num_cpus=1).remote(tied=True)
    settings = WeightSettings(f"test-tied-{home.parent.name}", dtype="float32")
    with vllm_replica(home / "tied", home) as replica:
        publisher = WeightPublisher([rank], [replica], settings)
        pair = Pair(rank, replica, publisher)
        for version, seed in enumerate((5, 6), start=1):
            pair.become(seed, version)
            tokens, logprobs, _, _ = pair.answer(SHORT)
            expected = ray.get(rank.logprobs.remote(SHORT + tokens), timeout=DEADLINE)[len(SHORT) - 1 :]
            np.testing.assert_allclose(logprobs, expected, atol=1e-4)
        publisher.close()


def test_each_version_of_an_adapter_answers_as_the_trainer_does(home: Path) -> None:
    rank: Any = ray.remote(TinyRank).options(num_cpus=1).remote(lora=True)
    settings = WeightSettings(f"test-lora-{home.parent.name}", dtype="float32", max_lora_rank=8)
    with vllm_replica(home / "model", home, lora_rank=8) as replica:
        publisher = WeightPublisher([rank], [replica], settings)
        pair = Pair(rank, replica, publisher)
        seen = []
        for version, seed in enumerate((1, 2, 3, 1), start=1):
            pair.become(seed, version)
            tokens, logprobs, num_cached, _ = pair.answer(LONG)
            expected = ray.get(rank.logprobs.remote(LONG + tokens), timeout=DEADLINE)[len(LONG) - 1 :]
            np.testing.assert_allclose(logprobs, expected, atol=2e-4)
            assert num_cached == 0
            seen.append((tokens, logprobs))
        assert seen[0] == seen[3]
        assert seen[0][0] != seen[1][0]
        folder = Path(ray.get(rank.folder.remote(), timeout=DEADLINE))
        assert len(list(folder.glob("adapter-*"))) == settings.kept_adapters
        publisher.close()
    assert not folder.exists()


def test_whole_weights_reach_an_engine_that_is_built_for_adapters(home: Path) -> None:
    rank: Any = ray.remote(TinyRank).options(num_cpus=1).remote()
    settings = WeightSettings(f"test-whole-{home.parent.name}", kind="merged", dtype="float32")
    with vllm_replica(home / "model", home, lora_rank=8) as replica:
        publisher = WeightPublisher([rank], [replica], settings)
        pair = Pair(rank, replica, publisher)
        pair.become(5, version=1)
        tokens, logprobs, _, _ = pair.answer(SHORT)
        expected = ray.get(rank.logprobs.remote(SHORT + tokens), timeout=DEADLINE)[len(SHORT) - 1 :]
        np.testing.assert_allclose(logprobs, expected, atol=2e-4)
        publisher.close()
