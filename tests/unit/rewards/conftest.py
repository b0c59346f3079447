import pytest


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of these tests are on this machine."""
    monkeypatch.setenv("NO_PROXY", "*")
