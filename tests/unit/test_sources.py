"""Files and block devices as sources and targets."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import subprocess
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backyfs.config import FileIoConfig
from backyfs.errors import SourceError, TargetError
from backyfs.geometry import Extent
from backyfs.sources.change import ChangeKind
from backyfs.sources.file import FileSource
from backyfs.sources.protocol import check_size
from backyfs.sources.registry import open_source
from backyfs.targets.file import FileTarget
from tests.support.images import random_bytes, random_image, read_source, sparse_image

MIB = 1 << 20


@contextmanager
def source_of(path, **options):
    source = FileSource(str(path), **options)
    try:
        yield source
    finally:
        source.close()


@contextmanager
def loop_device(path: Path, *options: str):
    device = subprocess.run(
        ["losetup", "--find", "--show", *options, str(path)], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def another_user():
    """Act as a user without rights until the end."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def open_files() -> int:
    gc.collect()  # other tests may have left theirs to the garbage collector
    return len(os.listdir("/proc/self/fd"))


def resident_pages(path: Path) -> list[bool]:
    """Return which pages of a file are in the page cache; see mincore(2)."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        pages = -(-size // mmap.PAGESIZE)
        vector = (ctypes.c_ubyte * pages)()
        assert libc.mincore(ctypes.byref(first), ctypes.c_size_t(size), vector) == 0
        del first
        return [bool(entry & 1) for entry in vector]


def drop_from_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def disk_directory():
    """Make a directory on a disk. On a memory file system, a page cache cannot be tested."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(directory)


def test_extents_are_where_the_data_are(tmp_path):
    image = sparse_image(tmp_path / "image", 10 * MIB, {MIB: b"x" * 4096, 5 * MIB: b"y" * 8192})
    with source_of(image) as source:
        assert list(source.data_extents()) == [Extent(MIB, MIB + 4096), Extent(5 * MIB, 5 * MIB + 8192)]


@pytest.mark.parametrize(("size", "extents"), [(0, []), (7, [Extent(0, 7)])])
def test_small_files_have_an_extent(tmp_path, size, extents):
    with source_of(random_image(tmp_path / "image", size)) as source:
        assert source.size_bytes == size
        assert list(source.data_extents()) == extents


def test_a_file_of_holes_has_no_extent(tmp_path):
    with source_of(sparse_image(tmp_path / "image", MIB, {})) as source:
        assert list(source.data_extents()) == []


def test_a_file_without_holes_is_one_extent(tmp_path):
    with source_of(random_image(tmp_path / "image", 3 * MIB + 5)) as source:
        assert list(source.data_extents()) == [Extent(0, 3 * MIB + 5)]


def test_data_appended_after_opening_are_not_part_of_the_image(tmp_path):
    image = random_image(tmp_path / "image", MIB)
    with source_of(image) as source:
        with image.open("ab") as file:
            file.write(bytes(MIB))
        assert source.size_bytes == MIB
        assert list(source.data_extents()) == [Extent(0, MIB)]


@pytest.mark.parametrize(
    ("start", "extents"),
    [
        (0, [Extent(MIB, MIB + 4096), Extent(5 * MIB, 5 * MIB + 4096)]),
        (MIB + 512, [Extent(MIB + 512, MIB + 4096), Extent(5 * MIB, 5 * MIB + 4096)]),
        (2 * MIB, [Extent(5 * MIB, 5 * MIB + 4096)]),
        (6 * MIB, []),
        (8 * MIB, []),
    ],
)
def test_extents_can_be_listed_from_any_byte(tmp_path, start, extents):
    image = sparse_image(tmp_path / "image", 8 * MIB, {MIB: b"x" * 4096, 5 * MIB: b"y" * 4096})
    with source_of(image) as source:
        assert list(source.data_extents(start)) == extents


@pytest.mark.parametrize("start", [0, 3 * MIB, 8 * MIB])
def test_holes_are_data_if_the_file_system_is_not_trusted(tmp_path, start):
    image = sparse_image(tmp_path / "image", 8 * MIB, {MIB: b"x" * 4096})
    with source_of(image, read_holes=True) as source:
        assert list(source.data_extents(start)) == ([Extent(start, 8 * MIB)] if start < 8 * MIB else [])


