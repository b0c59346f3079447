"""What the three sides of weight sync (driver, trainer ranks, nodes) tell each other. Plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FLAT: Literal["flat"] = "flat"
SHARED_MEMORY = Path("/dev/shm")


# Made by raytune.launch, read by trainer ranks, receivers and the publisher.
@dataclass(frozen=True, slots=True)
class WeightSettings:
    """How the weights of a run travel.

    Args: run: a name that no other run has. output: its output folder, by which a run that is started again knows what
    the last one left. kind: merged weights or the
    adapter alone; "auto" sends the adapter when the engines take it. dtype: torch's name of what engines compute in.
    deadline: of each part, in seconds. kept_adapters: versions whose files stay, because answers begun with them may
    go on. max_lora_rank: of the engines. folder: shared memory of each node.

    Example: WeightSettings("4f1c", "/runs/grpo", dtype="bfloat16")
    """

    run: str
    output: str = ""
    kind: Literal["auto", "merged", "adapter"] = "auto"
    dtype: str = "bfloat16"
    bucket_bytes: int = 32 * 1024 * 1024
    deadline: float = 120.0
    kept_adapters: int = 3
    max_lora_rank: int | None = None
    folder: Path = SHARED_MEMORY

    def on_node(self, node: str) -> Path:
        """Where a node keeps them; two nodes of one machine (as in tests) do not meet."""
        return self.folder / f"raytune-{self.run}-{node[:12]}"


# Made by WeightSender, read by actors.weights.
@dataclass(frozen=True, slots=True)
class Sent:
    """A version that lies ready.

    Args: paths: by node, of slot-N.json or of the adapter's folder. missed: nodes that did not get it, and why.

    Example: Sent(7, "merged", {"4f1c...": "/dev/shm/raytune-.../slot-1.json"}, 269030144, {"write": 0.09}, {})
    """

    version: int
    kind: Literal["merged", "adapter"]
    paths: Mapping[str, str]
    num_bytes: int
    seconds: Mapping[str, float]
    missed: Mapping[str, str]
