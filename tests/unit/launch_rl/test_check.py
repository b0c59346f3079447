"""What `raytune train` and `raytune plan` refuse before a cluster is asked."""

import json
from pathlib import Path

import pytest

import raytune.launch
from raytune.config.load import load_config
from raytune.errors import ConfigError, NotBuiltError, PlacementError, RaytuneError
from raytune.launch import train
from raytune.launch_rl.check import check
from raytune.launch_rl.room import check_shared_gpu, needs_of
from raytune.launch_rl.window import window_of
from raytune.launch_rl.workers import check_workers
from raytune.plan import describe_plan
from raytune.stages.sizes import sizes_of
from tests.helpers.runs import run_keys

GIB = 2**30
REWARDS = """
def odd(answers): return [0.0]
def fine(completions, **columns): return [0.0 for _ in completions]
"""
RL = {
    "stage": "grpo", "reward_funcs": "exact", "rollout_backend": "hf", "num_generations": 2, "max_new_tokens": 8,
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rl")
    run_keys(folder)
    (folder / "rewards.py").write_text(REWARDS)
    return folder


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_args, **_keys):
        raise AssertionError("a cluster was asked")

    monkeypatch.setattr(raytune.launch, "connected", never)


@pytest.mark.parametrize(
    ("keys", "kind", "said"),
    [
        ({"reward_funcs": "nowhere.rewards:f"}, ConfigError, "'nowhere.rewards:f' cannot be imported"),
        ({"reward_funcs": "HOME/rewards.py:odd"}, ConfigError, "takes no completions"),
        ({"reward_funcs": "HOME/rewards.py:even"}, ConfigError, "there is no 'even' in the file"),
        ({"reward_funcs": "exact", "reward_weights": "1,2"}, ConfigError, "2 reward_weights for 1 reward functions"),
        ({"environment": "json:Game"}, ConfigError, "there is no class 'Game' in json"),
        ({"environment": "json:JSONDecoder"}, ConfigError, "no async method reset and none step"),
        (
            {"rollout_backend": "vllm", "vllm_config": '{"max_num_sequences": 4}'},
            ConfigError,
            "vLLM has no engine argument 'max_num_sequences' (vllm_config). Did you mean 'max_num_seqs'?",
        ),
        ({"rollout_backend": "vllm", "vllm_config": {"dtype": "half"}}, ConfigError, "Set rollout_dtype."),
        ({"rollout_backend": "sglang"}, NotBuiltError, "'rollout_backend: sglang'"),
        ({"rollout_tp_size": 2}, ConfigError, "transformers draws answers in one process, and rollout_tp_size is 2"),
        (
            {"rollout_backend": "vllm", "rollout_tp_size": 3},
            ConfigError,
            "3 workers cannot share a model of 2 attention heads, 1 of keys and values and inner size 128: each takes "
            "an equal part (rollout_tp_size). Set rollout_tp_size to one of 1, 2.",
        ),
        (
            {"rollout_backend": "vllm", "vllm_config": {"distributed_executor_backend": "ray"}},
            ConfigError,
            "Leave it out: the workers of a replica",
        ),
    ],
)
@pytest.mark.usefixtures("no_cluster")
def test_refused_before_anything_starts(home, tmp_path, keys, kind, said):
    keys = {key: value.replace("HOME", str(home)) if isinstance(value, str) else value for key, value in keys.items()}
    resolved = load_config(run_keys(home, **{**RL, **keys}, output_dir=str(tmp_path / "out")))
    with pytest.raises(kind) as caught:
        train(resolved)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_json_that_is_none_is_refused_when_the_file_is_read(home):
    with pytest.raises(ConfigError, match="vllm_config"):
        load_config(run_keys(home, **RL, vllm_config='{"seed": '))


def test_the_backend_without_vllm(home, monkeypatch, caplog):
    monkeypatch.setattr("raytune.launch_rl.backend.find_spec", lambda name: None)
    with caplog.at_level("INFO", logger="raytune"):
        check(load_config(run_keys(home, **{**RL, "rollout_backend": "auto"})).config)
    assert "answers are drawn by transformers" in caplog.text
    assert "no effect" not in caplog.text
    with caplog.at_level("WARNING", logger="raytune"):
        check(load_config(run_keys(home, **{**RL, "rollout_backend": "auto", "vllm_config": {"seed": 1}})).config)
    assert "without vLLM no effect: vllm_config" in caplog.text
    with pytest.raises(ConfigError, match="rollout_backend is vllm, which is not installed"):
        check(load_config(run_keys(home, **{**RL, "rollout_backend": "vllm"})).config)


@pytest.mark.parametrize("keys", [{"sglang_maxlen": 512}, {"vllm_max_lora_rank": 8}, {"vllm_config": {"sed": 1}}])
def test_engine_keys_that_nobody_would_read_are_refused(home, keys):
    with pytest.raises(ConfigError, match=f"{next(iter(keys))} changes nothing in stage grpo"):
        load_config(run_keys(home, **{**RL, **keys}))
    load_config(run_keys(home, **{**keys}))