class Configured:
    """The part of a configuration that a file uses."""

    def __init__(self, **keys):
        self.io_file = FileIoConfig(**keys)


@pytest.mark.parametrize(("key", "option", "extents"), [(False, False, 0), (True, False, 1), (False, True, 1)])
def test_holes_are_read_if_the_configuration_or_the_caller_asks_for_it(tmp_path, key, option, extents):
    image = sparse_image(tmp_path / "image", MIB, {})
    config: Any = Configured(read_holes=key)
    source = open_source(str(image), config, read_holes=option)
    assert len(list(source.data_extents())) == extents
    source.close()


def test_a_block_device_is_read_like_a_file(tmp_path):
    image = random_image(tmp_path / "image", MIB)
    with loop_device(image) as device, source_of(device) as source:
        assert source.size_bytes == MIB
        assert list(source.data_extents()) == [Extent(0, MIB)]
        assert read_source(source, 1000, 5000) == image.read_bytes()[1000:6000]


@pytest.mark.parametrize("what", ["missing", "directory", "fifo", "device"])
def test_anything_but_an_image_is_refused_by_name(tmp_path, what):
    path = Path("/dev/null") if what == "device" else tmp_path / what
    before = open_files()
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    with pytest.raises(SourceError, match=str(path)):
        FileSource(str(path))
    assert open_files() == before


def test_an_unreadable_file_is_refused(disk_directory):
    disk_directory.chmod(0o755)
    image = random_image(disk_directory / "image", 10)
    image.chmod(0o600)
    with another_user(), pytest.raises(SourceError, match=f"{image} cannot be read: Permission denied"):
        FileSource(str(image))


@pytest.mark.parametrize("path", ["/proc/version", "/proc/self/maps", "/proc/self/mem"])
def test_a_file_that_does_not_know_its_size_is_refused_and_closed(path):
    before = open_files()
    with pytest.raises(SourceError, match=path):
        FileSource(path)
    assert open_files() == before


def test_a_device_without_a_medium_is_refused(tmp_path):
    image = sparse_image(tmp_path / "image", MIB, {})
    with loop_device(image) as device:
        os.truncate(image, 0)
        subprocess.run(["losetup", "--set-capacity", device], check=True)
        with pytest.raises(SourceError, match=f"{device} has no bytes: nothing is attached to it; attach its"):
            FileSource(device)


@pytest.mark.parametrize("size", [0, 3 * MIB, 6 * MIB])
def test_the_missing_end_of_a_file_truncated_in_a_hole_is_not_a_hole(tmp_path, size):
    image = sparse_image(tmp_path / "image", 8 * MIB, {0: b"x" * MIB, 7 * MIB: b"y" * MIB})
    with source_of(image) as source:
        os.truncate(image, size)
        with pytest.raises(SourceError, match=f"has {size} bytes and had {8 * MIB} when it was opened: it shrank"):
            list(source.data_extents())


@pytest.mark.parametrize("size", [0, MIB - 1, MIB + 1])
def test_a_file_whose_size_changed_is_an_error(tmp_path, size):
    image = random_image(tmp_path / "image", MIB)
    with source_of(image) as source:
        check_size(source)
        os.truncate(image, size)
        with pytest.raises(SourceError, match=f"{image} has {size} bytes and had {MIB} when it was opened"):
            check_size(source)


@pytest.mark.parametrize("size", [MIB, 3 * MIB])
def test_a_device_whose_size_changed_is_an_error(tmp_path, size):
    image = random_image(tmp_path / "image", 2 * MIB)
    with loop_device(image) as device, source_of(device) as source:
        check_size(source)
        os.truncate(image, size)
        subprocess.run(["losetup", "--set-capacity", device], check=True)
        with pytest.raises(SourceError, match=f"{device} has {size} bytes and had {2 * MIB} when it was opened"):
            check_size(source)


@pytest.mark.parametrize("uri", ["null://1M", "null://0"])
def test_test_data_never_changes(uri):
    source = open_source(uri)
    check_size(source)
    assert list(source.signs_of_change(datetime(2000, 1, 1, tzinfo=UTC))) == []


def kinds(source, since=None):
    return [warning.kind for warning in source.signs_of_change(since)]


