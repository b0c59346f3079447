import socket

import pytest

from raytune.config.load import load_config
from raytune.errors import PlacementError
from raytune.launch import train
from tests.helpers.runs import run_keys

pytestmark = pytest.mark.usefixtures("ray_local")


def test_a_busy_master_port_ends_the_run_with_its_name_and_no_output(tmp_path):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PlacementError, match=rf"^master_port {port} is in use \(node .*\)\. Set another"):
            train(load_config(run_keys(tmp_path, master_port=port, num_workers=2)))
    assert not (tmp_path / "out").exists()
