"""Keys that would change nothing in the run of reinforcement learning that they are given for.

Those of LLaMA-Factory's files are warned of, since files carry them from stage to stage; the others are refused.
"""

from collections.abc import Iterator, Mapping

from raytune.config.checks.broken import Broken, broken
from raytune.config.checks.reinforcement import WHOLE_ANSWERS, learns_from_answers
from raytune.config.keys import KEYS, default_of
from raytune.config.preference import PreferenceConfig
from raytune.config.run import RunConfig


def replicas_read_their_keys(config: RunConfig) -> Broken | None:
    """Keys of engines that cannot be had, or that an engine of a run settles itself."""
    fix = "Leave it out: replicas are vLLM's or transformers', and take adapters of lora_rank."
    return _idle(config, _SETTLED_BY_ENGINES, because="", fix=fix)


def engines_read_their_keys(config: RunConfig) -> Broken | None:
    used = config.generation.rollout_backend != "hf"
    because = ": transformers draws the answers (rollout_backend: hf)"
    return _idle(config, VLLM_KEYS, used=used, because=because, fix="Leave it out, or set rollout_backend: vllm.")


def colocated_rewards_have_their_ranks_cpus(config: RunConfig) -> Broken | None:
    used = config.generation.placement != "colocated"
    because = ": colocated reward workers share the CPUs of their rank"
    fix = "Leave it out, or set placement: disaggregated."
    return _idle(config, ("reward_cpus",), used=used, because=because, fix=fix)


def reward_functions_are_asked(config: RunConfig) -> Broken | None:
    asked = set(config.reward.reward_funcs)
    idle = {name: readers for name, readers in _READ_BY_FUNCTIONS.items() if not asked & set(readers)}
    given = given_of(config, tuple(idle))
    lacking = " and ".join(dict.fromkeys(" or ".join(idle[name]) for name in given))
    because = f" without {lacking} in reward_funcs"
    return _idle(config, tuple(idle), because=because, fix=f"Leave it out, or add {lacking} to reward_funcs.")


def reward_types_are_of_a_model(config: RunConfig) -> Broken | None:
    used = config.reward.reward_model is not None
    fix = "Leave it out, or set reward_model."
    return _idle(config, ("reward_model_type",), used=used, because=" without reward_model", fix=fix)


def preferences_are_dpos(config: RunConfig) -> Broken | None:
    names = tuple(name for name in PreferenceConfig.model_fields if not name.startswith("ref_model"))
    because = ": it is for pairs of answers (dpo) or their tags (kto)"
    return _idle(config, names, because=because, fix="Leave it out; the leash to the reference model is kl_coef.")


def divergences_are_weighed(config: RunConfig) -> Broken | None:
    used = config.rl.kl_coef > 0
    fix = "Leave it out, or set kl_coef above 0."
    return _idle(config, ("kl_estimator", "kl_in_reward"), used=used, because=": kl_coef is 0", fix=fix)


def dual_clips_are_ppos(config: RunConfig) -> Broken | None:
    used = config.policy.clip_type == "ppo"
    because = ": clip_type cispo has no second bound"
    return _idle(config, ("dual_clip",), used=used, because=because, fix="Leave it out, or set clip_type: ppo.")


def critics_are_trained(config: RunConfig) -> Broken | None:
    kind = config.policy.advantage
    names = ("critic_learning_rate", "vf_coef", "value_clip", "lam")
    because = f": advantage {kind} has no critic"
    fix = "Leave it out, or use stage: ppo with advantage: gae."
    return _idle(config, names, used=kind == "gae", because=because, fix=fix)


def critics_of_their_own_have_a_rate(config: RunConfig) -> Broken | None:
    because = ": the critic is a head on the policy's trunk"
    used = config.policy.critic == "own" or config.policy.advantage != "gae"
    return _idle(config, ("critic_learning_rate",), used=used, because=because, fix="Set critic: own as well.")


def shared_critics_are_weighed(config: RunConfig) -> Broken | None:
    used = config.policy.critic != "own"
    because = ": a critic of its own has a loss of its own"
    return _idle(config, ("vf_coef",), used=used, because=because, fix="Leave it out, or set critic: shared.")


def whole_answers_have_no_discount(config: RunConfig) -> Broken | None:
    kind = config.policy.advantage
    because = f": advantage {kind} gives all tokens of an answer the same"
    fix = "Leave it out, or use advantage reinforce++ or gae."
    return _idle(config, ("gamma",), used=kind not in WHOLE_ANSWERS, because=because, fix=fix)


