"""From a run's keys to the rules of its algorithm: what the driver compares rewards by, and what ranks learn by."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from raytune.config.run import RunConfig
from raytune.losses.estimate import EstimatorRule
from raytune.losses.kl import KLRule
from raytune.losses.mismatch import Correction
from raytune.losses.rl_compat import DIALECTS, Dialect, kl_rule, policy_rule
from raytune.stages.policy_loss import LearnRule


# Made here, read by raytune.launch_rl; its numbers go into the run's header and its checkpoints.
@dataclass(frozen=True, slots=True)
class Algorithm:
    """Args: estimator: of advantages. kl: estimator of the divergence, wherever it enters. learn: what ranks do.
    critic: what those of a critic of its own do.

    Example: algorithm_of(cfg).estimator.kind == "group"
    """

    estimator: EstimatorRule
    kl: KLRule
    learn: LearnRule
    critic: LearnRule | None = None

    def numbers(self) -> Mapping[str, Any]:
        """Every number by name."""
        return asdict(self)

    def summary(self) -> str:
        """One line for the run's header."""
        learn, policy = self.learn, self.learn.policy
        parts = [
            f"advantage {self.estimator.kind}",
            *(["critic of its own"] if self.critic else ["critic on the policy's trunk"] if learn.has_critic else []),
            f"ratio {policy.ratio}",
            f"clip {policy.clip} {_bound(policy.clip_low)} {_bound(policy.clip_high)}",
            f"loss per {learn.aggregation}",
            f"kl {self.kl.estimator} x {max(self.kl.coef, self.estimator.kl_coef):g}"
            + (" in the reward" if self.estimator.kl_coef else " in the loss" if learn.kl_in_loss else ""),
        ]
        if policy.dual_clip is not None:
            parts.append(f"dual clip {policy.dual_clip:g}")
        if policy.entropy_coef:
            parts.append(f"entropy x {policy.entropy_coef:g}")
        parts += [f"{rule.action} {rule.level} ratios to the rollouts" for rule in learn.corrections]
        return ", ".join(parts)


def algorithm_of(cfg: RunConfig) -> Algorithm:
    """The rules of a run of ppo or grpo."""
    dialect = DIALECTS[cfg.policy.rl_compat]
    shared, own = (cfg.policy.advantage == "gae" and cfg.policy.critic == kind for kind in ("shared", "own"))
    in_reward = cfg.policy.kl_in_reward
    # As a fine on rewards the plain log ratio is unbiased; the other estimators are made to be differentiated.
    kl = kl_rule(dialect, coef=cfg.rl.kl_coef, estimator=cfg.policy.kl_estimator or ("k1" if in_reward else None))
    estimator = EstimatorRule(
        cfg.policy.advantage,
        gamma=cfg.rl.gamma,
        lam=cfg.rl.lam,
        kl_coef=cfg.rl.kl_coef if in_reward else 0.0,
        group=dialect.group,
        whiten=dialect.whiten,
        whiten_rewards=cfg.rl.ppo_whiten_rewards,
        whiten_flat=dialect.whiten_flat,
    )
    learn = LearnRule(
        role="actor_critic" if shared else "policy",
        policy=_policy(cfg, dialect),
        kl=None if in_reward else kl,
        corrections=_corrections(cfg, dialect),
        aggregation=cfg.policy.loss_aggregation or ("sequence" if _acts_once(cfg, dialect) else dialect.aggregation),
        fixed_length=cfg.sampling.max_new_tokens,
        reference=in_reward and cfg.rl.kl_coef > 0,
        value_coef=cfg.rl.vf_coef,
        value_clip=cfg.rl.value_clip,
    )
    critic = replace(learn, role="critic", kl=None, corrections=(), reference=False) if own else None
    return Algorithm(estimator, kl, learn, critic)


def _policy(cfg: RunConfig, dialect: Dialect) -> Any:
    policy, low = cfg.policy, cfg.rl.clip_range
    high = low if policy.clip_range_high is None else policy.clip_range_high
    level = policy.ratio_level or ("product" if _acts_once(cfg, dialect) else "token")
    rule = policy_rule(dialect, clip_low=low, clip_high=high, level=level, clip=policy.clip_type)
    dual_clip = rule.dual_clip if policy.dual_clip is None else policy.dual_clip
    return replace(rule, dual_clip=dual_clip, entropy_coef=policy.entropy_coef)


def _acts_once(cfg: RunConfig, dialect: Dialect) -> bool:
    """Whether a whole answer is one action, not each of its tokens."""
    return cfg.policy.advantage == "rloo" and dialect.rloo_answers


def _corrections(cfg: RunConfig, dialect: Dialect) -> tuple[Correction, ...]:
    action, policy = cfg.policy.rollout_correction, cfg.policy
    match action:
        case None:
            return () if _acts_once(cfg, dialect) else dialect.corrections
        case "off":
            return ()
        case "truncate" | "mask" | "reject":
            return (Correction(policy.correction_level, action, policy.correction_low, policy.correction_high),)


def _bound(value: float | None) -> str:
    return "off" if value is None else f"{value:g}"
