"""What has to lie in the folders of models and adapters; looked at without loading a library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from raytune.config.adapter import AdapterConfig
from raytune.errors import ModelError
from raytune.models.embedded import folder_contents, resolve_model_path

ADAPTER_CONFIG = "adapter_config.json"
VALUE_HEAD = "value_head.safetensors"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def check_config(path: str) -> None:
    """Raise ModelError for a model folder without config.json."""
    contents = folder_contents(path)
    if "config.json" in contents:
        return
    raise ModelError(
        f"model folder '{path}' has no config.json",
        where=f"there is: {', '.join(contents) or 'nothing'}",
        fix="It is an adapter: name it in adapter_name_or_path, and its base in model_name_or_path."
        if ADAPTER_CONFIG in contents
        else "Give a folder in Hugging Face's format.",
    )


def check_weights(path: str) -> None:
    """Raise ModelError for a model folder without weight files, or with an empty one."""
    contents = folder_contents(path)
    if not any(name in contents for name in WEIGHT_FILES):
        raise ModelError(
            f"model folder '{path}' has no weights: none of {', '.join(WEIGHT_FILES)}",
            where=f"there is: {', '.join(contents)}",
            fix="Copy the weight files into it, or set train_from_scratch: true to start from random ones.",
        )
    empty = [name for name in contents if name.endswith((".safetensors", ".bin")) and not _size(path, name)]
    if empty:
        raise ModelError(f"weight file {path}/{empty[0]} is empty", fix="Copy or download it again.")


def adapter_path(name: str, subfolder: str | None = None) -> Path:
    """Return the local folder of an adapter, a path or a hub id. Raises ModelError when it holds none."""
    try:
        folder = Path(resolve_model_path(name)) / (subfolder or "")
    except ModelError as error:
        raise ModelError(
            f"there is no adapter '{name}': {error.what.removeprefix('model ')}",
            where=error.where,
            fix="Give adapter_name_or_path the output_dir of a lora run, one of its checkpoints, or a hub id.",
        ) from None
    if folder.is_dir() and (folder / ADAPTER_CONFIG).is_file():
        return folder
    contents = folder_contents(folder) if folder.is_dir() else []
    checkpoints = [entry for entry in contents if (folder / entry / ADAPTER_CONFIG).is_file()]
    raise ModelError(
        f"adapter folder '{folder}' has no {ADAPTER_CONFIG}",
        where=f"there is: {', '.join(contents) or 'nothing'}",
        fix=f"Did you mean {folder / checkpoints[-1]}?"
        if checkpoints
        else "Give the output_dir of a lora run, or one of its checkpoints.",
    )


def find_adapters(cfg: AdapterConfig, *, is_trainable: bool = True) -> tuple[list[Path], Path | None]:
    """Folders of the adapters that become part of the base, and of the one that goes on. Raises ModelError."""
    paths = [adapter_path(name, cfg.adapter_folder) for name in cfg.adapter_name_or_path]
    goes_on = bool(paths) and not (is_trainable and cfg.create_new_adapter)
    return (paths[:-1], paths[-1]) if goes_on else (paths, None)


def reward_folder(name: str, kind: Literal["lora", "full"], adapters: Sequence[str] = ()) -> Path:
    """Return the folder with a reward model's value head: that of its last adapter, or the model's.

    Args: name, kind, adapters: reward_model, its type and its adapters.
    Raises: ModelError for what stage rm has not saved, or has saved in the other form.
    """
    folder = Path(resolve_model_path(name))
    has_adapter, has_model = ((folder / file).is_file() for file in (ADAPTER_CONFIG, "config.json"))
    if kind == "lora" and not has_adapter and has_model:
        raise ModelError(
            f"the reward model '{folder}' is a whole model, and reward_model_type is lora",
            fix="Set reward_model_type: full.",
        )
    if kind == "full" and has_adapter and not has_model:
        raise ModelError(
            f"the reward model '{folder}' is an adapter, and reward_model_type is full",
            fix="Set reward_model_type: lora, or name its base in reward_model and the adapter in "
            "reward_model_adapters.",
        )
    source = adapter_path(adapters[-1]) if adapters else folder
    if not (source / VALUE_HEAD).is_file():
        raise ModelError(
            f"'{source}' is no reward model: it has no {VALUE_HEAD}", fix="Name the output_dir of a run of stage rm."
        )
    return source


def _size(path: str, name: str) -> int:
    return (Path(path) / name).stat().st_size