def divergence_has_a_target(config: RunConfig) -> Broken | None:
    used = config.policy.kl_in_reward and config.rl.kl_coef > 0
    because = ": there is no divergence in the reward"
    return _idle(config, ("ppo_target",), used=used, because=because, fix="Leave it out, or set kl_coef.")


def corrections_are_made(config: RunConfig) -> Broken | None:
    action = config.policy.rollout_correction
    names = ("correction_level", "correction_low", "correction_high")
    because = f" with rollout_correction {'of rl_compat' if action is None else action}"
    fix = "Set rollout_correction: truncate, mask or reject as well."
    return _idle(config, names, used=action not in (None, "off"), because=because, fix=fix)


def ppo_keys_are_ppos(config: RunConfig) -> Broken | None:
    names = ("ppo_score_norm", "ppo_whiten_rewards", "ppo_target")
    used = config.train.stage == "ppo"
    return _idle(config, names, used=used, because="", fix="Leave it out, or use stage: ppo.")


def rounds_are_of_dynamic_sampling(config: RunConfig) -> Broken | None:
    used = config.rl.dynamic_sampling
    fix = "Set dynamic_sampling: true as well."
    because = " without dynamic_sampling"
    return _idle(config, ("max_sampling_rounds",), used=used, because=because, fix=fix)


def harmless_keys(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield the keys of LLaMA-Factory's files that the run is right to leave out, each with the reason."""
    quiet = {"packing": not config.packs, "neftune_noise_alpha": not config.train.neftune_noise_alpha}
    for key in given_of(config, tuple(_HARMLESS)) if learns_from_answers(config) else ():
        if not quiet.get(key):
            yield key, _HARMLESS[key]


def given_of(config: RunConfig, names: tuple[str, ...]) -> list[str]:
    """Those of the keys that have another value than the stage's default."""
    groups, stage = dict(config), config.train.stage
    return [name for name in names if dict(groups[KEYS[name].group])[name] != default_of(name, stage)]


def _idle(config: RunConfig, names: tuple[str, ...], *, because: str, fix: str, used: bool = False) -> Broken | None:
    """Broken where one of the keys has another value than its default, and nothing reads it."""
    given = given_of(config, names)
    wrong = learns_from_answers(config) and not used and bool(given)
    verb = "change" if len(given) > 1 else "changes"
    what = f"{' and '.join(given)} {verb} nothing in stage {config.train.stage}{because}"
    return broken(wrong, what, *given, fix=fix)


VLLM_KEYS = ("vllm_gpu_util", "vllm_enforce_eager", "vllm_config", "kv_cache_gb")
"""What vLLM alone reads of a rollout replica; vllm_maxlen bounds those of transformers too."""

_READ_BY_FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "reward_answer_column": ("math", "exact", "number"),
    "reward_regex": ("regex",),
    "overlong_buffer_len": ("overlong",),
    "overlong_penalty_factor": ("overlong",),
    "code_tests_column": ("code",),
    "code_time_limit": ("code",),
    "code_memory_limit": ("code",),
    "judge_url": ("judge",),
    "judge_model": ("judge",),
    "judge_api_key": ("judge",),
    "judge_prompt": ("judge",),
    "judge_score_regex": ("judge",),
}
"""Key -> built-in reward functions that read it."""

_HARMLESS: Mapping[str, str] = {
    "lora_dropout": "nothing is dropped out, for the ratio of a policy to itself has to be 1",
    "neftune_noise_alpha": "no noise is added, for the ratio of a policy to itself has to be 1",
    "packing": "every prompt is answered by itself",
    "group_by_length": "answers have no length before they are drawn; batches are cut by it afterwards",
    "buffer_size": "prompts are not streamed",
    "per_device_eval_batch_size": "held-out prompts are answered by the rollout replicas; see max_num_seqs",
    "compute_accuracy": "held-out prompts have a reward and pass@k",
    "max_length": "the length of an answer is max_new_tokens",
}
"""Keys of LLaMA-Factory's files that change nothing in a run that learns from answers, and why."""

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
    engines_read_their_keys,
    colocated_rewards_have_their_ranks_cpus,
    reward_functions_are_asked,
    reward_types_are_of_a_model,
    preferences_are_dpos,
    divergences_are_weighed,
    dual_clips_are_ppos,
    critics_are_trained,
    critics_of_their_own_have_a_rate,
    shared_critics_are_weighed,
    whole_answers_have_no_discount,
    divergence_has_a_target,
    corrections_are_made,
    ppo_keys_are_ppos,
    rounds_are_of_dynamic_sampling,
)
