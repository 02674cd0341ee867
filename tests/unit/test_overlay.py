"""The layers of a writable mount: written bytes are read back, synced bytes are kept, and nothing else is ever read."""

from __future__ import annotations

import errno
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from backyfs.errors import MountError
from backyfs.model import VersionUid
from backyfs.mount.overlay import Layer, OverlayDirectory, layerfiles
from backyfs.mount.overlay.chunkset import PAGE_BYTES, ChunkSet
from tests.support.images import random_bytes

UID = VersionUid("6f1c0b34-0000-4000-8000-00000000000a")
OTHER_UID = VersionUid("6f1c0b34-0000-4000-8000-00000000000b")
REPOSITORY = "c0ffee00-0000-4000-8000-000000000001"
OTHER_REPOSITORY = "c0ffee00-0000-4000-8000-000000000002"
CHUNK = 4096
SIZE = 40 * CHUNK + 123
TIB = 1 << 40
PAGE_CHUNKS = 8 * PAGE_BYTES

BASE = random_bytes(SIZE, 1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "overlay"


@contextmanager
def opened(directory: Path, size: int = SIZE, *, discard: bool = False) -> Iterator[Layer]:
    with OverlayDirectory(str(directory), REPOSITORY, discard=discard) as overlays:
        yield overlays.layer(UID, size)


def write(layer: Layer, start: int, data: bytes, base: bytes = BASE) -> None:
    layer.write(start, data, {(first, last): base[first:last] for first, last in layer.edges(start, start + len(data))})


def image(layer: Layer, base: bytes = BASE, start: int = 0, stop: int | None = None) -> bytes:
    """Return the bytes that a reader of the image sees."""
    ranges = layer.split(start, len(base) if stop is None else stop)
    return b"".join(layer.read(first, last) if is_in else base[first:last] for first, last, is_in in ranges)


def changed(base: bytes, *writes: tuple[int, bytes]) -> bytes:
    content = bytearray(base)
    for start, data in writes:
        content[start : start + len(data)] = data
    return bytes(content)


def after_kill(directory: Path) -> Path:
    """Return a copy of the directory as the process would leave it if killed now."""
    copy = directory.with_name(f"{directory.name}-killed")
    shutil.copytree(directory, copy)
    return copy


def path_of(fd: int) -> str:
    return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))


def noting(synced: list[str], real: Callable[[int], None]) -> Callable[[int], None]:
    """Return a function that syncs a file and records its name."""

    def sync(fd: int) -> None:
        synced.append(path_of(fd))
        real(fd)

    return sync


# Reading and writing.


def test_an_untouched_layer_is_empty_and_has_no_files(directory):
    with opened(directory) as layer:
        assert layer.is_empty
        assert layer.used_bytes == 0
        assert layer.split(0, SIZE) == [(0, SIZE, False)]
        assert layer.edges(0, 10) == [(0, CHUNK)]
        layer.sync()
        assert sorted(os.listdir(directory)) == ["lock", "repository"]


def test_written_bytes_are_read_back_over_the_image(directory):
    with opened(directory) as layer:
        write(layer, 5000, b"abc" * 3000)
        assert not layer.is_empty
        assert layer.read(5000, 5003) == b"abc"
        assert image(layer) == changed(BASE, (5000, b"abc" * 3000))
        assert layer.used_bytes == 3 * CHUNK


def test_a_write_of_whole_chunks_does_not_need_the_image(directory):
    with opened(directory) as layer:
        assert layer.edges(CHUNK, 3 * CHUNK) == []
        layer.write(CHUNK, bytes(2 * CHUNK), {})
        assert layer.split(0, 4 * CHUNK) == [(0, CHUNK, False), (CHUNK, 3 * CHUNK, True), (3 * CHUNK, 4 * CHUNK, False)]


def test_the_chunks_at_both_ends_are_completed_from_the_image(directory):
    with opened(directory) as layer:
        assert layer.edges(100, 2 * CHUNK + 100) == [(0, CHUNK), (2 * CHUNK, 3 * CHUNK)]
        assert layer.edges(100, 2 * CHUNK) == [(0, CHUNK)]
        assert layer.edges(CHUNK, 2 * CHUNK + 1) == [(2 * CHUNK, 3 * CHUNK)]
        assert layer.edges(100, 200) == [(0, CHUNK)]
        assert layer.edges(100, 100) == []


def test_a_chunk_in_the_layer_does_not_need_the_image(directory):
    with opened(directory) as layer:
        write(layer, 100, b"one")
        assert layer.edges(200, 300) == []
        layer.write(200, b"two", {})
        assert image(layer) == changed(BASE, (100, b"one"), (200, b"two"))


def test_the_last_chunk_ends_with_the_image(directory):
    with opened(directory) as layer:
        end = 40 * CHUNK
        assert layer.edges(SIZE - 1, SIZE) == [(end, SIZE)]
        assert layer.edges(end, SIZE) == []
        write(layer, SIZE - 1, b"!")
        assert layer.split(0, SIZE) == [(0, end, False), (end, SIZE, True)]
        assert image(layer) == changed(BASE, (SIZE - 1, b"!"))
        assert layer.used_bytes == CHUNK
        write(layer, 0, BASE)
        assert layer.used_bytes == SIZE