def test_reading_a_file_does_not_look_like_a_change(tmp_path):
    image = random_image(tmp_path / "image", MIB)
    with source_of(image) as source:
        read_source(source, 0, MIB)
        assert kinds(source) == []
        check_size(source)


def overwritten(image):
    with image.open("r+b") as file:
        file.write(b"new")


def overwritten_and_set_back(image):
    before = image.stat()
    overwritten(image)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(image):
    image.with_name("other").write_bytes(image.read_bytes())
    image.with_name("other").rename(image)


@pytest.mark.parametrize("change", [overwritten, overwritten_and_set_back, replaced])
def test_a_file_changed_after_opening_gives_a_warning(tmp_path, change):
    image = random_image(tmp_path / "image", MIB)
    os.utime(image, (0, 0))
    with source_of(image) as source:
        wait_for_a_later_time(tmp_path, image)
        change(image)
        [warning] = source.signs_of_change()
        assert warning.kind is ChangeKind.CHANGED
        assert warning.text.startswith(f"{image} has changed since its backup began: ")


def wait_for_a_later_time(directory, image):
    """Wait until the clock of the file system, which may tick every few milliseconds, is past the last change."""
    deadline = time.monotonic() + 60
    while True:
        (directory / "probe").write_bytes(b"x")
        if (directory / "probe").stat().st_ctime_ns > image.stat().st_ctime_ns:
            return
        assert time.monotonic() < deadline


@pytest.mark.parametrize(("hours", "expected"), [(-1, [ChangeKind.CHANGED]), (1, [])])
def test_a_change_before_opening_counts_if_the_backup_had_begun(tmp_path, hours, expected):
    image = random_image(tmp_path / "image", MIB)
    with source_of(image) as source:
        assert kinds(source, datetime.now(UTC) + timedelta(hours=hours)) == expected


def test_a_source_that_shrinks_is_an_error(tmp_path):
    image = random_image(tmp_path / "image", 1000)
    with source_of(image) as source:
        os.truncate(image, 500)
        with pytest.raises(SourceError, match="it has shrunk since the backup began"):
            read_source(source, 0, 1000)


def test_reading_leaves_no_new_page_in_the_cache(disk_directory):
    image = random_image(disk_directory / "image", 8 * MIB)
    drop_from_cache(image)
    assert not any(resident_pages(image))
    with source_of(image) as source:
        for offset in range(0, 8 * MIB, MIB):
            assert len(read_source(source, offset, MIB)) == MIB
    assert not any(resident_pages(image))


def test_reading_keeps_pages_that_were_in_the_cache(disk_directory):
    image = random_image(disk_directory / "image", 8 * MIB)
    for _ in range(5):
        drop_from_cache(image)
        with image.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            os.pread(file.fileno(), 2 * MIB, 3 * MIB)
        before = resident_pages(image)
        with source_of(image) as source:
            content = b"".join(read_source(source, offset, MIB) for offset in range(0, 8 * MIB, MIB))
        after = resident_pages(image)
        assert content == random_bytes(8 * MIB)
        assert not any(now and not then for now, then in zip(after, before, strict=True))
        if sum(before) == 2 * MIB // mmap.PAGESIZE and after == before:
            return
    pytest.fail("reading removed cached pages all five times; the kernel does that on its own, but not every time")


# Targets


def written(target, pieces):
    """Write pieces at their offsets and end the restore."""
    for offset, piece in pieces.items():
        target.write(offset, piece)
    target.finish()
    target.close()


def test_a_new_file_is_private_and_has_holes_where_nothing_is_written(tmp_path):
    path = tmp_path / "target"
    written(FileTarget(str(path), 64 * MIB + 3, replace=False), {MIB: b"x" * 4096, 64 * MIB: b"end"})
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == 64 * MIB + 3
    assert path.stat().st_blocks * 512 <= 64 << 10
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 4098, MIB - 1) == b"\0" + b"x" * 4096 + b"\0"
        assert os.pread(file.fileno(), 100, 64 * MIB) == b"end"


def test_zeros_in_a_file_become_holes(tmp_path):
    target = FileTarget(str(tmp_path / "target"), MIB, replace=False)
    target.write_zeros(0, MIB)
    written(target, {})
    assert (tmp_path / "target").stat().st_blocks == 0


