"""Every kind of target follows the same rules, even one that a test adds to the registry."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backyfs.config import FileIoConfig, IoConfig
from backyfs.engine.restore.restore import RestoreOptions, restore
from backyfs.errors import InterruptedByUser, ReaderGoneError, TargetError
from backyfs.remedies import Advice
from backyfs.schemes import scheme_of
from backyfs.targets.file import FileTarget
from backyfs.targets.protocol import TargetRequest
from backyfs.targets.registry import TARGETS, find_destination
from backyfs.targets.stream import StreamTarget
from backyfs.work.run import Control
from tests.support.images import random_bytes, random_image, sparse_image
from tests.support.memory import IMAGES, TARGET_SCHEME, MemoryImage
from tests.support.repositories import BLOCK, PATIENCE_S, back_up
from tests.unit.test_sources import loop_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backyfs.repository import Repository
    from backyfs.targets.protocol import Target

MIB = 1 << 20
SIZE = 3 * MIB + 512
OLD = random_bytes(4 * MIB, 9)
NEW = TargetRequest(size_bytes=SIZE)
OVER = TargetRequest(size_bytes=SIZE, replace=True)
KEPT = TargetRequest(size_bytes=SIZE, kept_bytes=SIZE)


@dataclass(frozen=True)
class Place:
    """How to open a target, and how to see its content."""

    uri: str
    request: TargetRequest
    content: Callable[[], bytes] | None  # None: it cannot be read
    left: bytes = bytes(SIZE)            # its old content


@dataclass(frozen=True)
class Kind(Place):
    """An open target."""

    target: Target | None = None


@contextmanager
def new_file(directory: Path) -> Iterator[Place]:
    path = directory / "target"
    yield Place(str(path), NEW, path.read_bytes)


@contextmanager
def replaced_file(directory: Path) -> Iterator[Place]:
    path = random_image(directory / "target", 4 * MIB, 9)
    yield Place(f"file://{path}", OVER, path.read_bytes)


@contextmanager
def continued_file(directory: Path) -> Iterator[Place]:
    path = random_image(directory / "target", 4 * MIB, 9)
    yield Place(str(path), replace(NEW, kept_bytes=MIB), path.read_bytes, OLD[:MIB] + bytes(SIZE - MIB))


@contextmanager
def kept_file(directory: Path) -> Iterator[Place]:
    path = random_image(directory / "target", 4 * MIB, 9)
    yield Place(str(path), KEPT, path.read_bytes, OLD[:SIZE])


@contextmanager
def device(directory: Path) -> Iterator[Place]:
    image = random_image(directory / "old", 4 * MIB, 9)
    with loop_device(image) as path:
        yield Place(path, OVER, lambda: Path(path).read_bytes()[:SIZE], OLD[:SIZE])


@contextmanager
def stream(directory: Path) -> Iterator[Place]:
    path = directory / "stream"
    with path.open("wb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "__stdout__", file)
        yield Place("-", NEW, path.read_bytes)


@contextmanager
def nowhere(directory: Path) -> Iterator[Place]:
    yield Place("null://", NEW, None)


@contextmanager
def new_memory(directory: Path) -> Iterator[Place]:
    yield Place("memory://target", NEW, lambda: bytes(IMAGES["target"].content))
    IMAGES.pop("target", None)


@contextmanager
def kept_memory(directory: Path) -> Iterator[Place]:
    IMAGES["target"] = MemoryImage(OLD)
    yield Place("memory://target", KEPT, lambda: bytes(IMAGES["target"].content), OLD[:SIZE])
    del IMAGES["target"]


KINDS = [
    new_file, replaced_file, continued_file, kept_file, device, stream, nowhere, new_memory, kept_memory
]  # fmt: skip


@pytest.fixture(autouse=True)
def _memory_is_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "memory", TARGET_SCHEME)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with request.param(tmp_path) as place:
        yield place


@pytest.fixture
def kind(place: Place) -> Kind:
    target = find_destination(place.uri).open(place.request)
    return Kind(place.uri, place.request, place.content, place.left, target)


def test_every_registered_scheme_is_tested_here(tmp_path):
    tested = set()
    for number, make in enumerate(KINDS):
        directory = tmp_path / str(number)
        directory.mkdir()
        with make(directory) as place:
            tested.add("-" if place.uri == "-" else scheme_of(place.uri))
    assert tested == TARGETS.keys()


# The contract


def test_ranges_are_written_zeroed_or_left_as_requested(kind):
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


def test_a_target_that_begins_empty_has_zeros_where_nothing_was_written(kind):
    if not kind.target.begins_empty:
        assert kind.content is not None
        kind.target.close()
        return
    kind.target.write(MIB, b"x" * 512)
    kind.target.finish()
    kind.target.close()
    if kind.content is not None:
        assert kind.content() == bytes(MIB) + b"x" * 512 + bytes(SIZE - MIB - 512)


@pytest.mark.parametrize("place", [each for each in KINDS if each is not nowhere], indirect=True)
def test_threads_can_write_together(kind):
    """Blocks are handed out in order, as in a restore, but arrive in any order."""
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


def test_an_unfinished_target_is_closed(kind):
    kind.target.write(0, b"x" * 4096)
    before = len(os.listdir("/proc/self/fd"))
    threads = [thread for thread in threading.enumerate() if thread.name == "backyfs-stream"]
    kind.target.close()
    assert before - len(os.listdir("/proc/self/fd")) == isinstance(kind.target, FileTarget)
    if isinstance(kind.target, StreamTarget):
        threads[-1].join(PATIENCE_S)
        assert not threads[-1].is_alive()


def test_only_targets_that_keep_their_content_can_be_read(kind):
    readable = kind.target.readable
    assert (readable is not None) == find_destination(kind.uri).keeps
    if readable is not None:
        kind.target.write(MIB - 100, b"x" * 200)
        kind.target.write_zeros(2 * MIB, MIB)
        kind.target.finish()
        readable.drop_cache()
        there = bytearray(300)
        readable.read_into(MIB - 100, there)
        assert there == b"x" * 200 + kind.left[MIB + 100 : MIB + 200]
        assert readable.is_zeros(2 * MIB, MIB)
        assert readable.is_zeros(2 * MIB + 5, 1)
        assert not readable.is_zeros(MIB + 99, 1)
        assert not readable.is_zeros(MIB - 4096, 5000)
    kind.target.close()


# Destinations: facts known before a target is opened


def test_looking_up_a_destination_changes_and_opens_nothing(place):
    before = None if place.content is None or place.request == NEW else place.content()
    open_files = len(os.listdir("/proc/self/fd"))
    destination = find_destination(place.uri)
    assert destination.uri == place.uri.removeprefix("file://")
    assert len(os.listdir("/proc/self/fd")) == open_files
    if before is not None and place.content is not None:
        assert place.content() == before


def test_a_destination_knows_whether_it_exists_and_its_size(place):
    destination = find_destination(place.uri)
    assert destination.exists == (place.request != NEW)
    assert destination.size_bytes == (4 * MIB if destination.exists and not destination.is_device else None)


def test_only_a_device_has_a_fixed_size(place):
    assert find_destination(place.uri).is_device == place.uri.startswith("/dev/")


def test_everything_except_a_stream_can_be_continued(place):
    assert find_destination(place.uri).can_continue == (place.uri != "-")


def test_files_and_devices_name_what_they_would_overwrite(tmp_path):
    inner = random_image(tmp_path / "inner", 4 * MIB)
    assert find_destination(str(inner)).files == (str(inner),)
    with loop_device(inner) as lower, loop_device(Path(lower)) as upper:
        assert find_destination(f"file://{upper}").files == (upper, lower, str(inner))
    with inner.open("rb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "__stdout__", file)
        assert find_destination("-").files == (f"/proc/self/fd/{file.fileno()}",)


def test_content_can_be_kept_only_if_it_exists(place):
    if place.request != NEW or not find_destination(place.uri).keeps:
        assert find_destination(place.uri).exists or not find_destination(place.uri).keeps
        return
    with pytest.raises(TargetError, match="does not exist"):
        find_destination(place.uri).open(replace(KEPT, replace=True))
    assert not find_destination(place.uri).exists


def test_existing_content_is_not_replaced_without_being_asked(place):
    destination = find_destination(place.uri)
    if not destination.exists:
        destination.open(NEW).close()
        return
    assert place.content is not None
    before = place.content()
    with pytest.raises(TargetError):
        destination.open(NEW)
    assert place.content() == before


# Files


def test_a_file_must_exist_to_be_kept(tmp_path):
    with pytest.raises(TargetError, match="target does not exist; name the target of an earlier restore"):
        FileTarget(str(tmp_path / "target"), SIZE, replace=True, kept_bytes=0)
    assert not (tmp_path / "target").exists()


def test_a_file_that_was_truncated_in_the_meantime_is_reported(tmp_path):
    path = tmp_path / "target"
    target = FileTarget(str(path), SIZE, replace=False)
    os.truncate(path, 1000)
    with pytest.raises(TargetError, match="target ends at byte 1000: another program truncated it"):
        target.read_into(0, bytearray(4096))
    target.close()


@pytest.mark.parametrize("offset", [0, 4096])
def test_the_missing_end_of_a_file_truncated_in_a_hole_is_not_zeros(tmp_path, offset):
    path = tmp_path / "target"
    target = FileTarget(str(path), SIZE, replace=False)
    os.truncate(path, 1000)
    with pytest.raises(TargetError, match="target ends at byte 1000: another program truncated it"):
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


def test_a_file_can_be_written_again_after_an_error(tmp_path):
    target = FileTarget(str(tmp_path / "target"), SIZE, replace=False)
    for _ in range(2):
        with pytest.raises(TargetError, match="target cannot be written: File too large"):
            target.write((1 << 63) - 8192, bytes(4096))
    target.write(0, b"x")
    target.close()


# Streams


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    ends = {"reader": reader, "writer": writer}
    yield ends
    for number in ends.values():
        os.close(number)


def test_a_stream_reports_at_the_next_block_that_its_reader_is_gone(pipe):
    os.close(pipe.pop("reader"))
    target = StreamTarget(pipe["writer"], stop=lambda: False)
    target.write(0, b"x")
    with pytest.raises(ReaderGoneError, match="the standard output is no longer read by any program"):
        target.finish()
    with pytest.raises(ReaderGoneError):
        target.write(1, b"x")
    target.close()


def test_the_error_for_an_unwritable_stream_says_why():
    with Path("/dev/full").open("wb") as full:
        target = StreamTarget(full.fileno(), stop=lambda: False)
        target.write(0, b"x")
        with pytest.raises(TargetError, match="the standard output cannot be written: No space left on device"):
            target.finish()
        target.close()


def test_a_slow_reader_limits_the_buffer_and_does_not_delay_an_interruption(pipe):
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
    os.close(pipe.pop("reader"))  # ends the thread that is still writing


def test_a_terminal_is_refused():
    main, terminal = pty.openpty()
    try:
        with pytest.raises(TargetError, match="the standard output is a terminal, and an image is not text"):
            StreamTarget(terminal, stop=lambda: False)
    finally:
        os.close(main)
        os.close(terminal)


# Limits


def with_limit(repository: Repository, writes: int | None) -> Repository:
    config = replace(
        repository.config,
        io_file=FileIoConfig(simultaneous_writes=writes),
        io_null=IoConfig(simultaneous_writes=writes),
    )
    return replace(repository, config=config)


@pytest.mark.parametrize("writes", [None, 1, 3])
def test_it_has_the_limit_of_its_section(place, repository, writes):
    destination = find_destination(place.uri, with_limit(repository, writes).config)
    target = destination.open(place.request)
    assert target.parallel == (None if place.uri == "-" else writes)  # only one thread writes stdout
    target.close()


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a restore use more threads than the limit allows writes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


@pytest.fixture
def target() -> Iterator[MemoryImage]:
    IMAGES["target"] = MemoryImage(random_bytes(8 * MIB, 9))
    yield IMAGES["target"]
    del IMAGES["target"]


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("writes", [1, 3, None])
def test_a_restore_keeps_to_the_limit_of_simultaneous_writes(repository, tmp_path, target, writes):
    """Holes are written too, because the target may have data there."""
    content = (random_bytes(BLOCK) + bytes(BLOCK)) * 1024
    (tmp_path / "image").write_bytes(content)
    version = back_up(repository, tmp_path / "image").version
    options = RestoreOptions(replace=True, offset=0, length=8 * MIB)
    target.expected_inside = writes or 4
    restore(with_limit(repository, writes), version, "memory://target", options=options)
    assert target.content == content
    assert target.most_inside == writes if writes is not None else target.most_inside > 3


# The registry


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return sparse_image(tmp_path / "image", SIZE, {0: random_bytes(MIB), 2 * MIB: random_bytes(MIB, 1)})


def test_a_target_of_a_new_kind_can_be_restored_to_compared_and_verified(repository, image, target):
    version = back_up(repository, image).version
    with pytest.raises(TargetError, match=r"^memory://target already exists$"):
        restore(repository, version, "memory://target")
    report = restore(
        repository, version, "memory://target", options=RestoreOptions(differential=True, verify=True)
    )
    assert (report.target, report.is_verified, report.differing) == ("memory://target", True, ())
    assert target.content == image.read_bytes()
    report = restore(repository, version, "memory://target", options=RestoreOptions(differential=True))
    assert (report.bytes_written, report.bytes_equal) == (0, SIZE)


def test_an_interrupted_restore_to_a_target_of_a_new_kind_can_be_continued(repository, image, target):
    version = back_up(repository, image).version
    asked = iter(range(1))
    control = Control(stop=lambda: next(asked, None) is None)
    with pytest.raises(InterruptedByUser) as raised:
        restore(repository, version, "memory://target", replace=True, control=control)
    remedy = raised.value.remedy
    assert remedy is not None
    assert remedy.advice is Advice.CONTINUE_RESTORE
    block = remedy.values["block"]
    assert isinstance(block, int)
    assert target.content[: block * BLOCK] == image.read_bytes()[: block * BLOCK]
    restore(repository, version, "memory://target", options=RestoreOptions(continue_from=block))
    assert target.content == image.read_bytes()


def test_a_part_keeps_the_rest_of_a_target_of_a_new_kind(repository, image, target):
    before = bytes(target.content)
    version = back_up(repository, image).version
    options = RestoreOptions(replace=True, offset=MIB - 100, length=200)
    restore(repository, version, "memory://target", options=options)
    assert target.content == before[: MIB - 100] + image.read_bytes()[MIB - 100 : MIB + 100] + before[MIB + 100 :]


@pytest.mark.parametrize(("uri", "name"), [("/a/b", "/a/b"), ("file:///a", "/a"), ("file://a", "a"), ("a-b://c", "a-b://c")])
def test_the_name_of_a_file_is_its_path(uri, name):
    destination = find_destination(uri)
    assert (destination.uri, destination.name) == (name, name)


@pytest.mark.parametrize(("uri", "name"), [("null://", "null://"), ("null://5G", "null://5G")])
def test_the_name_of_a_null_target_is_its_uri(uri, name):
    assert (find_destination(uri).uri, find_destination(uri).name) == (name, name)


def test_the_error_for_an_unknown_kind_of_target_lists_the_known_ones():
    with pytest.raises(TargetError) as raised:
        find_destination("rbd://pool/image")
    assert str(raised.value) == (
        "rbd://pool/image: targets of kind rbd:// are not known; give a path, file://PATH, null://, - for stdout or "
        "memory://NAME"
    )


def test_a_closed_stdout_is_refused_as_a_target():
    program = "from backyfs.targets.registry import find_destination\nfind_destination('-')"
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, program], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 1
    assert "TargetError: the standard output is closed; redirect it, or name a file or device" in done.stderr
