"""The entry point by which each process of vLLM learns of our weight-transfer engine."""

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from actors.vllm_plugin import BACKEND

ROOT = Path(__file__).parents[3]


def test_the_entry_point_registers_the_engine_however_often_it_is_called() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    (target,) = groups["vllm.general_plugins"].values()
    register = EntryPoint("raytune_flat", target, "vllm.general_plugins").load()
    register()
    register()
    assert WeightTransferEngineFactory._registry[BACKEND]().__name__ == "FlatWeightEngine"
