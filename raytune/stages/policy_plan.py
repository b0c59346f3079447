"""How one rollout batch is cut into optimizer steps, ranks and micro-batches; a pure function on the driver.

answers -> groups in a drawn order -> mini-batches -> answers to one prompt together -> ranks -> micro-batches
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raytune.data.batches import Indices, split_batch
from raytune.stages.interfaces import PolicySample
from raytune.stages.samples import Group


# Made by the trainer group from the run's config and what its ranks say, read by plan_update.
@dataclass(frozen=True, slots=True)
class Cut:
    """Sizes of a plan.

    Args: minibatches: optimizer steps per pass over the batch. epochs: passes. max_tokens: of a micro-batch; None for
    micro_rows times the longest answer. joined: micro-batches are joined, not padded. fixed_tokens: as in split_batch.

    Example: Cut(num_ranks=2, max_tokens=4096)
    """

    num_ranks: int = 1
    minibatches: int = 1
    epochs: int = 1
    micro_rows: int = 8
    max_tokens: int | None = None
    joined: bool = True
    fixed_tokens: int = 0


# Made by plan_update, sent to a rank; read by PolicyRank.
@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of a rollout batch.

    Args: samples: its answers; on the rank their payload is the Group itself. numbers: their numbers in the whole
    batch. micro[m]: micro-batches of mini-batch m, each of numbers into `samples`; all ranks have equally many, some
    empty. num_sequences[m]: answers of mini-batch m over all ranks. visits: mini-batches in the order of the steps.
    known: every answer of the batch has its numbers from `values`.

    Example: Share((first, second), (4, 0), micro=(((0, 1),),), num_sequences=(4,), visits=(0,))
    """

    samples: tuple[PolicySample, ...]
    numbers: tuple[int, ...]
    micro: tuple[tuple[tuple[int, ...], ...], ...]
    num_sequences: tuple[int, ...]
    visits: tuple[int, ...]
    known: bool = False


def plan_update(samples: Sequence[PolicySample], cut: Cut, *, seed: Sequence[int]) -> list[Share]:
    """Cut a rollout batch.

    Mini-batches keep their answers over all epochs, so that what is known of an answer stays on its rank; later epochs
    visit them in another order. Answers to one prompt go to the same micro-batch as far as sizes and balance allow:
    their prompt is computed once there. A batch smaller than the number of mini-batches has fewer of them.

    Args: seed: the order is a function of it.
    Returns: one share per rank.
    """
    rng = np.random.Generator(np.random.PCG64(list(seed)))
    lengths = np.array([sample.length for sample in samples], dtype=np.int64)
    groups = _by_group([sample.payload for sample in samples])
    order = np.concatenate([groups[place] for place in rng.permutation(len(groups))])
    count = min(cut.minibatches, len(samples))
    minis = np.array_split(order, count)
    parts = [_deal(mini, lengths, samples, cut) for mini in minis]
    visits = [*range(count), *(int(m) for _ in range(cut.epochs - 1) for m in rng.permutation(count))]
    shares = []
    for rank in range(cut.num_ranks):
        mine = [[micro.tolist() for micro in part[rank]] for part in parts]
        numbers = [number for mini in mine for micro in mini for number in micro]
        local = {number: place for place, number in enumerate(numbers)}
        shares.append(
            Share(
                samples=tuple(samples[number] for number in numbers),
                numbers=tuple(numbers),
                micro=tuple(tuple(tuple(local[n] for n in micro) for micro in mini) for mini in mine),
                num_sequences=tuple(len(mini) for mini in minis),
                visits=tuple(visits),
                known=all(sample.numbers is not None for sample in samples),
            )
        )
    return shares


def with_groups(share: Share, groups: Mapping[Any, Group]) -> Share:
    """The same share with the groups themselves as payloads. Args: groups: by the payload that stood for them."""
    samples = tuple(replace(sample, payload=groups[sample.payload]) for sample in share.samples)
    return replace(share, samples=samples)


def _by_group(keys: Sequence[Hashable]) -> list[Indices]:
    """Numbers of the answers of each group, groups in the order of their first answer."""
    found: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key, []).append(number)
    return [np.array(numbers, dtype=np.int64) for numbers in found.values()]


def _deal(mini: Indices, lengths: Indices, samples: Sequence[PolicySample], cut: Cut) -> list[list[Indices]]:
    """Micro-batches of one mini-batch for each rank."""
    budget = cut.max_tokens or cut.micro_rows * int(lengths[mini].max())
    settings = {"num_ranks": cut.num_ranks, "micro_rows": cut.micro_rows, "max_tokens": budget}
    if not cut.joined:
        return split_batch(mini, lengths, **settings, fixed_tokens=cut.fixed_tokens)
    # A unit is dealt whole. Whole groups save most; those that do not go up evenly are parted among all ranks, for a
    # rank must not wait for another that got a group more.
    groups = [mini[places] for places in _by_group([samples[number].payload for number in mini])]
    even = len(groups) - len(groups) % cut.num_ranks
    units = [unit for group in groups[:even] for unit in _units(group, lengths, budget, 1)]
    units += [unit for group in groups[even:] for unit in _units(group, lengths, budget, cut.num_ranks)]
    sizes = np.array([int(lengths[unit].sum()) for unit in units], dtype=np.int64)
    dealt = split_batch(np.arange(len(units)), sizes, **settings, joined=True)
    empty = np.empty(0, dtype=np.int64)
    return [[np.concatenate([units[n] for n in part]) if len(part) else empty for part in rank] for rank in dealt]


def _units(group: Indices, lengths: Indices, limit: int, least: int) -> list[Indices]:
    """Cut a group into the fewest even parts, at least `least`, of at most `limit` tokens; a longer answer is alone."""
    count = min(max(-(-int(lengths[group].sum()) // limit), least), len(group))
    while count < len(group) and max(int(lengths[part].sum()) for part in np.array_split(group, count)) > limit:
        count += 1
    return np.array_split(group, count)
