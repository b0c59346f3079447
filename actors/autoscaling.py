"""Whether a cluster adds nodes when a run waits for them. Ray tells nobody in public, so this reads what it notes.

Autoscaler 2 (`ray up` and KubeRay) raises a flag in Ray's key-value store and its nodes carry the name of their group.
Autoscaler 1 puts a report there. A cluster of `ray start` alone has the flag or the report too, but no types of nodes.
"""

import json
from collections.abc import Sequence
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_get

_NODE_GROUP = "ray.io/node-group"
_FLAG, _FLAG_NAMESPACE = "__autoscaler_v2_enabled", "__autoscaler"
_REPORT = "__autoscaling_status"
# Ray's name for the type of a node that no autoscaler has started: this, and the node's id.
_NO_TYPE = "node_"


def adds_nodes() -> bool:
    """Whether an autoscaler watches the connected cluster."""
    if _internal_kv_get(_FLAG, namespace=_FLAG_NAMESPACE) == b"1":
        return has_node_groups(ray.nodes())
    return reports_node_types(_internal_kv_get(_REPORT))


def has_node_groups(nodes: Sequence[dict[str, Any]]) -> bool:
    """Autoscaler 2: whether a living node belongs to a group. Args: nodes: as ray.nodes() gives them."""
    return any(node["Alive"] and node["Labels"].get(_NODE_GROUP) for node in nodes)


def reports_node_types(report: bytes | None) -> bool:
    """Autoscaler 1: whether a node has a type that somebody defined. Args: report: JSON, None before the first one."""
    summary = (json.loads(report) if report else {}).get("autoscaler_report") or {}
    types = (summary.get("node_type_mapping") or {}).values()
    return any(not str(kind).startswith(_NO_TYPE) for kind in types)
