import json

from raytune.monitors.jsonl import JsonlMonitor


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_entry_is_one_line_at_once(tmp_path):
    path = tmp_path / "sub" / "log.jsonl"
    monitor = JsonlMonitor(path, history=[])
    monitor.log(1, {"current_steps": 1, "loss": 2.5})
    assert lines(path) == [{"current_steps": 1, "loss": 2.5}]
    monitor.log(2, {"current_steps": 2, "loss": 2.0})
    monitor.finish()
    assert [entry["current_steps"] for entry in lines(path)] == [1, 2]


def test_a_resumed_run_drops_what_lies_past_its_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"current_steps": 1}\n{"current_steps": 2}\n{"current_st')
    monitor = JsonlMonitor(path, history=[{"current_steps": 1}])
    monitor.log(2, {"current_steps": 2})
    monitor.finish()
    assert lines(path) == [{"current_steps": 1}, {"current_steps": 2}]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_what_has_no_value_is_null(tmp_path):
    path = tmp_path / "log.jsonl"
    monitor = JsonlMonitor(path, history=[{"reward": float("nan")}])
    monitor.log(2, {"reward": float("inf"), "kl": 0.5})
    monitor.finish()
    assert lines(path) == [{"reward": None}, {"reward": None, "kl": 0.5}]
