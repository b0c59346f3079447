import logging
import time

import pytest

from raytune.stages.watchdog import Watchdog


def test_a_phase_is_named_at_half_of_its_deadline_and_again_when_that_has_doubled(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("raytune"), "propagate", True)
    looks: list[tuple[str, float]] = []
    watchdog = Watchdog({"update": 0.4, "save": 60.0}, lambda name: looks.append((name, time.monotonic())) or "here")
    with watchdog.phase("save"):
        time.sleep(0.05)
    started = time.monotonic()
    with watchdog.phase("update"):
        time.sleep(0.7)
    with watchdog.phase("save"):
        time.sleep(0.3)
    watchdog.close()
    assert [name for name, _ in looks] == ["update", "update"]
    assert 0.2 <= looks[0][1] - started < 0.4 <= looks[1][1] - started
    assert "phase update has lasted for 0 s, of at most 0.4 s: here" in caplog.text