def test_ranges_are_cut_to_the_request(directory):
    with opened(directory) as layer:
        write(layer, CHUNK, bytes(CHUNK))
        assert layer.split(CHUNK + 1, CHUNK + 2) == [(CHUNK + 1, CHUNK + 2, True)]
        assert layer.split(CHUNK - 1, CHUNK + 1) == [(CHUNK - 1, CHUNK, False), (CHUNK, CHUNK + 1, True)]
        assert layer.split(7, 7) == layer.split(CHUNK, CHUNK) == []
        assert layer.read(7, 7) == layer.read(CHUNK, CHUNK) == b""


def test_ranges_outside_the_image_are_refused(directory):
    with opened(directory) as layer:
        for call in (
            lambda: layer.split(0, SIZE + 1),
            lambda: layer.edges(-1, 5),
            lambda: layer.read(5, 4),
            lambda: layer.write(SIZE, b"x", {}),
        ):
            with pytest.raises(ValueError, match="are not in an image"):
                call()


def test_bytes_not_in_the_layer_are_never_read_from_it(directory):
    with opened(directory) as layer:
        write(layer, 0, bytes(CHUNK))
        with pytest.raises(ValueError, match="are not in the layer"):
            layer.read(CHUNK - 1, CHUNK + 1)


@pytest.mark.parametrize("base", [{}, {(0, CHUNK): b"short"}])
def test_a_write_without_the_image_bytes_it_needs_is_refused(directory, base):
    with opened(directory) as layer:
        with pytest.raises(ValueError, match="this write needs bytes"):
            layer.write(1, b"x", base)
        assert layer.is_empty


def test_an_empty_image_has_a_layer(directory):
    with opened(directory, 0) as layer:
        layer.write(0, b"", {})
        assert (layer.split(0, 0), layer.read(0, 0), layer.used_bytes) == ([], b"", 0)


def test_a_version_has_one_layer_however_often_it_is_opened(directory):
    with OverlayDirectory(str(directory), REPOSITORY) as overlays:
        assert overlays.layer(UID, SIZE) is overlays.layer(UID, SIZE)
        assert overlays.layer(UID, SIZE) is not overlays.layer(OTHER_UID, SIZE)


def test_layers_of_two_versions_do_not_mix(directory):
    with OverlayDirectory(str(directory), REPOSITORY) as overlays:
        write(overlays.layer(UID, SIZE), 0, b"one")
        write(overlays.layer(OTHER_UID, SIZE), 0, b"two")
    with OverlayDirectory(str(directory), REPOSITORY) as overlays:
        assert image(overlays.layer(UID, SIZE))[:3] == b"one"
        assert image(overlays.layer(OTHER_UID, SIZE))[:3] == b"two"


# Durability.


def test_a_layer_is_kept_when_the_directory_is_opened_again(directory):
    with opened(directory) as layer:
        write(layer, 5000, b"abc")
    with opened(directory) as layer:
        assert image(layer) == changed(BASE, (5000, b"abc"))
        assert layer.used_bytes == CHUNK
        assert layer.edges(5000, 5003) == []


def test_the_files_have_the_right_size_and_are_private(directory):
    with opened(directory, TIB) as layer:
        layer.write(TIB - CHUNK, bytes(CHUNK), {})
    data, stored = (directory / f"{UID}.{kind}" for kind in ("data", "map"))
    assert data.stat().st_size == TIB
    assert stored.stat().st_size == 4096 + TIB // CHUNK // 8
    assert data.stat().st_blocks * 512 <= 64 << 10
    assert [path.stat().st_mode & 0o777 for path in (directory, data, stored)] == [0o700, 0o600, 0o600]


def test_unsynced_writes_are_lost_with_the_process_and_the_image_reappears(directory):
    with opened(directory) as layer:
        write(layer, 0, b"synced")
        layer.sync()
        write(layer, 10 * CHUNK, b"not synced")
        killed = after_kill(directory)
    with opened(killed) as layer:
        assert image(layer) == changed(BASE, (0, b"synced"))


def test_a_lost_chunk_is_completed_from_the_image_when_it_is_written_again(directory):
    with opened(directory) as layer:
        write(layer, 0, b"synced")
        layer.sync()
        write(layer, 10 * CHUNK, b"lost" * 100)
        killed = after_kill(directory)
    with opened(killed) as layer:
        write(layer, 10 * CHUNK + 4, b"new")
        assert image(layer) == changed(BASE, (0, b"synced"), (10 * CHUNK + 4, b"new"))


def test_data_without_a_map_is_removed(directory):
    with opened(directory) as layer:
        write(layer, 0, b"not synced")
        killed = after_kill(directory)
    (killed / f"{OTHER_UID}.map.new").write_bytes(b"half a header")
    assert (killed / f"{UID}.data").exists()
    with opened(killed) as layer:
        assert layer.is_empty
        assert sorted(os.listdir(killed)) == ["lock", "repository"]


