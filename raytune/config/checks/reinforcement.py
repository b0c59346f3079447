"""What does not go together where a model learns from its own answers."""

from raytune.config.checks.broken import Broken, broken
from raytune.config.run import RunConfig

WHOLE_ANSWERS = ("group", "group_batch_std", "group_no_std", "leave_one_out", "rloo")
GROUP_KINDS = (*WHOLE_ANSWERS, "reinforce++_baseline")

# Values of rl_compat that correct the ratio to the rollouts without being asked to, but for advantage rloo.
CORRECTS_BY_DEFAULT = ("trl",)

# What vLLM can be built for.
ENGINE_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def learns_from_answers(config: RunConfig) -> bool:
    """Whether the stage draws answers and learns from their rewards."""
    return config.train.stage in ("ppo", "grpo")


def groups_need_answers(config: RunConfig) -> Broken | None:
    kind = config.policy.advantage
    wrong = learns_from_answers(config) and kind in GROUP_KINDS and config.rl.num_generations < 2
    what = f"advantage {kind} compares the answers to one prompt, and num_generations is 1"
    return broken(wrong, what, "advantage", "num_generations", fix="Set num_generations to 2 or more.")


def grpo_has_no_critic(config: RunConfig) -> Broken | None:
    wrong = config.train.stage == "grpo" and config.policy.advantage == "gae"
    fix = "Use stage: ppo, or another advantage."
    return broken(wrong, "advantage gae needs a critic, which stage grpo has not", "advantage", "stage", fix=fix)


def own_critic_is_asked(config: RunConfig) -> Broken | None:
    kind = config.policy.advantage
    wrong = learns_from_answers(config) and config.policy.critic == "own" and kind != "gae"
    what = f"critic own is trained for nothing: advantage {kind} asks no critic"
    return broken(wrong, what, "critic", "advantage", fix="Use stage: ppo with advantage: gae, or leave critic out.")


def whitened_rewards_have_a_critic(config: RunConfig) -> Broken | None:
    kind = config.policy.advantage
    wrong = config.train.stage == "ppo" and config.rl.ppo_whiten_rewards and kind != "gae"
    what = f"ppo_whiten_rewards scales the rewards that a critic judges, and advantage {kind} has none"
    fix = "Leave it out, or use advantage: gae; ppo_score_norm scales the rewards of whole answers."
    return broken(wrong, what, "ppo_whiten_rewards", "advantage", fix=fix)


def answers_are_rewarded(config: RunConfig) -> Broken | None:
    reward = config.reward
    wrong = learns_from_answers(config) and not reward.reward_funcs and reward.reward_model is None
    fix = "Set reward_funcs (names, import paths or files) or reward_model."
    return broken(wrong, f"stage {config.train.stage} has nothing that rewards answers", "stage", fix=fix)


def reward_adapters_have_a_model(config: RunConfig) -> Broken | None:
    reward = config.reward
    wrong = bool(reward.reward_model_adapters) and (reward.reward_model is None or reward.reward_model_type != "full")
    what = "reward_model_adapters lie on a whole reward model"
    keys = ("reward_model_adapters", "reward_model", "reward_model_type")
    fix = "Name it in reward_model and set reward_model_type: full; a single adapter of the policy's model is lora."
    return broken(wrong, what, *keys, fix=fix)


def truncated_draws_have_no_ratio(config: RunConfig) -> Broken | None:
    sampling, policy = config.sampling, config.policy
    cut = sampling.top_p < 1 or sampling.top_k > 0
    correction = policy.rollout_correction
    if correction is None and policy.rl_compat in CORRECTS_BY_DEFAULT and policy.advantage != "rloo":
        correction = f"of rl_compat {policy.rl_compat}"
    wrong = learns_from_answers(config) and cut and correction not in (None, "off")
    what = f"rollout_correction {correction} weighs probabilities that top_p and top_k have changed"
    keys = ("rollout_correction", "rl_compat", "top_p", "top_k")
    return broken(wrong, what, *keys, fix="Set top_p: 1 and top_k: 0, or rollout_correction: off.")


def answers_are_drawn(config: RunConfig) -> Broken | None:
    sampling = config.sampling
    wrong = learns_from_answers(config) and (not sampling.do_sample or sampling.temperature == 0)
    what = f"stage {config.train.stage} learns from how answers differ, and all would be the likeliest one"
    return broken(wrong, what, "do_sample", "temperature", fix="Set do_sample: true and temperature: 1.")


def taking_turns_is_synchronous(config: RunConfig) -> Broken | None:
    generation = config.generation
    wrong = generation.placement == "colocated" and generation.max_staleness > 0
    what = f"max_staleness {generation.max_staleness} overlaps drawing and learning, which colocated roles cannot"
    fix = "Set placement: disaggregated or max_staleness: 0."
    return broken(wrong, what, "placement", "max_staleness", fix=fix)


def dynamic_sampling_has_groups(config: RunConfig) -> Broken | None:
    # A single answer may still differ from the greedy one.
    alone = config.rl.num_generations < 2 and config.policy.advantage != "remax"
    wrong = config.rl.dynamic_sampling and alone
    what = "dynamic_sampling looks for groups whose answers differ in reward, and num_generations is 1"
    return broken(wrong, what, "dynamic_sampling", "num_generations", fix="Set num_generations to 2 or more.")


def turns_have_an_environment(config: RunConfig) -> Broken | None:
    rl, fields = config.rl, type(config.rl).model_fields
    given = {"max_turns": rl.max_turns, "environment_time_limit": rl.environment_time_limit}
    idle = [name for name, value in given.items() if value != fields[name].default]
    what = f"{' and '.join(idle)} would limit turns with an environment, and there is none"
    return broken(rl.environment is None and bool(idle), what, *idle, "environment", fix="Set environment.")


