from raytune.engine.loss_scale import LossScale


def test_halves_on_overflow_and_doubles_after_the_interval():
    scale = LossScale(value=8.0, growth_interval=3)
    scale.update(overflow=True)
    assert scale.value == 4.0
    for _ in range(2):
        scale.update(overflow=False)
    assert scale.value == 4.0
    scale.update(overflow=False)
    assert (scale.value, scale.good_steps) == (8.0, 0)


def test_an_overflow_restarts_the_count():
    scale = LossScale(value=8.0, growth_interval=2)
    scale.update(overflow=False)
    scale.update(overflow=True)
    scale.update(overflow=False)
    assert scale.value == 4.0


def test_is_exhausted_below_one():
    assert not LossScale(value=1.0).exhausted
    assert LossScale(value=0.5).exhausted


def test_state_round_trips():
    scale = LossScale(value=2.0, good_steps=7)
    other = LossScale()
    other.load(scale.state())
    assert (other.value, other.good_steps) == (2.0, 7)
