"""Keys of reinforcement learning that would change nothing in the run that they are given for."""

from raytune.config.base import Group
from raytune.config.checks.broken import Broken, broken
from raytune.config.checks.reinforcement import WHOLE_ANSWERS, learns_from_answers
from raytune.config.run import RunConfig


def replicas_read_their_keys(config: RunConfig) -> Broken | None:
    """Keys of engines that cannot be had, or that an engine of a run settles itself."""
    fix = "Leave it out: replicas are vLLM's or transformers', and take adapters of lora_rank."
    return _idle(config, config.rollout, _SETTLED_BY_ENGINES, because="", fix=fix)


def critics_are_trained(config: RunConfig) -> Broken | None:
    kind = config.policy.advantage
    because = f": advantage {kind} has no critic"
    fix = "Leave it out, or use stage: ppo with advantage: gae."
    rate = _idle(config, config.policy, ("critic_learning_rate",), used=kind == "gae", because=because, fix=fix)
    return rate or _idle(
        config, config.rl, ("vf_coef", "value_clip", "lam"), used=kind == "gae", because=because, fix=fix
    )


def critics_of_their_own_have_a_rate(config: RunConfig) -> Broken | None:
    because = ": the critic is a head on the policy's trunk"
    used = config.policy.critic == "own" or config.policy.advantage != "gae"
    return _idle(
        config, config.policy, ("critic_learning_rate",), used=used, because=because, fix="Set critic: own as well."
    )


def shared_critics_are_weighed(config: RunConfig) -> Broken | None:
    used = config.policy.critic != "own"
    because = ": a critic of its own has a loss of its own"
    return _idle(
        config, config.rl, ("vf_coef",), used=used, because=because, fix="Leave it out, or set critic: shared."
    )


def whole_answers_have_no_discount(config: RunConfig) -> Broken | None:
    kind = config.policy.advantage
    because = f": advantage {kind} gives all tokens of an answer the same"
    fix = "Leave it out, or use advantage reinforce++ or gae."
    return _idle(config, config.rl, ("gamma",), used=kind not in WHOLE_ANSWERS, because=because, fix=fix)


def divergence_has_a_target(config: RunConfig) -> Broken | None:
    used = config.policy.kl_in_reward and config.rl.kl_coef > 0
    because = ": there is no divergence in the reward"
    return _idle(config, config.rl, ("ppo_target",), used=used, because=because, fix="Leave it out, or set kl_coef.")


def corrections_are_made(config: RunConfig) -> Broken | None:
    action = config.policy.rollout_correction
    names = ("correction_level", "correction_low", "correction_high")
    because = f" with rollout_correction {'of rl_compat' if action is None else action}"
    fix = "Set rollout_correction: truncate, mask or reject as well."
    return _idle(config, config.policy, names, used=action not in (None, "off"), because=because, fix=fix)


def ppo_keys_are_ppos(config: RunConfig) -> Broken | None:
    names = ("ppo_score_norm", "ppo_whiten_rewards", "ppo_target")
    used = config.train.stage == "ppo"
    return _idle(config, config.rl, names, used=used, because="", fix="Leave it out, or use stage: ppo.")


def rounds_are_of_dynamic_sampling(config: RunConfig) -> Broken | None:
    used = config.rl.dynamic_sampling
    fix = "Set dynamic_sampling: true as well."
    because = " without dynamic_sampling"
    return _idle(config, config.rl, ("max_sampling_rounds",), used=used, because=because, fix=fix)


def _idle(
    config: RunConfig, group: Group, names: tuple[str, ...], *, because: str, fix: str, used: bool = False
) -> Broken | None:
    """Broken where a key of the group has another value than its default, and nothing reads it."""
    given = [name for name in names if dict(group)[name] != type(group).model_fields[name].default]
    wrong = learns_from_answers(config) and not used and bool(given)
    what = f"{' and '.join(given)} changes nothing in stage {config.train.stage}{because}"
    return broken(wrong, what, *given, fix=fix)


_SETTLED_BY_ENGINES = (
    "vllm_max_lora_rank",
    "sglang_maxlen",
    "sglang_mem_fraction",
    "sglang_tp_size",
    "sglang_config",
    "sglang_lora_backend",
)

IDLE_RULES = (
    replicas_read_their_keys,
    critics_are_trained,
    critics_of_their_own_have_a_rate,
    shared_critics_are_weighed,
    whole_answers_have_no_discount,
    divergence_has_a_target,
    corrections_are_made,
    ppo_keys_are_ppos,
    rounds_are_of_dynamic_sampling,
)
