"""Token-level returns and advantages, blind to the tokens that the policy did not produce.

The mask is 1 on tokens of the policy and 0 on the prompt, padding, tool results and other turns. Everything here
equals what the sequence without its 0 tokens gives. Systems that step through tool tokens discount once for each of
them and bootstrap from a value that nobody predicted; systems that reset at a 0 lose the reward of all earlier turns.
"""

import torch
from torch import Tensor, nn


def token_rewards(scores: Tensor, mask: Tensor, *, kl: Tensor | None = None, kl_coef: float = 0.0) -> Tensor:
    """Spread an outcome over its tokens: the score on the last one, the divergence as a fine on each.

    r_t = -kl_coef * kl_t, plus the score where t is the last token under the mask.

    Args: scores: [B], NaN where unscorable. mask: [B, T], bool or 0/1. kl: [B, T] per-token estimates in nats.
    Returns: [B, T] float64, 0 outside the mask, NaN on the last token of an unscorable answer.
    Source: Ouyang et al. 2022, eq. 2, its divergence term taken token by token.
    """
    keep = mask.bool()
    rewards = torch.zeros(keep.shape, dtype=torch.float64, device=scores.device)
    if kl is not None and kl_coef:
        rewards = torch.where(keep, -kl_coef * kl.double(), rewards)
    places = torch.arange(keep.shape[1], device=keep.device)
    last = torch.where(keep, places, -1).amax(dim=1)  # [B], -1 where a row has no token
    return torch.where(places == last[:, None], rewards + scores.double()[:, None], rewards)


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """Reward still to come, R_t = r_t + gamma * R_next, over the tokens under the mask.

    Args: rewards: [B, T]; outside the mask they are not read. A row with a reward that is NaN or infinite under the
    mask is unscorable and returns 0. mask: [B, T], bool or 0/1. gamma: in [0, 1].
    Returns: [B, T] float64, 0 outside the mask.
    """
    keep = mask.bool() & scorable_rows(rewards, mask)[:, None]
    return _walk_back(rewards.double(), keep, gamma)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the tokens under the mask.

    delta_t = r_t + gamma * V_next - V_t and A_t = delta_t + gamma * lam * A_next, where next is the next token under
    the mask and both are 0 behind the last one. The critic's target is A_t + V_t.

    Args: rewards, values: [B, T]; outside the mask they are not read. A row with a reward that is NaN or infinite
    under the mask is unscorable: its advantages are 0 and its targets are its own values, so that it moves nothing.
    mask: [B, T], bool or 0/1. gamma, lam: in [0, 1].
    Returns: advantages and critic targets, both [B, T] float64, 0 outside the mask.
    Source: Schulman et al. 2016, eq. 16, in its backward form.
    """
    inside = mask.bool()
    keep = inside & scorable_rows(rewards, mask)[:, None]
    known = torch.where(inside, values.double(), 0.0)
    delta = rewards.double() + gamma * _next_value(known, keep) - known
    advantages = _walk_back(delta, keep, gamma * lam)
    return advantages, advantages + known


def scorable_rows(rewards: Tensor, mask: Tensor) -> Tensor:
    """Which rows [B] have only finite rewards under the mask."""
    return (rewards.isfinite() | ~mask.bool()).all(dim=1)


def _next_value(values: Tensor, keep: Tensor) -> Tensor:
    """The value of the next token under the mask, [B, T]; 0 behind the last one."""
    length = values.shape[1]
    places = torch.where(keep, torch.arange(length, device=keep.device), length)
    # The first kept place at or behind each token, and from it that behind the token.
    onward = nn.functional.pad(places.flip(1).cummin(dim=1).values.flip(1)[:, 1:], (0, 1), value=length)
    return nn.functional.pad(values, (0, 1)).gather(1, onward)


def _walk_back(terms: Tensor, keep: Tensor, decay: float) -> Tensor:
    """x_t = term_t + decay * x_next over the tokens under the mask, [B, T]; elsewhere terms are not read and x is 0.

    At a 0 of the mask x is carried over unchanged. One fused operation a token on contiguous rows of the transposed
    batch: this loop is all the time that advantages take.
    """
    steps = torch.where(keep, terms, 0.0).t().contiguous()  # [T, B]
    factors = torch.ones_like(terms).masked_fill(keep, decay).t().contiguous()
    ahead = steps.new_zeros(steps.shape[1])
    for step, factor in zip(reversed(steps.unbind()), reversed(factors.unbind()), strict=True):
        ahead = torch.addcmul(step, factor, ahead, out=step)
    return torch.where(keep, steps.t(), 0.0)
