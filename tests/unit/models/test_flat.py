"""The two flat files: what was written is what is read, or an error says why not."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raytune.errors import RolloutError
from raytune.models.entries import Entry
from raytune.models.flat import FlatWriter, Header, map_file, verify, view_of
from raytune.models.updates import UpdateReader

ENTRIES = [Entry("a", "float32", (3, 5)), Entry("b", "bfloat16", (7,)), Entry("c", "int64", ())]


def values(seed: int) -> list[tuple[Entry, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (ENTRIES[0], torch.randn(3, 5, generator=generator)),
        (ENTRIES[1], torch.randn(7, generator=generator)),
        (ENTRIES[2], torch.tensor(seed)),
    ]


def publish(writer: FlatWriter, version: int, seed: int) -> Path:
    writer.begin()
    writer.seal(version, writer.write(values(seed)))
    return writer.header_path


def announced() -> list[tuple[str, str, tuple[int, ...]]]:
    return [(entry.name, entry.dtype, entry.shape) for entry in ENTRIES]


def read(path: Path, version: int) -> dict[str, Tensor]:
    update = {"kind": "flat", "path": str(path), "version": version}
    reader = UpdateReader()
    reader.verify(update, version, announced())
    return {name: value.clone() for name, value in reader.tensors(update)}


def test_tensors_come_back_in_the_dtype_of_the_transfer(tmp_path: Path) -> None:
    path = publish(FlatWriter(tmp_path, ENTRIES, bucket_bytes=64), 7, seed=1)
    found = read(path, 7)
    for entry, value in values(1):
        assert torch.equal(found[entry.name], value.to(entry.torch_dtype))
    # 60, 14 and 8 bytes, each at a multiple of 64.
    assert Header.read(path).offsets == (0, 64, 128)
    assert len(Header.read(path).buckets) == 3
    assert path.with_suffix(".bin").stat().st_size == 192


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    path = publish(FlatWriter(tmp_path, ENTRIES, bucket_bytes=64), 7, seed=1)
    verify(path, 7)
    for place in (0, 30, 59, 64, 130, 191):
        with path.with_suffix(".bin").open("r+b") as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 16]))
            file.flush()
            with pytest.raises(RolloutError, match=r"bytes \d+ to \d+ of .* are damaged"):
                verify(path, 7)
            file.seek(place)
            file.write(bytes([byte]))


def test_two_slots_are_written_in_turns_and_reused(tmp_path: Path) -> None:
    writer = FlatWriter(tmp_path, ENTRIES)
    first, second = publish(writer, 1, seed=1), publish(writer, 2, seed=2)
    assert first != second
    assert torch.equal(read(first, 1)["a"], values(1)[0][1])
    assert torch.equal(read(second, 2)["a"], values(2)[0][1])
    inode = first.with_suffix(".bin").stat().st_ino
    assert publish(writer, 3, seed=3) == first
    assert first.with_suffix(".bin").stat().st_ino == inode
    assert torch.equal(read(second, 2)["a"], values(2)[0][1])
    with pytest.raises(RolloutError, match="holds version 3, not 1"):
        read(first, 1)


def test_a_slot_that_is_being_written_cannot_be_read(tmp_path: Path) -> None:
    writer = FlatWriter(tmp_path, ENTRIES)
    path = publish(writer, 1, seed=1)
    publish(writer, 2, seed=2)
    writer.begin()
    with pytest.raises(RolloutError, match="is not there: its weights are being written"):
        verify(path, 1)


def test_a_reader_whom_the_writer_overtakes_is_told(tmp_path: Path) -> None:
    writer = FlatWriter(tmp_path, ENTRIES)
    path = publish(writer, 1, seed=1)
    reading = UpdateReader().tensors({"kind": "flat", "path": str(path), "version": 1})
    next(reading)
    publish(writer, 2, seed=2)
    publish(writer, 3, seed=3)
    with pytest.raises(RolloutError, match="was written anew while version 1 was read"):
        list(reading)


def test_missing_surplus_and_misshapen_tensors_are_refused(tmp_path: Path) -> None:
    writer = FlatWriter(tmp_path, ENTRIES)
    whole = values(1)
    for wrong, message in (
        (whole[:2], r"c \(\) was to be published, but there came nothing"),
        (whole[1:], "a .* was to be published, but there came b"),
        ([(ENTRIES[0], torch.zeros(5, 3)), *whole[1:]], r"there came a \(5, 3\)"),
        ([*whole, whole[0]], "a came after the last of 3 weights"),
    ):
        writer.begin()
        with pytest.raises(RolloutError, match=message):
            writer.write(wrong)
        assert not writer.header_path.exists()


def test_other_tensors_than_announced_are_refused(tmp_path: Path) -> None:
    path = publish(FlatWriter(tmp_path, ENTRIES), 1, seed=1)
    update = {"kind": "flat", "path": str(path), "version": 1}
    with pytest.raises(RolloutError, match="does not hold the weights that were announced: d differs"):
        UpdateReader().verify(update, 1, [*announced(), ("d", "float32", (1,))])


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = publish(FlatWriter(tmp_path, ENTRIES), 1, seed=1)
    os.truncate(path.with_suffix(".bin"), 100)
    with pytest.raises(RolloutError, match="should have 192 bytes, it has 100"):
        verify(path, 1)


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    path = publish(FlatWriter(tmp_path, ENTRIES), 1, seed=1)
    path.write_text('{"version": 1}')
    with pytest.raises(RolloutError, match="does not describe weights"):
        verify(path, 1)


def test_buckets_become_the_same_file_on_another_node(tmp_path: Path) -> None:
    here, there = FlatWriter(tmp_path / "here", ENTRIES, bucket_bytes=64), FlatWriter(tmp_path / "there", ENTRIES)
    header = Header.read(publish(here, 4, seed=4))
    there.begin()
    there.seal(4, [there.put(start, here.bucket(start, stop), digest) for start, stop, digest in header.buckets])
    assert torch.equal(read(there.header_path, 4)["b"], values(4)[1][1].to(torch.bfloat16))
    start, stop, digest = header.buckets[0]
    with pytest.raises(RolloutError, match=f"bytes {start} to {stop} of the weights changed on their way"):
        there.put(start, here.bucket(start, stop) ^ 1, digest)


def test_no_room_in_shared_memory_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match=r"need [\d,]+ bytes of shared memory in .*, [\d,]+ are free"):
        FlatWriter(tmp_path, [Entry("huge", "float32", (1 << 50,))])


def test_views_do_not_copy(tmp_path: Path) -> None:
    path = publish(FlatWriter(tmp_path, ENTRIES), 1, seed=1)
    file = map_file(path.with_suffix(".bin"), 192)
    assert view_of(file, ENTRIES[1], 64).data_ptr() == file.data_ptr() + 64
