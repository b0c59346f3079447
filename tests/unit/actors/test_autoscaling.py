"""The reports are those of Ray 2.60 clusters: one of `ray start` alone, one with an autoscaling config."""

import json

import ray
from ray._private import ray_constants

from actors import autoscaling
from actors.autoscaling import has_node_groups, reports_node_types


def report(**types: str) -> bytes:
    return json.dumps({"monitor_pid": 1, "autoscaler_report": {"node_type_mapping": types}}).encode()


def test_a_first_autoscaler_names_the_types_of_its_nodes():
    assert reports_node_types(report(**{"10.0.0.1": "ray.head.default"}))
    assert reports_node_types(report(**{"10.0.0.1": "node_4f1c", "10.0.0.2": "gpu_worker"}))


def test_a_cluster_started_by_hand_has_no_types():
    assert not reports_node_types(report(**{"10.0.0.1": "node_4f1c"}))


def test_no_report_yet_is_no_autoscaler():
    assert not reports_node_types(None)
    assert not reports_node_types(b'{"monitor_pid": 1}')


def test_a_second_autoscaler_marks_its_nodes():
    by_hand = {"Alive": True, "Labels": {"ray.io/node-id": "4f1c"}}
    head = {"Alive": True, "Labels": {"ray.io/node-id": "4f1d", "ray.io/node-group": "head"}}
    assert has_node_groups([by_hand, head])
    assert not has_node_groups([by_hand, {**head, "Alive": False}])


def test_ray_still_has_these_names():
    raylet = vars(ray._raylet)
    assert raylet["GCS_AUTOSCALER_V2_ENABLED_KEY"] == autoscaling._FLAG
    assert raylet["GCS_AUTOSCALER_STATE_NAMESPACE"] == autoscaling._FLAG_NAMESPACE
    assert raylet["RAY_NODE_GROUP_KEY"] == autoscaling._NODE_GROUP
    assert autoscaling._REPORT == ray_constants.DEBUG_AUTOSCALING_STATUS
