"""Every kind of target takes an image by the same rules, limited or not."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backyfs.config import IoConfig
from backyfs.errors import InterruptedByUser, ReaderGoneError, TargetError
from backyfs.targets.file import FileTarget
from backyfs.targets.limits import LimitedReadableTarget, LimitedTarget
from backyfs.targets.null import NullTarget
from backyfs.targets.opening import open_target, target_path
from backyfs.targets.protocol import ReadableTarget, Target
from backyfs.targets.stream import StreamTarget
from tests.support.images import random_bytes, random_image
from tests.support.repositories import PATIENCE_S
from tests.unit.test_sources import loop_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
SIZE = 3 * MIB + 512
OLD = random_bytes(4 * MIB, 9)


@dataclass(frozen=True)
class Kind:
    """A target that is open, and how to see what has become of it."""

    target: Target
    content: Callable[[], bytes] | None  # None: nobody can
    left: bytes                          # what stands where nothing is written


@contextmanager
def new_file(directory: Path) -> Iterator[Kind]:
    path = directory / "target"
    yield Kind(FileTarget(str(path), SIZE, replace=False), path.read_bytes, bytes(SIZE))


@contextmanager
def replaced_file(directory: Path) -> Iterator[Kind]:
    path = random_image(directory / "target", 4 * MIB, 9)
    yield Kind(FileTarget(str(path), SIZE, replace=True), path.read_bytes, bytes(SIZE))


@contextmanager
def continued_file(directory: Path) -> Iterator[Kind]:
    path = random_image(directory / "target", 4 * MIB, 9)
    target = FileTarget(str(path), SIZE, replace=False, kept_bytes=MIB)
    yield Kind(target, path.read_bytes, OLD[:MIB] + bytes(SIZE - MIB))


@contextmanager
def kept_file(directory: Path) -> Iterator[Kind]:
    path = random_image(directory / "target", 4 * MIB, 9)
    yield Kind(FileTarget(str(path), SIZE, replace=False, kept_bytes=SIZE), path.read_bytes, OLD[:SIZE])


@contextmanager
def limited_file(directory: Path) -> Iterator[Kind]:
    with kept_file(directory) as kind:
        assert isinstance(kind.target, ReadableTarget)
        yield Kind(LimitedReadableTarget(kind.target, simultaneous_writes=1), kind.content, kind.left)


@contextmanager
def device(directory: Path) -> Iterator[Kind]:
    image = random_image(directory / "old", 4 * MIB, 9)
    with loop_device(image) as path:
        yield Kind(FileTarget(path, SIZE, replace=True), lambda: Path(path).read_bytes()[:SIZE], OLD[:SIZE])


@contextmanager
def stream(directory: Path) -> Iterator[Kind]:
    path = directory / "stream"
    with path.open("wb") as file:
        yield Kind(StreamTarget(file.fileno(), stop=lambda: False), path.read_bytes, bytes(SIZE))


@contextmanager
def nowhere(directory: Path) -> Iterator[Kind]:
    yield Kind(NullTarget(), None, b"")


@contextmanager
def limited_nowhere(directory: Path) -> Iterator[Kind]:
    yield Kind(LimitedTarget(NullTarget(), simultaneous_writes=2), None, b"")


KINDS = [new_file, replaced_file, continued_file, kept_file, limited_file, device, stream, nowhere, limited_nowhere]


FORGETFUL = [nowhere, limited_nowhere]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request, tmp_path):
    with request.param(tmp_path) as kind:
        yield kind


# The contract


def test_what_is_written_zeroed_and_left_is_so(kind):
    target, blocks = kind.target, random_bytes(SIZE)
    target.write(0, blocks[:4096])
    target.write_zeros(4096, MIB)
    target.leave(4096 + MIB, MIB)
    target.write(4096 + 2 * MIB, bytearray(blocks[4096:8192]))
    target.write_zeros(8192 + 2 * MIB, 1000)
    target.write(9192 + 2 * MIB, memoryview(blocks)[9192 + 2 * MIB :])
    target.finish()
    target.close()
    if kind.content is not None:
        assert kind.content() == (
            blocks[:4096]
            + bytes(MIB)
            + kind.left[4096 + MIB : 4096 + 2 * MIB]
            + blocks[4096:8192]
            + bytes(1000)
            + blocks[9192 + 2 * MIB :]
        )


def test_one_that_begins_empty_has_zeros_where_nobody_wrote(kind):
    if not kind.target.begins_empty:
        assert kind.content is not None
        kind.target.close()
        return
    kind.target.write(MIB, b"x" * 512)
    kind.target.finish()
    kind.target.close()
    if kind.content is not None:
        assert kind.content() == bytes(MIB) + b"x" * 512 + bytes(SIZE - MIB - 512)


@pytest.mark.parametrize("kind", [each for each in KINDS if each not in FORGETFUL], indirect=True)
def test_threads_write_it_together(kind):
    """Blocks are handed out in order, as a restore does, and come in any."""
    blocks = random_bytes(SIZE)

    def write(start):
        time.sleep((start // 65536) % 3 / 1000)
        kind.target.write(start, blocks[start : start + 65536])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(0, SIZE, 65536)))
    kind.target.finish()
    kind.target.close()
    assert kind.content is not None
    assert kind.content() == blocks


def test_one_that_is_not_finished_is_closed_all_the_same(kind):
    kind.target.write(0, b"x" * 4096)
    before = len(os.listdir("/proc/self/fd"))
    threads = [thread for thread in threading.enumerate() if thread.name == "backyfs-stream"]
    kind.target.close()
    assert before - len(os.listdir("/proc/self/fd")) == isinstance(kind.target, FileTarget | LimitedReadableTarget)
    if isinstance(kind.target, StreamTarget):
        threads[-1].join(PATIENCE_S)
        assert not threads[-1].is_alive()


def test_files_and_devices_are_read_and_nothing_else_is(kind):
    readable = isinstance(kind.target, ReadableTarget)
    assert readable == (kind.content is not None and not isinstance(kind.target, StreamTarget))
    if readable:
        kind.target.write(MIB - 100, b"x" * 200)
        kind.target.write_zeros(2 * MIB, MIB)
        kind.target.finish()
        kind.target.drop_cache()
        there = bytearray(300)
        kind.target.read_into(MIB - 100, there)
        assert there == b"x" * 200 + kind.left[MIB + 100 : MIB + 200]
        assert kind.target.is_zeros(2 * MIB, MIB)
        assert kind.target.is_zeros(2 * MIB + 5, 1)
        assert not kind.target.is_zeros(MIB + 99, 1)
        assert not kind.target.is_zeros(MIB - 4096, 5000)
    kind.target.close()


# Files


def test_a_file_that_is_to_be_kept_has_to_be_there(tmp_path):
    with pytest.raises(TargetError, match="target does not exist; name the target of an earlier restore"):
        FileTarget(str(tmp_path / "target"), SIZE, replace=True, kept_bytes=0)
    assert not (tmp_path / "target").exists()


def test_a_file_that_was_cut_off_meanwhile_is_told(tmp_path):
    path = tmp_path / "target"
    target = FileTarget(str(path), SIZE, replace=False)
    os.truncate(path, 1000)
    with pytest.raises(TargetError, match="target ends at byte 1000: somebody else has cut it off"):
        target.read_into(0, bytearray(4096))
    target.close()


@pytest.mark.parametrize("offset", [0, 4096])
def test_the_end_of_a_file_that_was_cut_off_in_a_hole_is_not_zeros(tmp_path, offset):
    path = tmp_path / "target"
    target = FileTarget(str(path), SIZE, replace=False)
    os.truncate(path, 1000)
    with pytest.raises(TargetError, match="target ends at byte 1000: somebody else has cut it off"):
        target.is_zeros(offset, 4096)
    target.close()


def test_zeros_on_a_kept_file_take_no_room(tmp_path):
    path = random_image(tmp_path / "target", 4 * MIB)
    target = FileTarget(str(path), 4 * MIB, replace=False, kept_bytes=4 * MIB)
    target.write_zeros(0, 4 * MIB)
    target.finish()
    target.close()
    assert path.read_bytes() == bytes(4 * MIB)
    assert path.stat().st_blocks == 0


# Streams


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    ends = {"reader": reader, "writer": writer}
    yield ends
    for number in ends.values():
        os.close(number)


def test_a_stream_whose_reader_went_says_so_at_the_next_block(pipe):
    os.close(pipe.pop("reader"))
    target = StreamTarget(pipe["writer"], stop=lambda: False)
    target.write(0, b"x")
    with pytest.raises(ReaderGoneError, match="nobody reads the standard output any more"):
        target.finish()
    with pytest.raises(ReaderGoneError):
        target.write(1, b"x")
    target.close()


def test_a_stream_that_cannot_be_written_says_why():
    with Path("/dev/full").open("wb") as full:
        target = StreamTarget(full.fileno(), stop=lambda: False)
        target.write(0, b"x")
        with pytest.raises(TargetError, match="the standard output cannot be written: No space left on device"):
            target.finish()
        target.close()


def test_a_slow_reader_bounds_what_waits_and_an_interruption_does_not_wait_for_him(pipe):
    came = threading.Event()
    target = StreamTarget(pipe["writer"], stop=came.is_set)
    for number in range(8):
        target.write(number * MIB, bytes(MIB))
    timer = threading.Timer(0.3, came.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(InterruptedByUser):
        target.write(8 * MIB, b"one more")
    target.close()
    assert 0.3 <= time.monotonic() - started < 2
    timer.join()
    os.close(pipe.pop("reader"))  # ends the thread that still writes


def test_a_terminal_is_no_place_for_an_image():
    main, terminal = pty.openpty()
    try:
        with pytest.raises(TargetError, match="the standard output is a terminal, and an image is no text"):
            StreamTarget(terminal, stop=lambda: False)
    finally:
        os.close(main)
        os.close(terminal)


# Limits


class _SlowTarget(NullTarget):
    """Counts the threads that write it at once."""

    def __init__(self):
        self._lock = threading.Lock()
        self._inside = self.most_inside = 0

    def write(self, offset, block):
        with self._lock:
            self._inside += 1
            self.most_inside = max(self.most_inside, self._inside)
        time.sleep(0.005)
        with self._lock:
            self._inside -= 1

    def write_zeros(self, offset, length):
        self.write(offset, bytes(length))


@pytest.mark.parametrize("allowed", [1, 3])
def test_no_more_writes_are_under_way_than_are_allowed(allowed):
    slow = _SlowTarget()
    target = LimitedTarget(slow, simultaneous_writes=allowed)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: target.write(number, b"x"), range(16)))
        list(threads.map(lambda number: target.write_zeros(number, 1), range(16)))
    assert slow.most_inside == allowed


def test_a_place_is_free_again_after_an_error(tmp_path):
    target = LimitedReadableTarget(
        FileTarget(str(tmp_path / "target"), SIZE, replace=False), simultaneous_writes=1
    )
    for _ in range(2):
        with pytest.raises(TargetError, match="it cannot be written: File too large"):
            target.write((1 << 63) - 8192, bytes(4096))
    target.write(0, b"x")
    target.close()


# Names


class _Configured:
    """As much of a configuration as a target looks at."""

    def __init__(self, limit):
        self.io_file = self.io_null = IoConfig(simultaneous_writes=limit)


@pytest.mark.parametrize(
    ("limit", "kinds"), [(None, (FileTarget, NullTarget)), (2, (LimitedReadableTarget, LimitedTarget))]
)
def test_a_target_is_limited_where_its_section_says_so(tmp_path, limit, kinds):
    config: Any = _Configured(limit)
    for uri, expected in zip((f"file://{tmp_path}/out", "null://"), kinds, strict=True):
        target = open_target(uri, SIZE, config)
        assert type(target) is expected
        target.close()


@pytest.mark.parametrize(
    ("uri", "path"),
    [("/a/b", "/a/b"), ("file:///a", "/a"), ("file://a", "a"), ("null://", None), ("null://5G", None), ("-", None)],
)
def test_what_a_target_is_called(uri, path):
    assert target_path(uri) == path


def test_a_target_of_an_unknown_kind_is_refused():
    with pytest.raises(TargetError, match=r"^rbd://pool/image: targets of kind rbd:// are not known; give a path, "):
        open_target("rbd://pool/image", SIZE)


def test_a_stdout_that_is_closed_is_no_target():
    program = "from backyfs.targets.opening import open_target\nopen_target('-', 1)"
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, program], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 1
    assert "TargetError: the standard output is closed; redirect it, or name a file or device" in done.stderr
