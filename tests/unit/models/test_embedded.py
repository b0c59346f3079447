"""From a model's name to its folder: embedded, local, hub; and what is said when there is none."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer

from raytune.errors import ModelError
from raytune.models import embedded
from raytune.models.embedded import EMBEDDED_NAME, resolve_model_path

# Makes the model with a conversion that takes a while and notes each time it runs.
MAKE_SLOWLY = """
import sys, time
from pathlib import Path
from raytune.models import embedded
def convert(source, target):
    with open(sys.argv[1], "a") as file:
        file.write("made\\n")
    target.mkdir()
    (target / "config.json").write_text("{}")
    time.sleep(0.5)
embedded._convert = convert
embedded._gguf_file = lambda: Path("model.gguf")
print(embedded.resolve_model_path("smollm2-135m-instruct"))
"""


def test_local_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model_path(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "a/b/c"])
def test_missing_folder_is_not_looked_up_at_a_hub(name: str) -> None:
    with pytest.raises(ModelError, match=r"does not exist.*Give an existing folder"):
        resolve_model_path(name)


def test_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="is a file, not a folder"):
        resolve_model_path(str(tmp_path / "model.safetensors"))


def test_no_network_says_what_was_looked_for_where_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Got: ConnectError: Name or service not known\nPlease check your connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ModelError) as caught:
        resolve_model_path("owner/name", cache_dir="/models")
    said = str(caught.value)
    assert "owner/name" in said
    assert "ConnectError" in said
    assert "/models" in said
    assert "HF_ENDPOINT" in said
    assert EMBEDDED_NAME in said


def test_hub_arguments_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return "/snapshot"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_model_path("owner/name", revision="v2", cache_dir="/c", token="t", weights=False) == "/snapshot"
    assert (asked["name"], asked["revision"], asked["cache_dir"], asked["token"]) == ("owner/name", "v2", "/c", "t")
    assert isinstance(asked["ignore_patterns"], list)
    assert "*.safetensors" in asked["ignore_patterns"]


def test_modelscope_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="pip install modelscope"):
        resolve_model_path("owner/name")


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"pip install 'raytune\[demo\]'"):
        resolve_model_path(EMBEDDED_NAME)


def test_two_processes_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notes = tmp_path / "notes"
    command = [sys.executable, "-c", MAKE_SLOWLY, str(notes)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0].strip() for process in running]
    folder = tmp_path / "cache" / "raytune" / "models" / EMBEDDED_NAME
    assert answers == [str(folder)] * 2
    assert notes.read_text() == "made\n"
    assert [path.name for path in folder.parent.iterdir() if not path.name.startswith(".")] == [EMBEDDED_NAME]


def test_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_source: Path, target: Path) -> None:
        target.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "_convert", fail)
    monkeypatch.setattr(embedded, "_gguf_file", lambda: Path("model.gguf"))
    stale = embedded.embedded_folder().with_name(f"{EMBEDDED_NAME}.tmp-1")
    stale.mkdir(parents=True)
    with pytest.raises(ModelError, match="No space left on device"):
        resolve_model_path(EMBEDDED_NAME)
    assert list(stale.parent.glob("smollm2*")) == []


def test_wait_for_another_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "_gguf_file", lambda: Path("model.gguf"))
    monkeypatch.setattr(embedded, "LOCK_SECONDS", 0.1)
    folder = embedded.embedded_folder()
    folder.parent.mkdir(parents=True)
    with (
        embedded.FileLock(folder.parent / f".{EMBEDDED_NAME}.lock"),
        pytest.raises(ModelError, match="waited 0 s for another process"),
    ):
        resolve_model_path(EMBEDDED_NAME)


@pytest.mark.slow
def test_embedded_model_knows_paris() -> None:
    folder = resolve_model_path(EMBEDDED_NAME)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer is not None
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == 2
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, ids["input_ids"].shape[1] :])
