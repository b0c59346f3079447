"""The first signal lets a step finish, the second ends the run, and an echo of the first is none."""

import os
import signal
import time

import pytest

from raytune import interruption
from raytune.interruption import listening


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    # The handler runs between two instructions of this thread.
    time.sleep(0.01)


def test_before_the_first_step_a_signal_ends_the_run_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), listening():
        interrupt()


def test_later_the_first_one_is_noted_its_echo_ignored_and_the_second_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as heard:
        heard.save_from_now_on()
        interrupt()
        assert heard.caught
        interrupt()  # `timeout` sends one to the process and one to its group
        monkeypatch.setattr(interruption, "_ECHO", 0.0)
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_one_that_a_callback_swallowed_is_not_forgotten() -> None:
    with listening() as heard:
        try:
            interrupt()
        except KeyboardInterrupt:
            assert heard.caught
        with pytest.raises(KeyboardInterrupt):
            heard.save_from_now_on()


def test_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
