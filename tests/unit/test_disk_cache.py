"""The disk cache: reads return correct bytes whatever happened to its files, and it never causes a failure."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backyfs.errors import ObjectMissingError
from backyfs.model import BlobUid
from backyfs.storage.beneath import Root
from backyfs.storage.cache.cells import CELL_BYTES, DATA_BYTES, cells_covering, copy_key, pack, unpack
from backyfs.storage.cache.space import Space
from backyfs.storage.cache.storage import CachedStorage, cached
from backyfs.storage.directory import DirectoryStorage
from backyfs.storage.forwarding import ForwardingStorage
from backyfs.storage.keys import ObjectName
from backyfs.storage.newdirectory import create_directory
from backyfs.storage.protocol import MAX_OBJECT_BYTES
from tests.support.disks import small_disk
from tests.support.repositories import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backyfs.model import Buffer
    from backyfs.storage.keys import Key
    from backyfs.storage.protocol import Storage

A = BlobUid("a1b2c3d4e5f60718293a4b5c6d7e8f90")
B = BlobUid("a1b2ffffffffffffffffffffffffffff")
NAMED = ObjectName("catalog/repository")
CELL = DATA_BYTES
SIZES = [0, 1, 100, CELL - 1, CELL, CELL + 1, 3 * CELL, 5 * CELL + 77]
GIB = 1 << 30
REPOSITORY = "12345678-aaaa"


def content_of(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class Spy(ForwardingStorage):
    """A storage that records what is read from it."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.read: list[tuple[int, int] | str | tuple[range, ...]] = []

    def get(self, key: Key, *, most: int = MAX_OBJECT_BYTES) -> Buffer:
        self.read.append("whole")
        return super().get(key, most=most)

    def get_range(self, key: Key, offset: int, length: int) -> bytes:
        self.read.append((offset, length))
        return super().get_range(key, offset, length)

    def get_ranges(self, key: Key, wanted: Sequence[range]) -> list[bytes]:
        self.read.append(tuple(wanted))
        return super().get_ranges(key, wanted)

    def asked(self) -> list[tuple[int, int] | str | tuple[range, ...]]:
        """Return the reads since the last call."""
        read, self.read = self.read, []
        return read

    def close(self) -> None:
        """Stay open for another cache."""


@pytest.fixture
def spy(tmp_path: Path) -> Iterator[Spy]:
    """Return a storage without a cache."""
    create_directory(str(tmp_path / "data"))
    storage = DirectoryStorage(str(tmp_path / "data"))
    yield Spy(storage)
    storage.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(spy: Spy, directory: Path) -> Iterator[Storage]:
    """Return a cache in front of the storage."""
    cache = in_front_of(spy, directory)
    yield cache
    cache.close()


def in_front_of(storage: Storage, directory: Path, *, size_bytes: int = GIB) -> CachedStorage:
    found = cached(storage, str(directory), size_bytes=size_bytes, repository=REPOSITORY)
    assert isinstance(found, CachedStorage)
    return found


def put(storage: Storage, content: bytes, uid: BlobUid = A) -> bytes:
    storage.put(uid, [content])
    storage.flush()
    return content


def copies(directory: Path) -> list[Path]:
    """Return the files of a cache."""
    return sorted(path for path in (directory / "copies").glob("??/*"))


def used_bytes(directory: Path) -> int:
    used = 0
    for path in copies(directory):
        try:
            used += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return used


# Reading


@pytest.mark.parametrize("size", SIZES)
def test_an_object_is_read_from_the_storage_once(spy: Spy, cache: Storage, size: int) -> None:
    content = put(spy, content_of(size))
    assert [cache.get(A), cache.get(A)] == [content, content]
    assert spy.asked() == ["whole"]


