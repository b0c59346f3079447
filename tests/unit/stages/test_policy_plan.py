"""How a rollout batch is cut: nothing is lost, prompts stay together, ranks are even."""

from collections import Counter

import pytest

from raytune.stages.interfaces import PolicySample
from raytune.stages.policy_plan import Cut, plan_update


def batch(groups: int, size: int, *, length: int = 40) -> list[PolicySample]:
    return [PolicySample(group, place, length + group, 1.0) for group in range(groups) for place in range(size)]


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("minis", [1, 2, 5])
def test_each_answer_is_in_one_micro_batch_of_one_rank(joined, ranks, minis):
    samples = batch(4, 6)
    shares = plan_update(samples, Cut(num_ranks=ranks, minibatches=minis, max_tokens=130, joined=joined), seed=(1,))
    assert sorted(number for share in shares for number in share.numbers) == list(range(len(samples)))
    for mini in range(minis):
        parts = [share.micro[mini] for share in shares]
        assert len({len(part) for part in parts}) == 1
        assert sum(len(micro) for part in parts for micro in part) == shares[0].num_sequences[mini]
    for share in shares:
        places = [place for mini in share.micro for micro in mini for place in micro]
        assert sorted(places) == list(range(len(share.samples)))
        assert all(share.samples[place] is samples[number] for place, number in enumerate(share.numbers))
        for micro in (micro for mini in share.micro for micro in mini if joined):
            assert sum(share.samples[place].length for place in micro) <= 130


def test_answers_to_one_prompt_stay_together_where_they_fit():
    samples = batch(8, 4, length=20)
    shares = plan_update(samples, Cut(num_ranks=2, max_tokens=250), seed=(1,))
    for share in shares:
        for micro in share.micro[0]:
            assert set(Counter(share.samples[place].payload for place in micro).values()) <= {4}


def test_a_group_too_few_is_parted_between_ranks():
    shares = plan_update(batch(1, 8), Cut(num_ranks=2, max_tokens=4000), seed=(1,))
    assert [len(share.samples) for share in shares] == [4, 4]
    three = plan_update(batch(3, 8, length=100), Cut(num_ranks=2, max_tokens=4000), seed=(1,))
    tokens = [sum(sample.length for sample in share.samples) for share in three]
    assert max(tokens) <= 1.05 * min(tokens)


def test_the_plan_is_a_function_of_the_seed():
    samples = batch(6, 2)
    cut = Cut(minibatches=3, epochs=2)
    first, again, other = (plan_update(samples, cut, seed=(seed,))[0] for seed in (1, 1, 2))
    assert first == again
    assert first.numbers != other.numbers


def test_fewer_answers_than_mini_batches_make_fewer_steps():
    (share,) = plan_update(batch(1, 2), Cut(minibatches=4, epochs=3), seed=(1,))
    assert len(share.visits) == 6
