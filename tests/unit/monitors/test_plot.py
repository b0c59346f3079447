import pytest
from matplotlib.image import imread

from raytune.monitors.plot import plot_loss, plot_reward, smooth


def test_smoothing_is_the_weighted_sum_of_all_that_came():
    """s[t] = 0.8^t x[0] + sum over k of 0.2 * 0.8^(t-k) x[k], written out."""
    values = [4.0, 2.0, 3.0, 1.0]
    last = 0.8**3 * 4.0 + 0.2 * (0.8**2 * 2.0 + 0.8 * 3.0 + 1.0)
    assert smooth(values)[0] == 4.0
    assert smooth(values)[-1] == pytest.approx(last)
    assert smooth([]) == []


def test_the_picture_is_a_whole_png_with_something_drawn(tmp_path):
    history = [{"current_steps": step, "loss": 3.0 / step} for step in range(1, 9)]
    plot_loss([*history, {"current_steps": 8, "eval_loss": 0.7}], tmp_path / "loss.png")
    image = imread(tmp_path / "loss.png")
    assert image.shape[0] > 200
    assert image.shape[1] > 400
    assert image.min() < image.max()
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


@pytest.mark.filterwarnings("error")
def test_a_run_that_logged_nothing_still_gets_a_picture(tmp_path):
    plot_loss([], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_rewards_have_a_picture_of_their_own(tmp_path):
    history = [{"current_steps": step, "loss": 0.0, "reward": step / 9} for step in range(1, 9)]
    history[3]["reward"] = float("nan")
    plot_reward([*history, {"current_steps": 8, "eval_reward": 0.7}], tmp_path / "reward.png")
    plot_reward([], tmp_path / "none.png")
    image = imread(tmp_path / "reward.png")
    # More is drawn than on empty axes.
    assert (image < 0.99).sum() > (imread(tmp_path / "none.png") < 0.99).sum()
