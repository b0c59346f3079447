"""What vLLM loads in each of its processes (entry point `vllm.general_plugins`): our weight-transfer engine's name.

vLLM calls `register` before it builds a worker, in the engine's process as in the actor's, so it may come twice.
"""

BACKEND = "raytune_flat"


def register() -> None:
    """Make `WeightTransferConfig(backend="raytune_flat")` known in this process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    try:
        WeightTransferEngineFactory.register_engine(BACKEND, "actors.vllm_engine", "FlatWeightEngine")
    except ValueError as error:
        if "already registered" not in str(error):
            raise
