import errno
from traceback import StackSummary

import pytest
from tokenizers import Tokenizer, models
from torch.distributed.checkpoint import CheckpointException

from raytune.engine.disk import is_full, nearest, writes_to
from raytune.errors import CheckpointError, TrainError


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # What tokenizers and safetensors raise, and torch.distributed.checkpoint, whose exception is a BaseException.
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        CheckpointException("save", {0: (OSError("No space left on device (os error 28)"), StackSummary())}),
    ],
)
def test_every_librarys_full_disk_is_one_error_that_names_the_folder(tmp_path, error):
    with pytest.raises(CheckpointError, match="the disk is full") as caught, writes_to(tmp_path):
        raise error
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_cannot_be_written_is_not_called_full(tmp_path):
    with pytest.raises(CheckpointError, match="Permission denied"), writes_to(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_what_a_rust_library_meets_for_real_is_recognised(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write to"), writes_to(tmp_path):
        Tokenizer(models.BPE()).save(str(tmp_path / "no" / "such" / "folder.json"))


@pytest.mark.parametrize("error", [TimeoutError("late"), ValueError("x"), TrainError("rank 0 stopped: (os error 5)")])
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)) as caught, writes_to(tmp_path):
        raise error
    assert caught.value is error


def test_the_nearest_folder_that_exists_stands_for_one_to_be_made(tmp_path):
    assert nearest(tmp_path / "a" / "b") == tmp_path
    assert not is_full(tmp_path / "a")
