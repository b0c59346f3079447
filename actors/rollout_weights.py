"""What a replica needs to come back with the newest weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from actors.rollout_replica import Health
from raytune.errors import RolloutError


class Refit(Protocol):
    """Whoever has the newest weights."""

    async def refit(self, replica: Any) -> int:
        """Give one replica the newest weights and return their version. Errors: RolloutError, and Ray's."""
        ...


# Made by the publisher of weights, read by the router.
@dataclass(frozen=True, slots=True)
class Parcel:
    """The newest version, lying ready on the nodes; a Refit that needs nobody else.

    Args: kind: of the files: "flat", "safetensors", or "adapter". paths: by node id; "" for every node that is not
    named. info: what `init_transfer` wants. version 0 without paths: what the engines read from disk.

    Example: Parcel(7, "flat", {"4f1c...": "/dev/shm/raytune-.../slot-1.json"}, {"entries": [...]})
    """

    version: int = 0
    kind: Literal["flat", "safetensors", "adapter"] = "flat"
    paths: Mapping[str, str] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    async def refit(self, replica: Any) -> int:
        if not self.paths:
            health: Health = await replica.health.remote()
            if health.stale:
                raise RolloutError("half an update is in the engine, and there are no newest weights")
            return health.version
        node = await replica.node.remote()
        path = self.paths.get(node, self.paths.get("", ""))
        if not path:
            raise RolloutError(f"weights {self.version} do not lie on node {node}")
        if self.kind == "adapter":
            await replica.add_adapter.remote(path, self.version)
            return self.version
        await replica.init_transfer.remote(dict(self.info))
        await replica.receive.remote({"kind": self.kind, "path": path, "version": self.version}, self.version)
        return self.version