CHILD = f"""
import os, signal, sys
from backyfs.mount.overlay import OverlayDirectory
overlays = OverlayDirectory(sys.argv[1], {REPOSITORY!r})
layer = overlays.layer({UID!r}, {SIZE})
layer.write(0, b"a" * {CHUNK}, {{}})
layer.sync()
layer.write({CHUNK}, b"b" * {CHUNK}, {{}})
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def other_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CHILD, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_a_killed_process_leaves_its_synced_data_and_no_lock(directory):
    with other_process(directory) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with opened(directory) as layer:
        assert image(layer) == changed(BASE, (0, b"a" * CHUNK))


@pytest.mark.parametrize("step", ["create data", "data durable", "create map", "name the map", "write the map"])
def test_a_kill_during_the_first_sync_loses_only_unsynced_data(directory, step, monkeypatch):
    """The directory is copied before each call that changes it, as if the process ended there."""
    killed = directory.with_name("killed")
    calls = {
        "create data": ("ftruncate", ".data"),
        "data durable": ("fdatasync", ".data"),
        "create map": ("pwrite", ".map.new"),
        "name the map": ("rename", ".map.new"),
        "write the map": ("pwrite", ".map"),
    }
    function, suffix = calls[step]
    real = getattr(os, function)

    def copy_first(what, *arguments, **named):
        name = what if isinstance(what, str) else path_of(what)
        if name.endswith(suffix) and not killed.exists():
            shutil.copytree(directory, killed)
        return real(what, *arguments, **named)

    with opened(directory) as layer:
        monkeypatch.setattr(os, function, copy_first)
        write(layer, 0, b"abc")
        layer.sync()
        monkeypatch.undo()
    for content in (BASE, changed(BASE, (100, b"again"))):
        with opened(killed) as layer:
            assert image(layer) == content
            write(layer, 100, b"again")


def test_discarded_layers_leave_no_files(directory):
    with opened(directory, discard=True) as layer:
        write(layer, 5, b"abc")
        layer.sync()
        assert image(layer) == changed(BASE, (5, b"abc"))
        assert sorted(os.listdir(directory)) == ["lock", "repository"]
    assert sorted(os.listdir(directory)) == ["lock", "repository"]
    with opened(directory) as layer:
        assert layer.is_empty


def test_discarding_removes_the_layers_of_earlier_mounts(directory):
    with opened(directory) as layer:
        write(layer, 5, b"abc")
    (directory / "notes.txt").write_text("mine")
    with opened(directory, discard=True) as layer:
        assert layer.is_empty
        assert sorted(os.listdir(directory)) == ["lock", "notes.txt", "repository"]


# The order of syncs.


def test_data_are_durable_before_the_map_names_them(directory, monkeypatch):
    events = []

    def record(function: str) -> None:
        real = getattr(os, function)

        def recorded(fd, *arguments):
            events.append((function, path_of(fd).rpartition(".")[2]))
            return real(fd, *arguments)

        monkeypatch.setattr(os, function, recorded)

    with opened(directory) as layer:
        write(layer, 0, b"first")
        layer.sync()
        record("pwrite")
        record("fdatasync")
        write(layer, 10 * CHUNK, b"second")
        assert events == [("pwrite", "data")]
        layer.sync()
        assert events == [("pwrite", "data"), ("fdatasync", "data"), ("pwrite", "map"), ("fdatasync", "map")]


def test_the_name_of_the_data_is_durable_before_that_of_the_map(directory, monkeypatch):
    events = []
    real_sync, real_rename = os.fsync, os.rename

    def fsync(fd):
        events.append(f"fsync {path_of(fd)}")
        real_sync(fd)

    def rename(old, new, **directories):
        events.append(f"rename {new}")
        real_rename(old, new, **directories)

    with opened(directory) as layer:
        write(layer, 0, b"first")
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "rename", rename)
        layer.sync()
    assert events == [f"fsync {UID}.map.new", "fsync overlay", f"rename {UID}.map", "fsync overlay"]


def test_overwriting_syncs_the_data_and_leaves_the_map_alone(directory, monkeypatch):
    synced: list[str] = []
    with opened(directory) as layer:
        write(layer, 0, b"first")
        layer.sync()
        monkeypatch.setattr(os, "fdatasync", noting(synced, os.fdatasync))
        layer.sync()
        assert synced == []
        write(layer, 1, b"second")
        layer.sync()
        assert synced == [f"{UID}.data"]


def test_only_changed_pages_of_the_map_are_written(directory, monkeypatch):
    written = []
    real = os.pwrite

    def pwrite(fd, data, at):
        written.append((at, len(data)))
        return real(fd, data, at)

    with opened(directory, TIB) as layer:
        layer.write(0, bytes(CHUNK), {})
        layer.sync()
        layer.write(5 * PAGE_CHUNKS * CHUNK, bytes(CHUNK), {})
        monkeypatch.setattr(os, "pwrite", pwrite)
        layer.sync()
        assert written == [(4096 + 5 * 4096, 4096)]


def test_all_changed_pages_are_written_even_in_several_batches(directory):
    starts = [number * PAGE_CHUNKS * CHUNK for number in range(2500)]  # 1024 are copied in one batch
    with opened(directory, TIB) as layer:
        for start in starts:
            layer.write(start, b"x" * CHUNK, {})
    with opened(directory, TIB) as layer:
        assert [layer.read(start, start + 1) for start in starts] == [b"x"] * 2500
        assert layer.used_bytes == 2500 * CHUNK


def test_a_chunk_written_during_a_sync_is_not_in_its_map(directory, monkeypatch):
    """A chunk that is written between the sync of the data and the map must not get into the map."""
    real = os.fdatasync

    def write_after(fd):
        real(fd)
        if path_of(fd).endswith(".data"):
            monkeypatch.setattr(os, "fdatasync", real)
            write(layer, 10 * CHUNK, b"too late")

    with opened(directory) as layer:
        write(layer, 0, b"first")
        monkeypatch.setattr(os, "fdatasync", write_after)
        layer.sync()
        killed = after_kill(directory)
        layer.sync()
        later = after_kill(killed)
        shutil.rmtree(later)
        shutil.copytree(directory, later)
    with opened(killed) as layer:
        assert image(layer) == changed(BASE, (0, b"first"))
    with opened(later) as layer:
        assert image(layer) == changed(BASE, (0, b"first"), (10 * CHUNK, b"too late"))


def test_leftovers_of_a_killed_process_are_made_durable_when_opened(directory, monkeypatch):
    """Somebody who reads the data and then syncs must find them after a power cut."""
    with opened(directory) as layer:
        write(layer, 0, b"abc")
    synced: list[str] = []
    for function in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, function, noting(synced, getattr(os, function)))
    with opened(directory):
        assert {"overlay", f"{UID}.map", f"{UID}.data"} <= set(synced)


# Errors of the disk.


def failing(error: int, suffix: str, *, after: int = 0) -> Callable[..., int]:
    """Return a pwrite with room for a number of bytes in files with a suffix."""
    real, room = os.pwrite, after

    def pwrite(fd, data, offset):
        nonlocal room
        if not path_of(fd).endswith(suffix):
            return real(fd, data, offset)
        if room == 0:
            raise OSError(error, os.strerror(error))
        count = real(fd, data[:room], offset)
        room -= count
        return count

    return pwrite


def test_a_full_disk_is_reported_and_old_data_are_kept(directory, monkeypatch):
    with opened(directory) as layer:
        write(layer, 0, b"there")
        monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC, ".data", after=CHUNK + 100))
        with pytest.raises(OSError, match="No space left") as caught:
            write(layer, 4 * CHUNK, b"x" * 3 * CHUNK)
        assert caught.value.errno == errno.ENOSPC
        assert image(layer) == changed(BASE, (0, b"there"))
        monkeypatch.undo()
        write(layer, 5 * CHUNK + 1, b"y")
        assert image(layer) == changed(BASE, (0, b"there"), (5 * CHUNK + 1, b"y"))


def test_a_map_that_did_not_fit_is_written_by_the_next_sync(directory, monkeypatch):
    with opened(directory) as layer:
        write(layer, 0, b"one")
        layer.sync()
        write(layer, CHUNK, b"two")
        monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC, ".map"))
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                layer.sync()
        killed = after_kill(directory)
        monkeypatch.undo()
        layer.sync()
        later = directory.with_name("later")
        shutil.copytree(directory, later)
    with opened(killed) as layer:
        assert image(layer) == changed(BASE, (0, b"one"))
    with opened(later) as layer:
        assert image(layer) == changed(BASE, (0, b"one"), (CHUNK, b"two"))


@pytest.mark.parametrize("suffix", [".data", ".map.new"])
def test_a_layer_that_could_not_be_created_is_created_by_the_next_try(directory, monkeypatch, suffix):
    def refuse(fd, size):
        if path_of(fd).endswith(suffix):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        real(fd, size)

    real = os.ftruncate
    with opened(directory) as layer:
        monkeypatch.setattr(os, "ftruncate", refuse)
        with pytest.raises(OSError, match="File too large"):  # noqa: PT012 - which of the two it is depends on the file
            write(layer, 0, b"one")
            layer.sync()
        monkeypatch.undo()
        write(layer, 0, b"one")
    with opened(directory) as layer:
        assert image(layer) == changed(BASE, (0, b"one"))


def test_bytes_that_did_not_reach_the_disk_make_the_layer_unusable(directory, monkeypatch):
    def fail(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    overlays = OverlayDirectory(str(directory), REPOSITORY)
    layer = overlays.layer(UID, SIZE)
    write(layer, 0, b"synced")
    layer.sync()
    write(layer, CHUNK, b"lost")
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        layer.sync()
    monkeypatch.undo()
    for call in (layer.sync, lambda: layer.read(0, 1), lambda: layer.write(0, b"x", {})):
        with pytest.raises(OSError, match="are lost; mount it again") as caught:
            call()
        assert caught.value.errno == errno.EIO
    with pytest.raises(MountError, match=f"the last writes to {UID} are lost"):
        overlays.close()
    with opened(directory) as layer:
        assert image(layer) == changed(BASE, (0, b"synced"))


def test_truncated_data_are_an_error_and_not_zeros(directory):
    with opened(directory) as layer:
        write(layer, 0, b"x" * SIZE)
        os.truncate(directory / f"{UID}.data", CHUNK)
        assert layer.read(0, CHUNK) == b"x" * CHUNK
        with pytest.raises(OSError, match="the file ends at byte 4096") as caught:
            layer.read(0, 2 * CHUNK)
        assert caught.value.errno == errno.EIO
        os.truncate(directory / f"{UID}.data", SIZE)


@pytest.mark.root
def test_a_real_full_disk_loses_nothing_that_was_synced(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)], check=True)
    try:
        pieces = []
        with opened(place / "overlay") as layer:
            with pytest.raises(OSError, match="No space left") as caught:  # noqa: PT012 - it comes at some number
                for number in range(40):
                    piece = (number * CHUNK + 1, b"%d" % number)
                    write(layer, *piece)
                    layer.sync()
                    pieces.append(piece)
            assert caught.value.errno == errno.ENOSPC
            assert 10 < len(pieces) < 35
            expected = changed(BASE, *pieces)
            assert image(layer) == expected
        with opened(place / "overlay") as layer:
            assert image(layer) == expected
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_layer_cannot_be_used_after_its_directory_is_closed(directory):
    with OverlayDirectory(str(directory), REPOSITORY) as overlays:
        layer = overlays.layer(UID, SIZE)
        write(layer, 0, b"abc")
    for call in (lambda: layer.read(0, 3), lambda: layer.write(0, b"x", {}), lambda: overlays.layer(UID, SIZE)):
        with pytest.raises(OSError, match="is closed") as caught:
            call()
        assert caught.value.errno == errno.EBADF
    layer.sync()
    layer.close()
    overlays.close()


def test_no_file_remains_open(directory):
    gc.collect()  # other tests may have left open files to the garbage collector
    before = sorted(os.listdir("/proc/self/fd"))
    for size in (SIZE, SIZE + 1):
        try:
            with opened(directory, size) as layer:
                write(layer, 0, b"abc")
        except MountError:
            assert size == SIZE + 1
    with OverlayDirectory(str(directory), REPOSITORY), pytest.raises(MountError):
        OverlayDirectory(str(directory), REPOSITORY)
    with pytest.raises(MountError):
        OverlayDirectory(str(directory), OTHER_REPOSITORY)
    assert sorted(os.listdir("/proc/self/fd")) == before


# Threads.


def in_threads(count: int, work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work, number) for number in range(count)]:
            done.result()


def test_threads_that_fill_the_same_chunk_do_not_overwrite_each_other(directory):
    """All of them find the chunk incomplete before the first of them writes."""
    threads = 8
    barrier = threading.Barrier(threads)
    with opened(directory) as layer:

        def work(number: int) -> None:
            for chunk in range(40):
                start = chunk * CHUNK + number * 17
                edges = layer.edges(start, start + 10)
                barrier.wait(30)
                assert edges == [(chunk * CHUNK, (chunk + 1) * CHUNK)]
                layer.write(start, b"%d" % number * 10, {edge: BASE[edge[0] : edge[1]] for edge in edges})
                barrier.wait(30)

        in_threads(threads, work)
        writes = [(chunk * CHUNK + n * 17, b"%d" % n * 10) for chunk in range(40) for n in range(threads)]
        assert image(layer) == changed(BASE, *writes)


def test_threads_that_write_read_and_sync_see_only_complete_writes(directory):
    """Each thread owns every eighth slice of 1,000 bytes, so that threads share chunks but no bytes."""
    threads, pieces = 8, SIZE // 1000
    with opened(directory) as layer:

        def work(number: int) -> None:
            chance = random.Random(number)
            mine = {piece: BASE[piece * 1000 : piece * 1000 + 1000] for piece in range(number, pieces, threads)}
            for _ in range(200):
                piece = chance.choice(list(mine))
                start = piece * 1000
                if chance.random() < 0.6:
                    mine[piece] = bytes([chance.randrange(256)]) * 1000
                    write(layer, start, mine[piece])
                elif chance.random() < 0.1:
                    layer.sync()
                assert image(layer, start=start, stop=start + 1000) == mine[piece]

        in_threads(threads, work)
        expected = image(layer)
    with opened(directory) as layer:
        assert image(layer) == expected


def test_closing_waits_for_readers(directory, monkeypatch):
    """The descriptor of a file closed under them could be reused for another file."""
    is_in, may_go = threading.Event(), threading.Event()
    real = os.pread

    def slow(fd, size, offset):
        is_in.set()
        assert may_go.wait(30)
        return real(fd, size, offset)

    overlays = OverlayDirectory(str(directory), REPOSITORY)
    layer = overlays.layer(UID, SIZE)
    write(layer, 0, b"abc")
    monkeypatch.setattr(os, "pread", slow)
    with ThreadPoolExecutor(2) as pool:
        read = pool.submit(layer.read, 0, 3)
        assert is_in.wait(30)
        close = pool.submit(overlays.close)
        with pytest.raises(TimeoutError):
            close.result(0.2)
        may_go.set()
        assert read.result() == b"abc"
        close.result()


def test_querying_a_layer_does_not_wait_for_the_disk(directory, monkeypatch):
    is_in, may_go = threading.Event(), threading.Event()
    real = os.fdatasync

    def slow(fd):
        is_in.set()
        assert may_go.wait(30)
        real(fd)

    with opened(directory) as layer:
        write(layer, 0, b"abc")
        monkeypatch.setattr(os, "fdatasync", slow)
        thread = threading.Thread(target=layer.sync)
        thread.start()
        assert is_in.wait(30)
        write(layer, CHUNK, b"def")
        assert layer.split(0, 3 * CHUNK) == [(0, 2 * CHUNK, True), (2 * CHUNK, 3 * CHUNK, False)]
        assert (layer.edges(5, 6), layer.is_empty, layer.used_bytes) == ([], False, 2 * CHUNK)
        assert layer.read(0, 3) == b"abc"
        may_go.set()
        thread.join()


# Ownership of the directory.


def test_a_directory_in_use_by_another_process_is_refused(directory):
    with other_process(directory), pytest.raises(MountError) as caught:
        OverlayDirectory(str(directory), REPOSITORY)
    assert str(caught.value) == (
        f"{directory} is in use by another mount; unmount that one first, or name another directory for what is written"
    )


def test_a_refused_mount_does_not_disturb_the_existing_one(directory):
    with opened(directory) as layer:
        write(layer, 0, b"abc")
        with pytest.raises(MountError):
            OverlayDirectory(str(directory), REPOSITORY, discard=True)
    with opened(directory) as layer:
        assert image(layer) == changed(BASE, (0, b"abc"))


@pytest.mark.parametrize("discard", [False, True])
def test_a_directory_of_another_repository_is_refused_and_left_alone(directory, discard):
    with opened(directory) as layer:
        write(layer, 0, b"abc")
    before = sorted(os.listdir(directory))
    with pytest.raises(MountError, match=f"contains layers of another repository \\('{REPOSITORY}'\\); name another"):
        OverlayDirectory(str(directory), OTHER_REPOSITORY, discard=discard)
    assert sorted(os.listdir(directory)) == before


@pytest.mark.parametrize("name", ["letter.txt", f"{UID}.data", ".hidden"])
def test_a_directory_with_other_things_is_refused_and_left_alone(directory, name):
    directory.mkdir()
    (directory / name).write_bytes(b"mine")
    with pytest.raises(MountError, match="is not empty and contains no layers; name another directory"):
        OverlayDirectory(str(directory), REPOSITORY, discard=True)
    assert os.listdir(directory) == [name]


@pytest.mark.parametrize("content", [b"", b"[repository]\n", b"backyfs overlay 2\n"])
def test_a_directory_whose_owner_cannot_be_read_is_refused_and_left_alone(directory, content):
    directory.mkdir()
    (directory / "repository").write_bytes(content)
    with pytest.raises(MountError, match="has a damaged file repository, or one of another program or release; name"):
        OverlayDirectory(str(directory), REPOSITORY)
    assert os.listdir(directory) == ["repository"]


def test_a_directory_with_a_subdirectory_named_repository_is_foreign(directory):
    (directory / "repository").mkdir(parents=True)
    with pytest.raises(MountError, match="cannot store writes to images: Is a directory; name another"):
        OverlayDirectory(str(directory), REPOSITORY)


def test_an_empty_directory_or_one_left_by_a_killed_first_use_is_accepted(directory):
    directory.mkdir()
    for left in ((), ("lost+found",), ("lock", "repository.new")):
        for name in left:
            (directory / name).write_bytes(b"")
        with opened(directory) as layer:
            assert layer.is_empty
        (directory / "repository").unlink()


@pytest.mark.parametrize("path", ["missing/overlay", "file"])
def test_a_directory_that_cannot_be_created_is_refused(tmp_path, path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MountError, match="cannot store writes to images: "):
        OverlayDirectory(str(tmp_path / path), REPOSITORY)


# Hostile and damaged files.


@pytest.mark.parametrize(
    "uid", ["", ".", "..", "../x", "/etc/passwd", "a/b", "a.map", "a\0b", "ä", "x" * 65, "a\n", "a b", "a\udc80"]
)
def test_a_uid_that_could_lead_elsewhere_is_refused(directory, uid):
    before = sorted(os.listdir(directory.parent))
    with OverlayDirectory(str(directory), REPOSITORY) as overlays:
        with pytest.raises(MountError, match="cannot be a file name: up to 64 letters, digits and hyphens"):
            overlays.layer(VersionUid(uid), SIZE)
        assert sorted(os.listdir(directory)) == ["lock", "repository"]
    assert sorted(os.listdir(directory.parent)) == [*before, "overlay"]


@pytest.mark.parametrize("uid", ["lock", "repository", "-rf", "x" * 64])
def test_an_odd_uid_is_accepted(directory, uid):
    for content in (BASE, changed(BASE, (0, b"abc"))):
        with OverlayDirectory(str(directory), REPOSITORY) as overlays:
            layer = overlays.layer(VersionUid(uid), SIZE)
            assert image(layer) == content
            write(layer, 0, b"abc")


@pytest.mark.parametrize("kind", ["map", "data"])
def test_links_are_not_followed(directory, tmp_path, kind):
    with opened(directory) as layer:
        write(layer, 0, b"abc")
    file = directory / f"{UID}.{kind}"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with OverlayDirectory(str(directory), REPOSITORY) as overlays, pytest.raises(OSError, match="symbolic links"):
        overlays.layer(UID, SIZE)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def overwrite(offset: int, data: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    return change


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def of_another_format(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        names = layerfiles.LayerNames(fd, str(path.parent), UID, SIZE)
        overwrite(0, layerfiles._header(names, version=2))(path)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("kind", "damage", "fact"),
    [
        ("map", cut, "has 8191 bytes and should have 8192"),
        ("map", overwrite(0, b"X"), "has a damaged header"),
        ("map", overwrite(20, b"X"), "has a damaged header"),
        ("map", overwrite(0, bytes(4096)), "has a damaged header"),
        ("map", overwrite(4095, b"X"), "is the map of another image"),
        ("map", overwrite(4096 + 5, b"\x02"), "is damaged: it lists chunks after the end of the image"),
        ("map", of_another_format, "has format 2, but this release of backyfs supports only 1"),
        ("map", replace_by_pipe, "is not a regular file"),
        ("data", cut, f"has {SIZE - 1} bytes and should have {SIZE}"),
        ("data", Path.unlink, "is missing"),
        ("data", replace_by_pipe, "is not a regular file"),
    ],
)
def test_only_a_damaged_layer_is_refused(directory, kind, damage, fact):
    with opened(directory) as layer:
        write(layer, 0, b"abc")
    damage(directory / f"{UID}.{kind}")
    with OverlayDirectory(str(directory), REPOSITORY) as overlays:
        for _ in range(2):
            with pytest.raises(MountError) as caught:
                overlays.layer(UID, SIZE)
            assert str(caught.value) == (
                f"{directory}/{UID}.{kind} {fact}; remove {UID}.map and {UID}.data there, which drops what was "
                "written to this version, or name another directory for what is written"
            )
        assert overlays.layer(OTHER_UID, SIZE).is_empty


def test_a_layer_of_another_version_or_size_is_refused(directory):
    with opened(directory) as layer:
        write(layer, 0, b"abc")
    for kind in ("map", "data"):
        shutil.copy(directory / f"{UID}.{kind}", directory / f"{OTHER_UID}.{kind}")
    with OverlayDirectory(str(directory), REPOSITORY) as overlays:
        with pytest.raises(MountError, match="is the map of another image"):
            overlays.layer(OTHER_UID, SIZE)
        with pytest.raises(MountError, match="is the map of another image"):
            overlays.layer(UID, SIZE - 1)


def test_the_bytes_of_a_map_follow_the_format(directory):
    with opened(directory) as layer:
        write(layer, 0, b"abc")
        write(layer, 9 * CHUNK, bytes(2 * CHUNK))
    stored = (directory / f"{UID}.map").read_bytes()
    assert stored.rstrip(b"\0") == (
        b"backyfsL" + bytes.fromhex("01000000 00100000 7b80020000000000") + UID.encode().ljust(64, b"\0")
        + bytes.fromhex("363802a6") + bytes(4096 - 92) + b"\x01\x06"
    )  # fmt: skip
    assert len(stored) == 8192
    assert (directory / "repository").read_bytes() == b"backyfs overlay 1\n" + REPOSITORY.encode() + b"\n"


def test_a_map_can_be_read_if_holes_cannot_be_found(directory, monkeypatch):
    def unknown(fd, offset, whence):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with opened(directory, TIB) as layer:
        layer.write(TIB // 2, b"x" * CHUNK, {})
    monkeypatch.setattr(os, "lseek", unknown)
    with opened(directory, TIB) as layer:
        assert layer.split(0, TIB) == [
            (0, TIB // 2, False),
            (TIB // 2, TIB // 2 + CHUNK, True),
            (TIB // 2 + CHUNK, TIB, False),
        ]
        assert list(layer._chunks._pages) == [TIB // 2 // CHUNK // PAGE_CHUNKS]


def test_a_map_can_be_read_if_holes_are_smaller_than_its_pages(directory, monkeypatch):
    """As with blocks of 1 KiB: only the third KiB of the second page of bits is reported as data."""

    def lseek(fd, offset, whence):
        start = 4096 + 4096 + 2048
        if whence == os.SEEK_HOLE:
            return start + 1024
        if offset > start:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return start

    chunk = PAGE_CHUNKS + 8 * 2048
    with opened(directory, TIB) as layer:
        layer.write(chunk * CHUNK, b"x" * CHUNK, {})
    monkeypatch.setattr(os, "lseek", lseek)
    with opened(directory, TIB) as layer:
        assert layer._chunks.runs(chunk - 1, chunk + 2) == [
            (chunk - 1, chunk, False),
            (chunk, chunk + 1, True),
            (chunk + 1, chunk + 2, False),
        ]


# Large images.

LARGE = f"""
import sys, time
from backyfs.mount.overlay import OverlayDirectory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

