"""The newest version on its way to a replica that comes late, even on a node that has none of it."""

from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.rollout_weights import Parcel
from actors.weights_messages import Sent, WeightSettings
from actors.weights_receiver import WeightReceiver
from raytune.errors import RolloutError


def start_receiver(node: str, settings: WeightSettings) -> Any:
    """Start a WeightReceiver on a node."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(WeightReceiver).options(num_cpus=0, scheduling_strategy=there).remote(settings)


# Made by WeightPublisher, read by the router; implements actors.rollout_weights.Refit.
@dataclass(frozen=True, slots=True)
class Shipment:
    """Args: parcel: where the version lies. sender: the trainer rank that can send it to one more node.

    Example: Shipment(Parcel(7, "flat", {...}, {...}), rank, settings)
    """

    parcel: Parcel
    sender: Any
    settings: WeightSettings

    async def refit(self, replica: Any) -> int:
        """As Refit.refit."""
        node = await replica.node.remote()
        if node in self.parcel.paths:
            return await self.parcel.refit(replica)
        receiver = start_receiver(node, self.settings)
        sent: Sent = await self.sender.resend_weights.remote({node: receiver})
        if node not in sent.paths:
            raise RolloutError(f"weights {sent.version} did not reach the node of a replica: {sent.missed.get(node)}")
        parcel = replace(self.parcel, version=sent.version, paths=dict(sent.paths))
        return await parcel.refit(replica)