@pytest.mark.parametrize("size", SIZES)
def test_any_part_of_a_cached_object_is_in_the_cache(spy: Spy, cache: Storage, size: int) -> None:
    content = put(spy, content_of(size))
    cache.get(A)
    spy.asked()
    for offset, length in [(0, 1), (0, size or 1), (CELL - 1, 2), (size // 2, 99), (max(0, size - 3), 3)]:
        assert cache.get_range(A, offset, length) == content[offset : offset + length]
    assert spy.asked() == []


@pytest.mark.parametrize("size", SIZES)
def test_an_object_read_in_parts_is_in_the_cache(spy: Spy, cache: Storage, size: int) -> None:
    content = put(spy, content_of(size))
    for offset in range(0, size + 1, CELL):
        assert cache.get_range(A, offset, CELL) == content[offset : offset + CELL]
    spy.asked()
    assert cache.get(A) == content
    assert spy.asked() == []


def test_only_absent_cells_are_requested(spy: Spy, cache: Storage) -> None:
    content = put(spy, content_of(10 * CELL))
    assert cache.get_range(A, 0, 80) == content[:80]
    assert cache.get_range(A, 80, 3 * CELL) == content[80 : 80 + 3 * CELL]
    assert cache.get_range(A, 6 * CELL + 5, 10) == content[6 * CELL + 5 : 6 * CELL + 15]
    assert cache.get_range(A, 3 * CELL, 5 * CELL) == content[3 * CELL : 8 * CELL]
    assert spy.asked() == [(0, CELL), (CELL, 3 * CELL), (6 * CELL, CELL), (4 * CELL, 4 * CELL)]


def test_what_is_absent_of_several_parts_is_requested_together(spy: Spy, cache: Storage) -> None:
    content = put(spy, content_of(10 * CELL + 5))
    parts = [range(80), range(7 * CELL - 1, 9 * CELL), range(10 * CELL, 11 * CELL)]
    expected = [content[part.start : part.stop] for part in parts]
    assert cache.get_ranges(A, parts) == expected
    assert spy.asked() == [(range(CELL), range(6 * CELL, 9 * CELL), range(10 * CELL, 11 * CELL))]
    assert cache.get_ranges(A, parts) == expected
    assert cache.get_ranges(A, [range(3), range(CELL, CELL + 3)]) == [content[:3], content[CELL : CELL + 3]]
    assert spy.asked() == [(CELL, CELL)]


def test_the_end_of_an_object_is_cached(spy: Spy, cache: Storage) -> None:
    content = put(spy, content_of(2 * CELL))
    for _ in range(2):
        assert cache.get_range(A, CELL, 5 * CELL) == content[CELL:]
        assert cache.get_range(A, 40 * CELL, 7) == b""
    assert spy.asked() == [(CELL, 6 * CELL - CELL), (40 * CELL, CELL)]


def test_a_second_process_reads_what_the_first_one_cached(spy: Spy, cache: Storage, directory: Path) -> None:
    content = put(spy, content_of(3 * CELL + 1))
    cache.get(A)
    spy.asked()
    assert in_front_of(spy, directory).get_range(A, 5, 2 * CELL) == content[5 : 5 + 2 * CELL]
    assert spy.asked() == []


def test_repositories_that_share_a_cache_do_not_mix(spy: Spy, cache: Storage, directory: Path) -> None:
    put(spy, b"of one repository")
    cache.get(A)
    spy.delete([A])
    put(spy, b"of another one")
    other = cached(spy, str(directory), size_bytes=GIB, repository="another")
    assert other.get(A) == b"of another one"
    assert cache.get(A) == b"of one repository"


def test_named_objects_are_never_cached(spy: Spy, cache: Storage, directory: Path) -> None:
    for content in (b"first", b"second"):
        cache.put(NAMED, [content])
        cache.flush()
        assert cache.get(NAMED) == cache.get_range(NAMED, 0, 100) == content
    assert copies(directory) == []


def test_a_deleted_object_is_not_in_the_cache(spy: Spy, cache: Storage, directory: Path) -> None:
    put(spy, b"a")
    cache.get(A)
    cache.delete([A])
    assert copies(directory) == []
    with pytest.raises(ObjectMissingError):
        cache.get(A)
    with pytest.raises(ObjectMissingError):
        cache.get_range(A, 0, 1)


def test_an_oversized_object_is_not_read(spy: Spy, cache: Storage) -> None:
    put(spy, content_of(CELL))
    cache.get(A)
    with pytest.raises(Exception, match="more than any block takes"):
        cache.get(A, most=100)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_bytes_are_correct_after_any_reads_and_damage(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    place = tmp_path_factory.mktemp("any")
    create_directory(str(place / "data"))
    spy = Spy(DirectoryStorage(str(place / "data")))
    cache = in_front_of(spy, place / "cache")
    size = data.draw(st.sampled_from(SIZES))
    content = put(spy, content_of(size))
    for _ in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(["range", "range", "get", "flip", "truncate", "zero"])):
            case "get":
                assert cache.get(A) == content
            case "range":
                offset = data.draw(st.integers(0, size + CELL))
                length = data.draw(st.integers(0, size + CELL))
                assert cache.get_range(A, offset, length) == content[offset : offset + length]
            case damage:
                for path in copies(place / "cache"):
                    harm(path, damage, data.draw(st.integers(0, max(0, path.stat().st_size - 1))))
    cache.close()


def harm(path: Path, damage: str, position: int) -> None:
    """Damage a file at a position."""
    if damage == "truncate":
        os.truncate(path, position)
        return
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1) or b"\0"
        file.seek(position)
        file.write(b"\0" * 1000 if damage == "zero" else bytes((byte[0] ^ 0xFF,)))


# Contents of the files


@pytest.mark.parametrize("position", [*range(48), CELL_BYTES - 1, CELL_BYTES, CELL_BYTES + 33, 2 * CELL_BYTES + 76])
def test_a_flipped_byte_is_read_again_and_then_cached_again(
    spy: Spy, cache: Storage, directory: Path, position: int
) -> None:
    content = put(spy, content_of(2 * CELL + 40))
    cache.get(A)
    [path] = copies(directory)
    harm(path, "flip", position)
    spy.asked()
    assert cache.get(A) == content
    assert cache.get_range(A, 0, len(content)) == content
    assert spy.asked() == ["whole"]


def test_only_the_damaged_cell_is_read_again(spy: Spy, cache: Storage, directory: Path) -> None:
    content = put(spy, content_of(5 * CELL))
    cache.get(A)
    [path] = copies(directory)
    harm(path, "flip", 2 * CELL_BYTES + 1000)
    spy.asked()
    for _ in range(2):
        assert cache.get_range(A, 0, len(content)) == content
    assert spy.asked() == [(2 * CELL, CELL)]


@pytest.mark.parametrize("length", [0, 1, 31, 40, 41, CELL_BYTES - 1, CELL_BYTES, CELL_BYTES + 1, 2 * CELL_BYTES + 40])
def test_a_truncated_file_is_completed(spy: Spy, cache: Storage, directory: Path, length: int) -> None:
    content = put(spy, content_of(2 * CELL + 40))
    cache.get(A)
    [path] = copies(directory)
    os.truncate(path, length)
    assert cache.get_range(A, 0, len(content)) == content
    spy.asked()
    assert cache.get(A) == content
    assert spy.asked() == []


def test_the_file_of_another_blob_is_not_read(spy: Spy, cache: Storage, directory: Path) -> None:
    first, second = put(spy, content_of(CELL, 1)), put(spy, content_of(CELL, 2), B)
    for uid in (A, B):
        cache.get(uid)
    one, other = copies(directory)
    one.rename(directory / "third")
    other.rename(one)
    (directory / "third").rename(other)
    assert (cache.get(A), cache.get(B)) == (first, second)


def test_a_cell_in_the_place_of_another_fails_verification() -> None:
    key = copy_key(REPOSITORY, A)
    first, second, _ = (header + bytes(data) for header, data in pack(key, 0, content_of(2 * CELL), is_end=True))
    assert unpack(key, 0, second + first) == [None, None]
    assert unpack(key, 0, first + first)[1] is None
    assert None not in unpack(key, 0, first + second)


def test_cells_cover_a_range() -> None:
    assert cells_covering(0, 1) == range(1)
    assert cells_covering(CELL - 1, 2) == range(2)
    assert cells_covering(CELL, CELL) == range(1, 2)
    assert cells_covering(3 * CELL + 1, CELL) == range(3, 5)


def test_the_format_of_a_copy_does_not_change() -> None:
    key = copy_key(REPOSITORY, A)
    assert key.path == "0f/c70cd800862deb1be9d885bb4e7f958d6605be55e79e95812f51f729e50d38"
    [(header, data)] = pack(key, 0, b"backyfs", is_end=True)
    assert header[:32].hex() == "33cc0f2d6f40074372fb73f6048458eca2085b6cae39877f916ddaef73a98bc9"
    assert (header[32:].hex(), bytes(data)) == ("0000000007000000", b"backyfs")


def test_nobody_else_can_read_the_cache(spy: Spy, cache: Storage, directory: Path) -> None:
    put(spy, b"a")
    cache.get(A)
    [path] = copies(directory)
    modes = [each.stat().st_mode & 0o777 for each in (directory, directory / "copies", path.parent, path)]
    assert modes == [0o700, 0o700, 0o700, 0o600]


def test_a_link_in_place_of_a_copy_is_not_followed(spy: Spy, cache: Storage, directory: Path) -> None:
    content = put(spy, content_of(CELL))
    cache.get(A)
    [path] = copies(directory)
    target = directory / "target"
    path.rename(target)
    path.symlink_to(target)
    os.truncate(target, 5)
    assert cache.get(A) == content
    assert target.stat().st_size == 5


# Size

SIZE = 4 << 20
OBJECT = 100_000
OBJECT_AND_ROUNDING = OBJECT + 4 * CELL
ONE_PROCESS = SIZE * 7 // 8 + SIZE // 16 + OBJECT_AND_ROUNDING


def blobs(spy: Spy, count: int, size: int = OBJECT) -> list[BlobUid]:
    uids = [BlobUid(f"{number:032x}") for number in range(count)]
    for number, uid in enumerate(uids):
        spy.put(uid, [content_of(size, number)])
    spy.flush()
    return uids


def copy_of(directory: Path, uid: BlobUid) -> Path:
    return directory / "copies" / copy_key(REPOSITORY, uid).path


def make_older(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def full(spy: Spy, cache: Storage) -> list[BlobUid]:
    """Return the uids of 60 blobs, 50 of them cached, which is more than SIZE allows. The first is the oldest."""
    uids = blobs(spy, 60)
    for uid in uids[:50]:
        cache.get(uid)
    return uids


@contextmanager
def smaller(spy: Spy, directory: Path, size_bytes: int = SIZE) -> Iterator[CachedStorage]:
    cache = in_front_of(spy, directory, size_bytes=size_bytes)
    yield cache
    cache.close()


def settle() -> None:
    """Wait until caches that are removing files have finished."""
    for thread in threading.enumerate():
        if thread.name == "cache":
            thread.join()


@pytest.mark.parametrize(("size", "count"), [(300, 1000), (OBJECT, 120)])
def test_the_files_never_exceed_the_size_of_the_cache(spy: Spy, directory: Path, size: int, count: int) -> None:
    uids = blobs(spy, count, size)
    with smaller(spy, directory) as cache:
        for uid in 3 * uids:
            cache.get(uid)
            assert used_bytes(directory) <= ONE_PROCESS
        assert copies(directory) != []


def test_parts_of_objects_are_counted_too(spy: Spy, directory: Path) -> None:
    uids = blobs(spy, 150, 10 * CELL)
    with smaller(spy, directory) as cache:
        for uid in uids:
            cache.get_range(uid, 2 * CELL, 9)
            cache.get_range(uid, 5 * CELL, 9)
            assert used_bytes(directory) <= ONE_PROCESS


def test_a_smaller_size_applies_from_the_first_write(spy: Spy, directory: Path, full: list[BlobUid]) -> None:
    assert used_bytes(directory) > SIZE
    with smaller(spy, directory) as cache:
        cache.get(full[50])
        settle()
    assert used_bytes(directory) <= ONE_PROCESS


def test_the_least_recently_read_files_are_removed(spy: Spy, directory: Path, full: list[BlobUid]) -> None:
    paths = [copy_of(directory, uid) for uid in full[:50]]
    for number, path in enumerate(paths):
        make_older(path, 10_000 - 150 * number)
    with smaller(spy, directory) as cache:
        cache.get_range(full[0], 0, 1)  # the oldest, which is now in use again
        cache.get(full[50])
        settle()
    there = [path.exists() for path in paths]
    assert there[0]
    assert there[1:] == sorted(there[1:]), "the older ones are removed first"
    assert there.count(True) > 25, "no more than necessary is removed"


def test_no_more_files_of_the_same_age_than_necessary_are_removed(
    spy: Spy, directory: Path, full: list[BlobUid]
) -> None:
    for uid in full[:50]:
        make_older(copy_of(directory, uid), 1e6)
    with smaller(spy, directory) as cache:
        cache.get(full[50])
        settle()
    assert SIZE // 2 < used_bytes(directory) <= ONE_PROCESS


def test_files_dated_by_a_wrong_clock_are_removed_first(spy: Spy, directory: Path, full: list[BlobUid]) -> None:
    wrong, in_use = copy_of(directory, full[48]), copy_of(directory, full[49])
    make_older(wrong, -1e8)
    make_older(in_use, -1e8)
    with smaller(spy, directory) as cache:
        cache.get_range(full[49], 0, 1)
        cache.get(full[50])
        settle()
    assert (wrong.exists(), in_use.exists()) == (False, True)


def test_foreign_files_are_kept(spy: Spy, directory: Path, full: list[BlobUid]) -> None:
    path = copy_of(directory, full[0])
    theirs = [directory / "notes", directory / "copies/notes", path.with_name("notes"), directory / "ab" / path.name]
    for each in theirs:
        each.parent.mkdir(exist_ok=True)
        each.write_bytes(bytes(OBJECT))
        make_older(each, 1e8)
    path.with_name("a" * 62).mkdir()
    with smaller(spy, directory, 1) as cache:
        cache.get(full[50])
        settle()
    assert not path.exists()
    assert all(each.exists() for each in theirs)


def _use(place: Path, seed: int, most: int) -> None:
    """Read random blobs through a cache that another process also uses; exit with 0 if all bytes are correct."""
    storage = DirectoryStorage(str(place / "data"))
    cache = in_front_of(storage, place / "cache", size_bytes=SIZE)
    choose = random.Random(seed)
    for _ in range(400):
        number = choose.randrange(100)
        uid = BlobUid(f"{number:032x}")
        content = content_of(OBJECT, number)
        if choose.random() < 0.5:
            assert cache.get(uid) == content
        else:
            offset, length = choose.randrange(OBJECT), choose.randrange(1, OBJECT)
            assert cache.get_range(uid, offset, length) == content[offset : offset + length]
        assert used_bytes(place / "cache") <= most
    cache.close()


@pytest.mark.slow
def test_processes_can_share_a_cache(spy: Spy, tmp_path: Path) -> None:
    blobs(spy, 100, OBJECT)
    most = SIZE * 7 // 8 + 2 * (SIZE // 16 + OBJECT_AND_ROUNDING)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_use, args=(tmp_path, seed, most)) for seed in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


# Failures


def fail(number: int) -> Callable[..., Any]:
    def raise_it(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    return raise_it


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE]


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize(
    ("owner", "name"),
    [(os, "pwritev"), (Root, "open"), (Root, "open_to_read"), (Root, "create"), (Root, "make_directory"),
     (os, "scandir"), (os, "listdir"), (os, "pread")],
)  # fmt: skip
def test_a_broken_cache_gives_one_warning(
    spy: Spy, cache: Storage, directory: Path, full: list[BlobUid], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, owner: Any, name: str, number: int,
) -> None:  # fmt: skip
    plain = Plain({uid: bytes(spy.get(uid)) for uid in full})  # which needs none of these functions
    with smaller(plain, directory) as broken:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail(number))
            for uid in [*full[45:], *full[45:]]:
                assert broken.get(uid) == plain.objects[uid]
                assert broken.get_range(uid, 5, 3 * CELL) == plain.objects[uid][5 : 5 + 3 * CELL]
            settle()
        assert broken.get(full[0]) == plain.objects[full[0]]
    reason = os.strerror(number)
    assert warnings_of(caplog) == [f"disk cache {directory}: {reason}; blocks are read from the storage without it"]


class Plain(Spy):
    """A storage in memory."""

    def __init__(self, objects: dict[BlobUid, bytes]) -> None:
        self.objects = objects

    def get(self, key: Key, *, most: int = MAX_OBJECT_BYTES) -> Buffer:
        return self.objects[BlobUid(key)]

    def get_range(self, key: Key, offset: int, length: int) -> bytes:
        return self.objects[BlobUid(key)][offset : offset + length]


def test_a_full_disk_gives_one_warning(
    spy: Spy, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uids = blobs(spy, 20)
    with small_disk(directory, 512 << 10, monkeypatch), smaller(spy, directory, GIB) as cache:
        for uid in 2 * uids:
            assert cache.get(uid) == spy.get(uid)
        spy.asked()
        assert cache.get(uids[0]) == spy.storage.get(uids[0])
        assert spy.asked() == []  # cached bytes can still be read
    assert warnings_of(caplog) == [
        f"disk cache {directory}: No space left on device; blocks are read from the storage without it"
    ]


def test_a_removed_cache_is_created_again(spy: Spy, cache: Storage, directory: Path) -> None:
    content = put(spy, content_of(CELL))
    cache.get(A)
    shutil.rmtree(directory / "copies")
    (directory / "copies").mkdir(mode=0o700)
    spy.asked()
    assert [cache.get(A), cache.get(A)] == [content, content]
    assert spy.asked() == ["whole"]


def test_a_missing_directory_gives_one_warning(
    spy: Spy, cache: Storage, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = put(spy, content_of(CELL))
    cache.get(A)
    shutil.rmtree(directory)
    for _ in range(3):
        assert cache.get(A) == content
        assert cache.get_range(A, 1, 1) == content[1:2]
    assert warnings_of(caplog) == [
        f"disk cache {directory}: No such file or directory; blocks are read from the storage without it"
    ]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_cache_that_works_again_is_used_again(
    spy: Spy, directory: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    content = put(spy, content_of(CELL))
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with smaller(spy, directory) as cache:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", fail(number))
            assert cache.get(A) == content
        assert cache.get(A) == content
        assert copies(directory) == [] or copies(directory)[0].stat().st_size == 0
        now += 61
        assert cache.get(A) == content
        spy.asked()
        assert cache.get(A) == content
    assert spy.asked() == []


def test_a_copy_on_a_bad_sector_is_removed(spy: Spy, cache: Storage, directory: Path, monkeypatch) -> None:
    content = put(spy, content_of(CELL))
    cache.get(A)
    plain = Plain({A: content})
    with smaller(plain, directory) as broken, monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail(errno.EIO))
        assert broken.get(A) == content
    assert copies(directory) == []


def test_nothing_is_cached_while_no_thread_can_look_for_what_to_remove(
    spy: Spy, cache: Storage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    content = put(spy, content_of(CELL))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert [cache.get(A), cache.get(A)] == [content, content]
    assert spy.asked() == ["whole", "whole"]
    assert copies(directory) == []
    assert [cache.get(A), cache.get(A)] == [content, content]
    assert spy.asked() == ["whole"]


# Rejected directories


def unused(spy: Spy, directory: Path, caplog: pytest.LogCaptureFixture) -> str:
    """Return the warning about a rejected directory."""
    assert cached(spy, str(directory), size_bytes=GIB, repository=REPOSITORY) is spy
    [warning] = warnings_of(caplog)
    assert warning.startswith(f"disk cache {directory}: ")
    assert warning.endswith("; blocks are read from the storage without it")
    return warning.removeprefix(f"disk cache {directory}: ").rpartition(";")[0]


def test_a_directory_that_others_can_change_is_not_used(
    spy: Spy, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.mkdir()
    directory.chmod(0o777)
    trusted = "root" if os.geteuid() == 0 else f"root and user {os.geteuid()}"
    assert unused(spy, directory, caplog) == (
        f"{directory} can be changed by every user, so others could read or replace the content of {directory}/copies; "
        f"name a directory that only {trusted} can change, or run `chmod go-w {directory}`"
    )


@pytest.mark.root
def test_the_directory_of_another_user_is_not_used(spy: Spy, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    assert unused(spy, directory, caplog).startswith(f"{directory} belongs to user 65534, so others could read or ")


def test_a_file_in_place_of_the_directory_is_not_used(
    spy: Spy, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.write_bytes(b"")
    assert unused(spy, directory, caplog) == "Not a directory"


def test_a_directory_that_cannot_be_created_is_not_used(spy: Spy, caplog: pytest.LogCaptureFixture) -> None:
    assert unused(spy, Path("/proc/none"), caplog) == "No such file or directory"


# Kills

C = BlobUid("c" * 32)
LARGE = 600 * CELL + 5  # several writes


def _read_all(cache: Storage, content: dict[BlobUid, bytes]) -> None:
    for uid, expected in content.items():
        assert cache.get_range(uid, 3 * CELL + 1, 2 * CELL) == expected[3 * CELL + 1 : 5 * CELL + 1]
        assert cache.get(uid) == expected
        assert cache.get_range(uid, 0, 5) == expected[:5]


def _killed(place: Path, content: dict[BlobUid, bytes], step: int, part: float) -> bool:
    """Use a cache and be killed halfway through a change of its files; return whether there was such a change."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def killing(real: Callable[..., Any], half: Callable[..., object]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == step:
                    half(*arguments)
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        def write_part(fd: int, buffers: list[bytes], offset: int) -> None:
            joined = b"".join(buffers)
            os.pwrite(fd, joined[: int(len(joined) * part)], offset)

        try:
            os.pwritev = killing(os.pwritev, write_part)
            os.mkdir = killing(os.mkdir, lambda *_: None)
            os.unlink = killing(os.unlink, lambda *_: None)
            storage = DirectoryStorage(str(place / "data"))
            _read_all(in_front_of(storage, place / "cache"), content)
            in_front_of(storage, place / "cache", size_bytes=1).get(C)  # which removes the others
            settle()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 1.0])
def test_a_cache_can_be_killed_at_any_moment(spy: Spy, tmp_path: Path, directory: Path, part: float) -> None:
    content = {uid: put(spy, content_of(size), uid) for uid, size in ((A, LARGE), (B, 20 * CELL))}
    put(spy, b"c", C)
    steps = 1
    while _killed(tmp_path, content, steps, part):
        with smaller(spy, directory, GIB) as cache:
            _read_all(cache, content)
            spy.asked()
            _read_all(cache, content)
            assert spy.asked() == []
        shutil.rmtree(directory)
        steps += 1
    assert steps > 8


@pytest.mark.parametrize("size_bytes", [64 << 10, 100 << 20, GIB])
def test_a_cache_of_any_size_takes_more_after_each_look(tmp_path: Path, size_bytes: int) -> None:
    (tmp_path / "copies").mkdir()
    space = Space(Root(str(tmp_path / "copies")), size_bytes, _unexpected)
    for _ in range(100):
        deadline = time.monotonic() + PATIENCE_S
        while not space.take(4 << 20):
            assert time.monotonic() < deadline, "it takes nothing any more"
            time.sleep(0.001)
    space.close()


class HangingRoot(Root):
    """A directory on a disk that does not answer until it is released."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.is_waiting = threading.Event()
        self.answers = threading.Event()

    def open(self, name: str, flags: int, mode: int = 0) -> int:
        self.is_waiting.set()
        self.answers.wait()
        return super().open(name, flags, mode)


@pytest.mark.slow
def test_a_cache_is_closed_while_its_disk_hangs(tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    root = HangingRoot(str(tmp_path / "copies"))
    space = Space(root, GIB, _unexpected)
    assert space.take(1)
    root.is_waiting.wait()
    space.close()
    root.answers.set()
    settle()


def _unexpected(error: OSError) -> None:
    raise error