@pytest.mark.parametrize(("cutoff", "maxlen", "window"), [(96, 4096, 104), (96, 64, 64), (1000, 4096, 256)])
def test_the_window_is_the_smallest_of_three(home, cutoff, maxlen, window):
    """cutoff_len + max_new_tokens (8), vllm_maxlen, and the tiny model's 256 positions."""
    cfg = load_config(run_keys(home, **{**RL, "cutoff_len": cutoff, "vllm_maxlen": maxlen})).config
    assert window_of(cfg) == window


@pytest.mark.parametrize(
    ("heads", "kv_heads", "possible"),
    [(9, 3, [1, 3, 9]), (12, 2, [1, 2, 4, 6, 12]), (12, 6, [1, 2, 3, 6, 12]), (8, None, [1, 2, 4, 8])],
)
def test_a_model_is_shared_where_vllms_layers_can_be_cut(tmp_path, heads, kv_heads, possible):
    """By hand: heads in equal parts; heads of keys and values in equal parts, or each had by equally many workers."""
    config = {"num_attention_heads": heads, "intermediate_size": 144, "num_key_value_heads": kv_heads}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": config}))
    for workers in range(1, 13):
        if workers in possible:
            check_workers(workers, str(tmp_path), "vllm")
            continue
        with pytest.raises(ConfigError, match=rf"to one of {', '.join(map(str, possible))}\."):
            check_workers(workers, str(tmp_path), "vllm")


def test_memory_of_a_run_by_hand(home):
    """fp32, full: weights, gradients and two moments of 4 bytes each; a replica in bfloat16 has 2 bytes each."""
    keys = {**RL, "finetuning_type": "full", "rollout_dtype": "bfloat16", "rollout_backend": "vllm"}
    keys["kv_cache_gb"] = 0.25
    cfg = load_config(run_keys(home, **keys)).config
    hidden, inner, head, vocabulary = 64, 128, 32, 259
    layer = 2 * hidden * 2 * head + 2 * hidden * head + 3 * hidden * inner + 2 * hidden
    count = 2 * vocabulary * hidden + 2 * layer + hidden
    needs = needs_of(cfg, sizes_of(cfg))
    assert needs == {"trainer": 16.0 * count, "critic": 16.0 * count, "rollout": 2.0 * count + 0.25 * GIB}


def test_a_gpu_too_small_for_either_in_its_turn_is_refused(home):
    cfg = load_config(run_keys(home, **{**RL, "finetuning_type": "full"})).config
    sizes = sizes_of(cfg)
    check_shared_gpu(cfg, sizes, 16 * sizes.num_parameters)
    with pytest.raises(PlacementError, match="a rank needs"):
        check_shared_gpu(cfg, sizes, 16 * sizes.num_parameters - 1)
    owns = cfg.model_copy(update={"policy": cfg.policy.model_copy(update={"critic": "own"})})
    check_shared_gpu(owns, sizes, 2 * 16 * sizes.num_parameters)
    with pytest.raises(PlacementError, match="a rank with its critic needs"):
        check_shared_gpu(owns, sizes, 2 * 16 * sizes.num_parameters - 1)


def test_a_replica_of_transformers_has_its_gpu_whole(home):
    """LoRA in fp32: a replica needs 4 bytes a parameter, of which vLLM gets its share and transformers all."""
    engine = load_config(run_keys(home, **{**RL, "rollout_backend": "vllm", "vllm_gpu_util": 0.25})).config
    sizes = sizes_of(engine)
    check_shared_gpu(engine, sizes, 16 * sizes.num_parameters)
    with pytest.raises(PlacementError, match=r"a rollout replica needs .* Raise vllm_gpu_util"):
        check_shared_gpu(engine, sizes, 16 * sizes.num_parameters - 4)
    check_shared_gpu(load_config(run_keys(home, **RL)).config, sizes, 8 * sizes.num_parameters)


def test_plan_shows_the_roles_and_refuses_what_a_launch_refuses(home, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    keys = {**RL, "placement": "colocated", "kv_cache_gb": 0.5, "num_rollouts": 2, "rollout_backend": "vllm"}
    said = describe_plan(load_config(run_keys(home, **keys)))
    lines = said.splitlines()
    assert "trainer    0: 2 CPU on this machine, with rollout, reward" in lines
    assert "rollout    1: 2 CPU on this machine" in lines
    assert "placement  colocated: ranks and rollout replicas take turns" in lines
    assert any(line.startswith("rollouts   2 x vllm, 136 tokens of prompt and answer") for line in lines)
    assert any(line.startswith("replica    weights") and line.endswith("keys and values 0.50 GiB") for line in lines)
    shared = {**keys, "placement": "disaggregated", "num_rollouts": 1, "rollout_tp_size": 2}
    lines = describe_plan(load_config(run_keys(home, **shared))).splitlines()
    assert "rollout    0: 2 CPU on this machine" in lines
    assert any(line.startswith("rollouts   1 x vllm of 2 workers, 136 tokens") for line in lines)
    lines = describe_plan(load_config(run_keys(home, **RL))).splitlines()
    assert any(line.startswith("replica    weights") and "keys and values" not in line for line in lines)
    with pytest.raises(RaytuneError, match="cannot be imported"):
        describe_plan(load_config(run_keys(home, **{**RL, "reward_funcs": "nowhere.rewards:f"})))
    with pytest.raises(PlacementError, match=r"the run's models need .* 2 x rollout 9000000.0 GiB"):
        describe_plan(load_config(run_keys(home, **{**keys, "kv_cache_gb": 9e6})))
