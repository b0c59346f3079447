from pathlib import Path

from raytune.config.load import load_config
from raytune.config.paths import absolute_paths, is_shared
from raytune.config.run import RunConfig


def config(**keys: object) -> RunConfig:
    return load_config(
        {"model_name_or_path": "owner/model", "dataset": "alpaca", "output_dir": "saves/x", **keys}
    ).config


def test_local_paths_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.jsonl").write_text("{}")
    cfg = absolute_paths(config(model_name_or_path="model", dataset="rows.jsonl,alpaca", dataset_dir="data"))
    assert cfg.model.model_name_or_path == str(tmp_path / "model")
    assert cfg.data.dataset == (str(tmp_path / "rows.jsonl"), "alpaca")
    assert cfg.data.dataset_dir == str(tmp_path / "data")
    assert cfg.output.output_dir == str(tmp_path / "saves/x")
    assert absolute_paths(config()).model.model_name_or_path == "owner/model"


def test_files_of_functions_and_environments_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    funcs = "number,trl.rewards:accuracy_reward,mine.py:short,~/mine.py:short,/a/b.py:f"
    cfg = absolute_paths(config(stage="grpo", reward_funcs=funcs, environment="sub/talk.py:Talk"))
    assert cfg.reward.reward_funcs == (
        "number",
        "trl.rewards:accuracy_reward",
        f"{tmp_path}/mine.py:short",
        "/home/me/mine.py:short",
        "/a/b.py:f",
    )
    assert cfg.rl.environment == f"{tmp_path}/sub/talk.py:Talk"
    assert absolute_paths(config(stage="grpo", environment="mine.talks:Talk")).rl.environment == "mine.talks:Talk"


def test_files_that_ray_ships_to_every_process_are_found_in_its_copy(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    keys = {"stage": "grpo", "reward_funcs": "mine.py:short,../its.py:short", "environment": "talk.py:Talk"}
    cfg = absolute_paths(config(**keys, ray_init_kwargs={"runtime_env": {"working_dir": "."}}))
    assert cfg.reward.reward_funcs == ("mine.py:short", f"{tmp_path}/here/../its.py:short")
    assert cfg.rl.environment == "talk.py:Talk"
    for folder in ("sub", "s3://bucket/code.zip", None):
        cfg = absolute_paths(config(**keys, ray_init_kwargs={"runtime_env": {"working_dir": folder}}))
        assert cfg.rl.environment == f"{tmp_path}/here/talk.py:Talk"


def test_folders_of_rows_become_absolute_and_hubs_and_addresses_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets" / "one").mkdir(parents=True)
    cfg = absolute_paths(config(dataset="sets/one,sets,s3://bucket/a.jsonl,owner/set", dataset_dir="ONLINE"))
    assert cfg.data.dataset == (str(tmp_path / "sets" / "one"), "sets", "s3://bucket/a.jsonl", "owner/set")
    assert cfg.data.dataset_dir == "ONLINE"
    assert absolute_paths(config(dataset_dir="REMOTE:owner/sets")).data.dataset_dir == "REMOTE:owner/sets"


def test_a_relative_output_dir_lies_below_the_storage_path():
    cfg = absolute_paths(config(storage_path="/nfs/team"))
    assert cfg.output.output_dir == "/nfs/team/saves/x"
    assert absolute_paths(config(storage_path="/nfs/team", output_dir="/local/x")).output.output_dir == "/local/x"


def test_only_what_lies_below_the_storage_path_is_shared():
    cfg = absolute_paths(config(storage_path="/nfs/team"))
    assert is_shared(cfg, Path("/nfs/team/saves"), Path("/nfs/team/cache"))
    assert not is_shared(cfg, Path("/nfs/team/saves"), Path("/home/me/cache"))
    assert not is_shared(absolute_paths(config()), Path("/nfs/team"))