def steps_end_before_their_answer(config: RunConfig) -> Broken | None:
    step, answer = config.rl.environment_time_limit, config.generation.rollout_timeout
    wrong = config.rl.environment is not None and step >= answer
    what = f"environment_time_limit {step:g} lets one step of the environment outlast its answer's {answer:g} s"
    fix = "Set rollout_timeout to what a whole conversation may take, draws included, and a step's limit far below."
    return broken(wrong, what, "environment_time_limit", "rollout_timeout", fix=fix)


def the_likeliest_answer_is_one(config: RunConfig) -> Broken | None:
    evaluation = config.evaluation
    wrong = evaluation.eval_temperature == 0 and evaluation.eval_num_generations > 1
    what = f"eval_temperature 0 draws {evaluation.eval_num_generations} times the same answer"
    keys = ("eval_temperature", "eval_num_generations")
    return broken(wrong, what, *keys, fix="Set eval_num_generations: 1, or a temperature.")


def held_out_prompts_are_one_set(config: RunConfig) -> Broken | None:
    wrong = learns_from_answers(config) and config.dataio.eval_on_each_dataset
    what = f"stage {config.train.stage} validates on all held-out prompts together"
    return broken(wrong, what, "eval_on_each_dataset", "stage", fix="Leave eval_on_each_dataset out.")


def rewards_say_what_is_best(config: RunConfig) -> Broken | None:
    answers = config.evaluation.eval_num_generations
    powers = {1 << bit for bit in range(answers.bit_length()) if 1 << bit <= answers}
    known = ["eval_reward", "eval_completion_length", *(f"eval_pass@{k}" for k in sorted({*powers, answers}))]
    metric = f"eval_{(config.evaluation.metric_for_best_model or 'reward').removeprefix('eval_')}"
    wrong = learns_from_answers(config) and metric not in known
    what = f"metric_for_best_model {metric} is not measured in stage {config.train.stage}"
    return broken(wrong, what, "metric_for_best_model", "stage", fix=f"There are {', '.join(known)}.")


def schedules_follow_no_reward(config: RunConfig) -> Broken | None:
    kind = config.optim.lr_scheduler_type
    wrong = learns_from_answers(config) and kind in ("reduce_lr_on_plateau", "greedy")
    what = f"lr_scheduler_type {kind} follows an evaluation's loss, which stage {config.train.stage} has not"
    return broken(wrong, what, "lr_scheduler_type", "stage", fix="Use constant, linear or cosine.")


def adapters_travel_alone(config: RunConfig) -> Broken | None:
    wrong = config.generation.weight_sync == "adapter" and engine_rank(config) is None
    what = "weight_sync adapter sends a new LoRA adapter of linear layers alone, and this run trains something else"
    keys = ("weight_sync", "finetuning_type", "additional_target", "adapter_name_or_path")
    return broken(wrong, what, *keys, fix="Set weight_sync: merged.")


def engine_rank(config: RunConfig) -> int | None:
    """The LoRA rank that vLLM must be built for to draw with the trained adapter beside the model on disk.

    None when the two are not the trained model, or not in a form that vLLM takes.
    """
    adapter, model = config.adapter, config.model
    grows = model.resize_vocab or model.add_tokens or model.add_special_tokens
    if adapter.finetuning_type != "lora" or adapter.additional_target or adapter.adapter_name_or_path or grows:
        return None
    return next((rank for rank in ENGINE_RANKS if rank >= adapter.lora_rank), None)


def replicas_compute_the_trained_model(config: RunConfig) -> Broken | None:
    wrong = learns_from_answers(config) and config.model.rope_scaling is not None
    what = (
        f"rope_scaling {config.model.rope_scaling} does not reach the replicas, whose answers would be another model's"
    )
    return broken(
        wrong, what, "rope_scaling", "stage", fix="Leave rope_scaling out, or write it into the model's config."
    )


def draws_are_the_policys(config: RunConfig) -> Broken | None:
    given = [name for name in PLAIN_DRAWS if dict(config.sampling)[name] != PLAIN_DRAWS[name]]
    wrong = learns_from_answers(config) and bool(given)
    what = f"{' and '.join(given)} would change what answers are drawn from, which stage {config.train.stage} learns"
    return broken(wrong, what, *given, fix="Leave it out.")


PLAIN_DRAWS = {"repetition_penalty": 1.0, "length_penalty": 1.0, "num_beams": 1}


def answers_have_tokens(config: RunConfig) -> Broken | None:
    wrong = learns_from_answers(config) and config.sampling.max_new_tokens == 0
    what = "max_new_tokens 0 leaves no token to an answer"
    return broken(wrong, what, "max_new_tokens", fix="Set max_new_tokens to the longest answer.")


RL_RULES = (
    replicas_compute_the_trained_model,
    draws_are_the_policys,
    answers_have_tokens,
    adapters_travel_alone,
    groups_need_answers,
    grpo_has_no_critic,
    own_critic_is_asked,
    whitened_rewards_have_a_critic,
    truncated_draws_have_no_ratio,
    answers_are_drawn,
    taking_turns_is_synchronous,
    dynamic_sampling_has_groups,
    turns_have_an_environment,
    steps_end_before_their_answer,
    the_likeliest_answer_is_one,
    held_out_prompts_are_one_set,
    rewards_say_what_is_best,
    schedules_follow_no_reward,
    reward_adapters_have_a_model,
)
