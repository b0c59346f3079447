"""What a run that learns from answers is refused for before a cluster is asked: `raytune train` and `raytune plan`.

Processes of the run check the same again, where they run; here it costs no start of a model.
"""

from actors.rollout_vllm import check_arguments
from actors.vllm_arguments import known_arguments
from raytune.config.checks.idle import VLLM_KEYS, given_of
from raytune.config.run import RunConfig
from raytune.errors import ConfigError
from raytune.launch_rl.backend import backend_of
from raytune.launch_rl.window import model_folder, window_of
from raytune.launch_rl.workers import check_workers
from raytune.log import get_logger
from raytune.rewards.base import RewardUnavailable
from raytune.rewards.load import load_rewards
from raytune.stages.environment import check_environment

log = get_logger(__name__)


def check(cfg: RunConfig) -> None:
    """Raise ConfigError for rewards, an environment, a backend or engine arguments that cannot work."""
    backend = backend_of(cfg.generation)
    if backend == "vllm":
        _check_engine_arguments(cfg)
    elif cfg.generation.rollout_backend == "auto":
        log.info("vLLM is not installed: answers are drawn by transformers, which is slower (rollout_backend: hf)")
        idle = given_of(cfg, VLLM_KEYS)
        if idle:
            log.warning("without vLLM no effect: %s", ", ".join(idle))
    check_workers(cfg.generation.rollout_tp_size, model_folder(cfg), backend)
    window = window_of(cfg)
    wanted = cfg.data.cutoff_len + cfg.sampling.max_new_tokens
    if window < wanted:
        log.info("prompt and answer have at most %s tokens, not cutoff_len + max_new_tokens (%s)", window, wanted)
    _check_rewards(cfg)
    if cfg.rl.environment is not None:
        check_environment(cfg.rl.environment)


def _check_rewards(cfg: RunConfig) -> None:
    reward = cfg.reward
    if reward.reward_model is not None and reward.reward_model_type != "api":
        # The last weight is the model's, which is no function.
        reward = reward.model_copy(update={"reward_weights": ()})
    try:
        load_rewards(reward, max_length=cfg.sampling.max_new_tokens)
    except RewardUnavailable as error:
        # It may be there where the reward workers run.
        log.debug("not on this machine: %s", error)


def _check_engine_arguments(cfg: RunConfig) -> None:
    given = cfg.rollout.vllm_config or {}
    known = known_arguments() if given else None
    if known is not None:
        check_arguments(given, known)
    for name in given:
        if name in _OURS:
            raise ConfigError(f"'{name}' is not for vllm_config to say", where="vllm_config", fix=_OURS[name])


_OURS = {
    "model": "Set model_name_or_path.",
    "dtype": "Set rollout_dtype.",
    "max_model_len": "Set vllm_maxlen.",
    "tensor_parallel_size": "Set rollout_tp_size.",
    "distributed_executor_backend": "Leave it out: the workers of a replica are processes of its own.",
    "pipeline_parallel_size": "Leave it out: a replica is one node's.",
    "logprobs_mode": "Leave it out: the trainer compares its log-probs with those of what was really drawn from.",
    "weight_transfer_config": "Leave it out: the trainer's weights come that way.",
}
"""Engine arguments that the rest of a run relies on, and what to do instead."""
