"""Temporary layers: each has its own bytes, their total size is bounded, and no directory ever shows them."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from backyfs.errors import MountError
from backyfs.model import VersionUid
from backyfs.mount.overlay import Layer, Scratch

UID = VersionUid("6f1c0b34-0000-4000-8000-00000000000a")
CHUNK = 4096
SIZE = 64 * CHUNK


def opened(scratch: Scratch, size: int = SIZE) -> Layer:
    layer = scratch.open(UID, size, for_writing=True)
    assert layer is not None
    return layer


def open_files(directory: Path) -> int:
    """Count the open files of this process below a directory; other tests may leave theirs to the garbage collector."""
    opened_now = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            opened_now += os.readlink(f"/proc/self/fd/{number}").startswith(f"{directory}/")
    return opened_now


def test_written_bytes_are_read_back(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path))
    layer = opened(scratch)
    layer.write(CHUNK, b"a" * CHUNK, {})
    layer.sync()
    assert layer.read(CHUNK, 2 * CHUNK) == b"a" * CHUNK
    scratch.release(layer)


def test_readers_have_no_layer(tmp_path: Path) -> None:
    assert Scratch(str(tmp_path)).open(UID, SIZE, for_writing=False) is None


def test_each_writer_has_its_own_layer(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path))
    one, other = opened(scratch), opened(scratch)
    one.write(0, b"a" * CHUNK, {})
    assert (one.is_empty, other.is_empty) == (False, True)
    scratch.release(one)
    other.write(0, b"b" * CHUNK, {})
    assert other.read(0, CHUNK) == b"b" * CHUNK
    scratch.release(other)


def test_the_directory_is_always_empty(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path))
    layer = opened(scratch)
    layer.write(0, b"a" * CHUNK, {})
    assert list(tmp_path.iterdir()) == []
    scratch.release(layer)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_files(tmp_path: Path) -> None:
    program = f"""
import os, signal
from backyfs.mount.overlay import Scratch

layer = Scratch({str(tmp_path)!r}).open("{UID}", {SIZE}, for_writing=True)
layer.write(0, b"a" * {CHUNK}, {{}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    assert list(tmp_path.iterdir()) == []


def test_releasing_a_layer_closes_its_file(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path))
    layer = opened(scratch)
    layer.write(0, b"a" * CHUNK, {})
    assert open_files(tmp_path) == 1
    scratch.release(layer)
    assert open_files(tmp_path) == 0


def test_the_total_size_of_layers_is_bounded(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path), most_bytes=4 * CHUNK)
    one, other = opened(scratch), opened(scratch)
    one.write(0, b"a" * 3 * CHUNK, {})
    with pytest.raises(OSError, match="No space left") as caught:
        other.write(0, b"b" * 2 * CHUNK, {})
    assert caught.value.errno == errno.ENOSPC
    assert other.is_empty
    other.write(0, b"b" * CHUNK, {})
    scratch.release(one)
    scratch.release(other)


def test_overwriting_bytes_takes_no_more_room(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path), most_bytes=2 * CHUNK)
    layer = opened(scratch)
    for byte in (b"a", b"b", b"c"):
        layer.write(0, byte * 2 * CHUNK, {})
    assert layer.read(0, CHUNK) == b"c" * CHUNK
    scratch.release(layer)


def test_releasing_a_layer_makes_room(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path), most_bytes=2 * CHUNK)
    for _ in range(3):
        layer = opened(scratch)
        layer.write(0, b"a" * 2 * CHUNK, {})
        scratch.release(layer)
        scratch.release(layer)  # again, but the room is not returned twice
    one, other = opened(scratch), opened(scratch)
    one.write(0, b"a" * 2 * CHUNK, {})
    with pytest.raises(OSError, match="No space left"):
        other.write(0, b"b" * CHUNK, {})
    scratch.release(one)
    scratch.release(other)


def test_a_failed_write_takes_no_room(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path), most_bytes=2 * CHUNK)
    failing = opened(scratch, size=4 * CHUNK)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            failing.write(0, b"a" * 2 * CHUNK, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    layer = opened(scratch)
    layer.write(0, b"a" * 2 * CHUNK, {})
    scratch.release(layer)
    scratch.release(failing)


def test_a_missing_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="missing cannot store the writes of a journal: No such file or directory; "):
        Scratch(str(tmp_path / "missing"))
