import socket

import pytest

from actors import trainer
from actors.trainer import listen
from raytune.errors import PlacementError


@pytest.fixture(autouse=True)
def _node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this Ray looks for a cluster to ask."""
    monkeypatch.setattr(trainer.ray.util, "get_node_ip_address", lambda: "10.0.0.4")


def test_a_busy_port_is_named_with_the_remedy():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PlacementError) as caught:
            listen("127.0.0.1", port, 1)
    assert str(caught.value) == (
        f"master_port {port} is in use (node 10.0.0.4). Set another master_port, or leave it out: then a free one is "
        "taken."
    )


def test_a_free_port_is_taken():
    assert listen("127.0.0.1", 0, 1).port > 0
