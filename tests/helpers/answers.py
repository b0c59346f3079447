"""Groups of answers to random prompts, as rollout actors hand them over."""

from collections.abc import Sequence

import numpy as np

from raytune.stages.interfaces import PolicySample
from raytune.stages.policy_plan import Cut, Share, plan_update, with_groups
from raytune.stages.samples import Completion, Group, Prompt, Sampling, VersionSpan

VOCABULARY = 259


def random_groups(
    count: int, size: int, *, seed: int = 0, temperature: float = 1.0, masked: bool = False
) -> list[Group]:
    """Groups of answers of 1 to 12 tokens to prompts of 9 to 24.

    Args: masked: tokens in the middle of longer answers come from an environment.
    """
    rng = np.random.default_rng(seed)
    groups = []
    for number in range(count):
        prompt = Prompt(number, number, rng.integers(3, VOCABULARY, rng.integers(9, 25)).astype(np.int32))
        answers = tuple(_answer(rng, masked=masked) for _ in range(size))
        groups.append(Group(prompt, answers, Sampling(temperature=temperature), seconds=0.1))
    return groups


def _answer(rng: np.random.Generator, *, masked: bool) -> Completion:
    length = int(rng.integers(1, 13))
    mask = np.ones(length, dtype=np.bool_)
    if masked and length > 4:
        mask[2:4] = False
    logprobs = np.where(mask, -5.5 + 0.3 * rng.standard_normal(length), 0.0).astype(np.float32)
    ids = rng.integers(3, VOCABULARY, length).astype(np.int32)
    return Completion(ids, logprobs, mask, (VersionSpan(0, 0, length),), "stop")


def samples_of(
    groups: Sequence[Group], *, seed: int = 1, per_token: bool = False, returns: bool = False
) -> list[PolicySample]:
    """Every answer with a random advantage. The payload is the prompt's number."""
    rng = np.random.default_rng(seed)
    found = []
    for group in groups:
        for place, answer in enumerate(group.completions):
            count = len(answer.ids)
            advantage = rng.standard_normal(count).astype(np.float32) if per_token else float(rng.standard_normal())
            targets = rng.standard_normal(count).astype(np.float32) if returns else None
            found.append(PolicySample(group.prompt.number, place, len(group.prompt.ids) + count, advantage, targets))
    return found


def share_out(
    groups: Sequence[Group], samples: Sequence[PolicySample], cut: Cut, *, seed: Sequence[int] = (0,)
) -> list[Share]:
    """The ranks' shares, with the groups in them."""
    known = {group.prompt.number: group for group in groups}
    return [with_groups(share, known) for share in plan_update(samples, cut, seed=seed)]
