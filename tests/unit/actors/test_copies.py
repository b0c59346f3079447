import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from actors import copies

USE = "import sys; from actors import copies; print(copies.claim(sys.argv[1]), flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def _own_tmp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_copies_stay_while_one_process_uses_them_and_go_after_it_was_killed(tmp_path: Path) -> None:
    users = [
        subprocess.Popen([sys.executable, "-c", USE, "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folder = tmp_path / "raytune-run"
    assert [user.stdout.readline().strip() for user in users if user.stdout] == [str(folder)] * 2
    (folder / "model.safetensors").write_bytes(b"weights")
    for user in users:
        copies.sweep()
        assert (folder / "model.safetensors").exists()
        user.kill()
        user.communicate()
    copies.sweep()
    assert not folder.exists()


def test_folders_of_others_are_not_touched(tmp_path: Path) -> None:
    other = tmp_path / "raytune-notes"
    other.mkdir()
    copies.sweep()
    assert other.is_dir()


def test_a_run_forgets_its_own_copies_at_once_and_may_fetch_again(tmp_path: Path) -> None:
    folder = copies.claim("run")
    assert folder == copies.claim("run") == tmp_path / "raytune-run"
    copies.sweep()
    assert folder.is_dir()
    copies.forget("run")
    assert not folder.exists()
    assert copies.claim("run").is_dir()
    copies.forget("run")
