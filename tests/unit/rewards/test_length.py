import pytest
from trl.rewards import get_soft_overlong_punishment

from raytune.errors import ConfigError
from raytune.rewards.length import LengthPenalty, OverlongPenalty


def ids(*lengths: int) -> list[list[int]]:
    return [[1] * length for length in lengths]


def test_the_longer_the_worse() -> None:
    scores = LengthPenalty(40)([""] * 4, completion_ids=ids(0, 10, 40, 60))
    assert scores == [0.0, -0.25, -1.0, -1.0]


def test_overlong_answers_by_hand() -> None:
    # The limit is 100 and the buffer 20: free up to 80, then a twentieth per token, twice that with factor 2.
    penalty = OverlongPenalty(100, 20, factor=2.0)
    assert penalty([""] * 6, completion_ids=ids(0, 80, 81, 90, 100, 130)) == pytest.approx([0, 0, -0.1, -1, -2, -2])


def test_overlong_answers_as_trl_punishes_them() -> None:
    every = ids(*range(0, 61))
    ours = OverlongPenalty(50, 15)([""] * len(every), completion_ids=every)
    assert ours == pytest.approx(get_soft_overlong_punishment(50, 15)(completion_ids=every), abs=1e-12)


@pytest.mark.parametrize("buffer", [0, 101])
def test_a_buffer_that_does_not_fit_is_refused(buffer: int) -> None:
    with pytest.raises(ConfigError, match="overlong_buffer_len between 1 and max_new_tokens"):
        OverlongPenalty(100, buffer)