before = resident()
with OverlayDirectory(sys.argv[1], {REPOSITORY!r}) as overlays:
    layer = overlays.layer({UID!r}, 10 * {TIB})
    if layer.is_empty:
        for number in range(200):
            layer.write(number * {TIB // 20 // CHUNK * CHUNK}, b"x" * {CHUNK}, {{}})
    layer.sync()
    assert len(layer.split(0, 10 * {TIB})) == 400
    assert layer.edges(0, 10 * {TIB}) == []
    assert layer.used_bytes == 200 * {CHUNK}
    print(resident() - before)
"""


def test_a_layer_of_ten_tebibytes_takes_little_memory_and_is_not_read_chunk_by_chunk(directory):
    for _ in ("written", "opened again"):
        done = subprocess.run(
            [sys.executable, "-c", LARGE, str(directory)], check=True, stdout=subprocess.PIPE, text=True
        )
        assert int(done.stdout) < 20 << 20


def test_a_large_uniform_range_is_not_scanned_chunk_by_chunk():
    chunks = ChunkSet()
    chunks.add(0, TIB // CHUNK)
    for _ in range(100):  # 27,000 million chunks: one by one, they would take longer than a test may
        assert chunks.runs(0, 2 * TIB // CHUNK) == [(0, TIB // CHUNK, True), (TIB // CHUNK, 2 * TIB // CHUNK, False)]


# Comparison with models.

BORDERS = [border + delta for border in (PAGE_CHUNKS, 2 * PAGE_CHUNKS) for delta in (-9, -8, -7, -1, 0, 1, 7, 8, 9)]
NUMBERS = st.integers(0, 3 * PAGE_CHUNKS) | st.integers(0, 20) | st.sampled_from(BORDERS)
SPANS = st.tuples(NUMBERS, st.integers(0, 40) | st.integers(0, PAGE_CHUNKS)).map(lambda span: (span[0], sum(span)))


@settings(deadline=None)
@given(st.lists(SPANS, max_size=8), SPANS)
def test_a_chunk_set_is_a_set_of_numbers(spans: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    chunks, model, pages = ChunkSet(), set[int](), set[int]()
    for start, stop in spans:
        pages |= {number // PAGE_CHUNKS for number in set(range(start, stop)) - model}
        model |= set(range(start, stop))
        chunks.add(start, stop)
    assert len(chunks) == len(model)
    runs = chunks.runs(*asked)
    assert [number for start, stop, is_in in runs if is_in for number in range(start, stop)] == sorted(
        model & set(range(*asked))
    )
    assert sum(stop - start for start, stop, _ in runs) == asked[1] - asked[0]
    assert all(this[1] == after[0] and this[2] != after[2] for this, after in pairwise(runs))
    assert chunks.has(*asked) is (set(range(*asked)) <= model)
    copy = ChunkSet()
    assert chunks.take_changed() == sorted(pages)
    assert chunks.take_changed() == []
    for number in pages:
        copy.load(number, chunks.page(number))
    assert copy.runs(0, 5 * PAGE_CHUNKS) == chunks.runs(0, 5 * PAGE_CHUNKS)
    assert len(copy) == len(model)


class LayerMachine(RuleBasedStateMachine):
    """A layer compared with its expected bytes: reopened, killed, and after a power cut.

    In the worst order, a power cut leaves only the synced data but all of the map.
    """

    @initialize(size=st.integers(1, 12 * CHUNK), seed=st.integers(0, 1000))
    def begin(self, size: int, seed: int) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="backyfs-overlay-")
        self.directory = Path(self.place.name, "overlay")
        self.durable = Path(self.place.name, "durable")
        self.base = random_bytes(size, seed)
        self.content = bytearray(self.base)  # as a reader sees it
        self.synced = bytes(self.base)       # as a power cut leaves it
        self.written: set[int] = set()       # chunks
        self.kept: set[int] = set()          # chunks that were synced
        self.generation = 0
        real = os.fdatasync

        def fdatasync(fd: int) -> None:
            real(fd)
            if path_of(fd) == f"{UID}.data":
                shutil.copy(self.directory / f"{UID}.data", self.durable)

        self.patch = mock.patch.object(os, "fdatasync", fdatasync)
        self.patch.start()
        self.open()

    def open(self) -> None:
        self.overlays = OverlayDirectory(str(self.directory), REPOSITORY)
        self.layer = self.overlays.layer(UID, len(self.base))

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.overlays.close()
            self.patch.stop()
            self.place.cleanup()

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(self.base)))
        length = data.draw(st.integers(0, 30) | st.integers(0, 5 * CHUNK) | st.sampled_from([CHUNK, 2 * CHUNK]))
        if data.draw(st.booleans()):
            start -= start % CHUNK
        self.generation += 1
        piece = random_bytes(min(length, len(self.base) - start), self.generation)
        edges = self.layer.edges(start, start + len(piece))
        assert len(edges) <= 2
        assert all(first // CHUNK not in self.written for first, _ in edges)
        self.layer.write(start, piece, {(first, last): self.base[first:last] for first, last in edges})
        self.content[start : start + len(piece)] = piece
        if piece:
            self.written |= set(range(start // CHUNK, (start + len(piece) - 1) // CHUNK + 1))

    @rule()
    def sync(self) -> None:
        self.layer.sync()
        self.note_synced()

    @rule()
    def reopen(self) -> None:
        self.overlays.close()
        self.note_synced()
        self.open()

    @rule()
    def kill(self) -> None:
        """Lose the unsynced bits; all written bytes are kept."""
        self.fall()

    @rule()
    def cut_power(self) -> None:
        """Lose the unsynced bytes too."""
        self.content = bytearray(self.synced)
        self.fall(self.durable)

    def fall(self, data: Path | None = None) -> None:
        killed = Path(self.place.name, "killed")
        shutil.copytree(self.directory, killed)
        if data is not None and data.exists():
            shutil.copy(data, killed / f"{UID}.data")
        self.overlays.close()
        shutil.rmtree(self.directory)
        killed.rename(self.directory)
        for chunk in self.written - self.kept:
            part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
            self.content[part] = self.base[part]
        self.written = set(self.kept)
        self.open()
        self.note_synced()

    def note_synced(self) -> None:
        self.synced = bytes(self.content)
        self.kept = set(self.written)

    @invariant()
    def a_reader_sees_what_was_written(self) -> None:
        if hasattr(self, "place"):
            assert image(self.layer, self.base) == bytes(self.content)
            assert self.layer.is_empty is (not self.written)
            assert self.layer.used_bytes == min(len(self.written) * CHUNK, len(self.base))


LayerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_a_layer_is_a_list_of_bytes = LayerMachine.TestCase