def test_an_existing_file_is_refused_and_not_changed(tmp_path):
    image = random_image(tmp_path / "image", 100)
    before = open_files()
    with pytest.raises(TargetError, match="already exists; name another target, or allow overwriting it"):
        FileTarget(str(image), 10, replace=False)
    assert image.read_bytes() == random_bytes(100)
    assert open_files() == before


def test_a_replaced_file_keeps_none_of_its_old_content(tmp_path):
    image = random_image(tmp_path / "image", 100)
    written(FileTarget(str(image), 20, replace=True), {0: b"new"})
    assert image.read_bytes() == b"new" + bytes(17)


def test_an_unwritable_file_is_refused(disk_directory):
    disk_directory.chmod(0o755)
    image = random_image(disk_directory / "image", 10)
    with another_user(), pytest.raises(TargetError, match="cannot be written: Permission denied"):
        FileTarget(str(image), 10, replace=True)
    assert image.read_bytes() == random_bytes(10)


def test_a_device_keeps_its_data_beyond_the_image(tmp_path):
    image = random_image(tmp_path / "image", MIB)
    with loop_device(image) as device:
        written(FileTarget(device, 4096 + 10, replace=True), {4096: b"last block"})
        content = Path(device).read_bytes()
    assert content == random_bytes(MIB)[:4096] + b"last block" + random_bytes(MIB)[4106:]


def test_a_read_only_device_is_reported(tmp_path):
    image = random_image(tmp_path / "image", MIB)
    with loop_device(image, "--read-only") as device, pytest.raises(TargetError, match="cannot be written"):
        written(FileTarget(device, MIB, replace=True), {0: b"x" * 4096})
    assert image.read_bytes() == random_bytes(MIB)


def test_a_full_file_system_is_reported_with_its_remedy(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        target = FileTarget(str(tmp_path / "target"), MIB, replace=False)
        with pytest.raises(TargetError, match="no space is left on its file system; make room there, or name another"):
            target.write(0, bytes(MIB))
        target.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_device_that_is_too_small_is_refused(tmp_path):
    image = random_image(tmp_path / "image", MIB)
    with loop_device(image) as device, pytest.raises(TargetError, match="too small: it has 1048576 bytes"):
        FileTarget(device, MIB + 1, replace=True)
    assert image.read_bytes() == random_bytes(MIB)


def test_a_device_is_not_overwritten_without_being_asked(tmp_path):
    image = random_image(tmp_path / "image", MIB)
    with loop_device(image) as device, pytest.raises(TargetError, match="is a block device; allow overwriting it"):
        FileTarget(device, MIB, replace=False)
    assert image.read_bytes() == random_bytes(MIB)


def test_a_mounted_device_is_refused_even_with_force(tmp_path):
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    (tmp_path / "mnt").mkdir()
    with loop_device(image) as device:
        subprocess.run(["mount", device, str(tmp_path / "mnt")], check=True)
        try:
            with pytest.raises(TargetError, match="is in use; unmount it"):
                FileTarget(device, MIB, replace=True)
        finally:
            subprocess.run(["umount", str(tmp_path / "mnt")], check=True)


@pytest.mark.parametrize(("offset", "length"), [(0, MIB), (4096, 8192), (1000, 3000), (MIB - 1, 1)])
def test_zeros_on_a_device_replace_old_data(tmp_path, offset, length):
    image = random_image(tmp_path / "image", MIB)
    with loop_device(image) as device:
        target = FileTarget(device, MIB, replace=True)
        target.write_zeros(offset, length)
        target.finish()
        target.close()
        content = Path(device).read_bytes()
    before = random_bytes(MIB)
    assert content == before[:offset] + bytes(length) + before[offset + length :]


def test_a_target_in_a_directory_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(TargetError, match="its directory does not exist"):
        FileTarget(str(tmp_path / "none" / "image"), 1, replace=False)


def test_a_directory_is_refused_as_a_target(tmp_path):
    with pytest.raises(TargetError, match="is a directory; name a file in it"):
        FileTarget(str(tmp_path), 1, replace=True)


def test_a_fifo_is_refused_as_a_target(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TargetError, match="neither a file nor a block device"):
        FileTarget(str(tmp_path / "fifo"), 1, replace=True)
