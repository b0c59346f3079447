"""vLLM's side of a weight update on a CPU: mapped files in, layerwise reload, one worker of an engine.

It runs inside vLLM's worker process; workers that share a model map the same file and keep their parts of each tensor.
On an x86 CPU vLLM packs linear weights and drops the originals, so only a layerwise reload can replace them (docs of
vllm.model_executor.model_loader.reload); it also serves GPU workers of the same node, which then copy from host memory.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from raytune.errors import RolloutError
from raytune.models.saved import check_against_folder
from raytune.models.updates import UpdateReader


@dataclass
class FlatInit(WeightTransferInitInfo):
    """entries: name, dtype and shape of every tensor that will come."""

    entries: list[list[Any]] = field(default_factory=list)


@dataclass
class FlatUpdate(WeightTransferUpdateInfo):
    """kind: "flat" for slot-N.json, "safetensors" for a folder or a file. path: of it, on this node."""

    kind: str
    path: str
    version: int


class FlatWeightEngine(WeightTransferEngine[FlatInit, FlatUpdate]):
    """Loads whole models from files that were verified before the update began."""

    init_info_cls = FlatInit
    update_info_cls = FlatUpdate

    def init_transfer_engine(self, init_info: FlatInit) -> None:
        """Refuse names and shapes that are not those of the checkpoint this engine was loaded from."""
        check_against_folder(Path(self.model_config.model), init_info.entries)
        self._reader = UpdateReader()

    def start_weight_update(self) -> None:
        # Before the reload takes tied weights apart: a tied head is not loaded by itself.
        # Beside adapters a layer's own weights are called base_layer, and load_weights leaves that out.
        self._wanted = {name.replace(".base_layer.", ".") for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FlatUpdate) -> None:
        """Load all weights. Whatever raises here leaves a model that must not serve before a whole update."""
        model: Any = self.model
        loaded = model.load_weights(self._reader.tensors(asdict(update_info)))
        missing = self._wanted - loaded if isinstance(loaded, set) else set()
        if missing:
            raise RolloutError(
                f"weights {update_info.version} left {min(missing)} and {len(missing) - 1} more unloaded"
            )

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied(self.model)

    def shutdown(self) -> None:
        self._reader = UpdateReader()


def _repack_tied(model: nn.Module) -> None:
    """Pack heads that are tied to the embeddings anew.

    A tied head has no weight of its own in a checkpoint, so the reload passes it by: on a CPU it would go on with the
    packed copy that it made of the embeddings when the model was first loaded.
    """
    heads = [module for module in model.modules() if isinstance(module, ParallelLMHead)]
    others = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    for head in heads:
        method = head.quant_method
        tied = any(head.weight is other.weight for other in others if other is not head)
        if tied and isinstance(method, UnquantizedEmbeddingMethod):
            method.process_weights_after_loading(head)
