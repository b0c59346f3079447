"""LLaMA-Factory in a virtual environment of its own, on CPU."""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.watch import RunError

VERSION = "0.9.5"
TORCH = "2.13.0"
# Its torchvision and torchaudio exist as CUDA builds only and break imports beside a CPU build of torch. Text training
# uses neither: transformers does without the first, and an empty module satisfies `import torchaudio`.
LEFT_OUT = ("torchvision", "torchaudio")
_READY = "ready.json"
# What makes LLaMA-Factory start torchrun, Ray or another trainer instead of training in its own process.
_LAUNCHERS = ("USE_RAY", "FORCE_TORCHRUN", "USE_MCA", "USE_KT", "USE_V1", "NPROC_PER_NODE", "PYTHONPATH")


class Opponent:
    """An installed LLaMA-Factory: `folder` holds its venv, the torchaudio stub and the list of its packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        self.command = str(folder / "venv" / "bin" / "llamafactory-cli")

    def install(self) -> dict[str, str]:
        """Install on the first call. Returns the versions of its packages."""
        ready = self.folder / _READY
        wanted = {"llamafactory": VERSION, "torch": TORCH}
        if ready.is_file():
            packages = json.loads(ready.read_text())
            if all(packages.get(name, "").split("+")[0] == version for name, version in wanted.items()):
                return packages
        self.folder.mkdir(parents=True, exist_ok=True)
        venv.create(self.folder / "venv", with_pip=True, clear=True)
        self._pip("install", f"torch=={TORCH}")
        self._pip("install", "--no-deps", f"llamafactory=={VERSION}")
        self._pip("install", f"torch=={TORCH}", *self._requirements())
        stub = self.folder / "stubs" / "torchaudio" / "__init__.py"
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text('"""Stands in for torchaudio; text training calls nothing of it."""\n')
        packages = self._versions()
        temporary = ready.with_suffix(".part")
        temporary.write_text(json.dumps(packages, indent=1))
        temporary.replace(ready)
        return packages

    def env(self, threads: int | None) -> dict[str, str]:
        """Environment of its runs: offline, in one process, with the stub on the path."""
        env = {key: value for key, value in os.environ.items() if key not in _LAUNCHERS}
        env |= {"PYTHONPATH": str(self.folder / "stubs"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if threads is not None:
            env["OMP_NUM_THREADS"] = str(threads)
        return env

    def run(self, *arguments: str) -> str:
        """Run llamafactory-cli. Returns what it prints."""
        return self._output([self.command, *arguments])

    def ask(self, code: str, *arguments: str) -> str:
        """Run a line of Python among its packages. Returns what it prints."""
        return self._output([str(self.python), "-c", code, *arguments])

    def _output(self, command: list[str]) -> str:
        done = subprocess.run(command, env=self.env(None), capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            raise RunError(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}")
        return done.stdout

    def _requirements(self) -> list[str]:
        listed = self.ask("import importlib.metadata as m; print('\\n'.join(m.requires('llamafactory')))").splitlines()
        plain = [line for line in listed if "extra ==" not in line]
        return [line for line in plain if _name(line) not in (*LEFT_OUT, "torch")]

    def _versions(self) -> dict[str, str]:
        code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
        return json.loads(self.ask(code))

    def _pip(self, *arguments: str) -> None:
        print("pip", *arguments, file=sys.stderr, flush=True)
        subprocess.run([str(self.python), "-m", "pip", "--quiet", *arguments], check=True, timeout=3600)


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9_.-]+", requirement)
    return match.group() if match else requirement
