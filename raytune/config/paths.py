"""Paths of a run, made absolute once: processes on a cluster work in folders of their own."""

from functools import partial
from pathlib import Path

from raytune.config.run import RunConfig


def absolute_paths(cfg: RunConfig) -> RunConfig:
    """Return the config with every local path absolute; names of data sets and hub ids stay.

    A relative output_dir lies below storage_path when there is one, so that all nodes see it.
    """
    storage = _absolute(cfg.cluster.storage_path)
    output = cfg.output.output_dir
    if storage is not None and output is not None:
        output = str(Path(storage) / Path(output).expanduser())
    reward = cfg.reward
    resume = cfg.output.resume_from_checkpoint
    code = partial(_code, shipped=_ships_this_folder(cfg))
    changes = {
        "model": {"model_name_or_path": _if_there(cfg.model.model_name_or_path)},
        "adapter": {"adapter_name_or_path": tuple(map(_if_there, cfg.adapter.adapter_name_or_path))},
        "data": {
            "dataset": tuple(map(_if_path, cfg.data.dataset)),
            "eval_dataset": tuple(map(_if_path, cfg.data.eval_dataset)),
            "dataset_dir": _unless_hub(cfg.data.dataset_dir),
            "tokenized_path": _absolute(cfg.data.tokenized_path),
        },
        "dataio": {"data_cache_dir": _absolute(cfg.dataio.data_cache_dir)},
        "cluster": {"storage_path": storage},
        "reward": {
            "reward_funcs": tuple(code(one) for one in reward.reward_funcs),
            "reward_model": None if reward.reward_model is None else _if_there(reward.reward_model),
            "reward_model_adapters": tuple(map(_if_there, reward.reward_model_adapters)),
        },
        "rl": {"environment": None if cfg.rl.environment is None else code(cfg.rl.environment)},
        "output": {
            "output_dir": _absolute(output),
            "logging_dir": _absolute(cfg.output.logging_dir),
            "resume_from_checkpoint": _if_there(resume) if isinstance(resume, str) else resume,
        },
    }
    groups = dict(cfg)
    return cfg.model_copy(update={name: groups[name].model_copy(update=keys) for name, keys in changes.items()})


def is_shared(cfg: RunConfig, *paths: Path) -> bool:
    """Whether all these absolute paths lie below storage_path, which every node sees."""
    storage = cfg.cluster.storage_path
    return storage is not None and all(path.is_relative_to(storage) for path in paths)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def _if_there(name: str) -> str:
    return str(Path(name).expanduser().absolute()) if Path(name).expanduser().exists() else name


def _if_path(name: str) -> str:
    """A file's or folder's path absolute; a bare name may be one of dataset_info.json even where a folder has it."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.is_file() or ("/" in name and path.is_dir()) else name


def _code(spec: str, *, shipped: bool) -> str:
    """What a file defines, file.py:name, with its path absolute; names of built-ins and package.module:name stay.

    Args: shipped: every process works in its own copy of this folder, so what lies below it is found there.
    """
    file, colon, name = spec.rpartition(":")
    path = Path(file).expanduser()
    below = shipped and not path.is_absolute() and ".." not in path.parts
    return f"{path.absolute()}:{name}" if colon and file.endswith(".py") and not below else spec


def _ships_this_folder(cfg: RunConfig) -> bool:
    """Whether Ray is told to copy the folder that the run is started in to every node."""
    runtime_env = (cfg.cluster.ray_init_kwargs or {}).get("runtime_env") or {}
    folder = runtime_env.get("working_dir")
    return isinstance(folder, str) and Path(folder).expanduser().resolve() == Path.cwd()


def _unless_hub(dataset_dir: str) -> str:
    is_hub = dataset_dir == "ONLINE" or dataset_dir.startswith("REMOTE:")
    return dataset_dir if is_hub else str(Path(dataset_dir).expanduser().absolute())
