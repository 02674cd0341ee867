"""One suite for every storage; after it, tests of the directory storage."""

from __future__ import annotations

import errno
import math
import os
import secrets
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from backyfs.config import NullStorageConfig
from backyfs.errors import IntegrityError, ObjectMissingError, ObjectsKeptError, StorageError, WrongStorageError
from backyfs.model import BlobUid, Buffer
from backyfs.storage import directory as directory_module
from backyfs.storage import localfiles
from backyfs.storage.beneath import Root
from backyfs.storage.bucket import open_bucket
from backyfs.storage.cache.storage import cached
from backyfs.storage.directory import DirectoryStorage
from backyfs.storage.keys import ObjectName, is_blob
from backyfs.storage.marker import put_first_marker, read_marker, replace_marker
from backyfs.storage.newdirectory import create_directory
from backyfs.storage.null import NullStorage
from backyfs.storage.throttling import ThrottledStorage
from tests.support.buckets import Bucket
from tests.support.disks import small_disk
from tests.support.repositories import PATIENCE_S
from tests.support.stored import blob_uids, object_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from backyfs.storage.protocol import Storage

A = BlobUid("a1b2c3d4e5f60718293a4b5c6d7e8f90")
B = BlobUid("a1b2ffffffffffffffffffffffffffff")  # beside A
OF_BACKY2 = BlobUid("18c29961439EQS96qJLwyirryH3rZubX")
HOSTILE = [
    "", "ab", "abc", "../x", "../../etc/passwd", "/etc/passwd", "ab/cd", "abcd/../../x", "abcd\0", "abcd.blob",
    "abcd ", "abcd\n", "....", "ab-cd", "äbcd", "\N{ARABIC-INDIC DIGIT ONE}" * 4,
]  # fmt: skip


def make_directory(place: Path) -> Callable[[], Storage]:
    path = str(place / "data")
    create_directory(path)
    return lambda: DirectoryStorage(path)


def make_throttled(place: Path) -> Callable[[], Storage]:
    open_directory = make_directory(place)
    limits = NullStorageConfig(
        simultaneous_writes=2, simultaneous_reads=2, bandwidth_read=1 << 30, bandwidth_write=1 << 30
    )
    return lambda: ThrottledStorage(open_directory(), limits)


def make_cached(place: Path) -> Callable[[], Storage]:
    open_directory = make_directory(place)
    return lambda: cached(open_directory(), str(place / "cache"), size_bytes=1 << 30, repository="a")


# Servers of object stores.
SERVERS = ("radosgw", "seaweedfs")
# Each makes a storage in an empty place and returns a function that opens it. A new kind of storage is one more line.
STORAGES: dict[str, Callable[[Path], Callable[[], Storage]]] = {
    "cached": make_cached,
    "directory": make_directory,
    "throttled": make_throttled,
}
# Storages that keep nothing, for tests that do not need stored objects.
FORGETFUL: dict[str, Callable[[Path], Callable[[], Storage]]] = {
    "null": lambda _: NullStorage,
}


@pytest.fixture(scope="module")
def bucket_on(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Bucket]]:
    """Return a function that returns a bucket on a server, the same one for all tests: each has its own prefix."""
    made: dict[str, Bucket] = {}

    def bucket_on(server: str) -> Bucket:
        if server not in made:
            made[server] = Bucket.make(request.getfixturevalue(f"{server}_server"))
        return made[server]

    yield bucket_on
    for bucket in made.values():
        bucket.remove()


def make_storage(kind: str, place: Path, bucket_on: Callable[[str], Bucket]) -> Callable[[], Storage]:
    """Make an empty storage, and return a function that opens it."""
    if kind in SERVERS:
        config = bucket_on(kind).config(prefix=secrets.token_hex(8))
        return lambda: open_bucket(config, lambda: False)
    return (STORAGES | FORGETFUL)[kind](place)


@pytest.fixture(params=sorted([*STORAGES, *SERVERS]))
def open_storage(
    request: pytest.FixtureRequest, tmp_path: Path, bucket_on: Callable[[str], Bucket]
) -> Callable[[], Storage]:
    """Return a function that opens the same storage each time."""
    return make_storage(request.param, tmp_path, bucket_on)


@pytest.fixture
def storage(open_storage: Callable[[], Storage]) -> Iterator[Storage]:
    storage = open_storage()
    yield storage
    storage.close()


@pytest.fixture(params=sorted([*STORAGES, *FORGETFUL, *SERVERS]))
def any_storage(
    request: pytest.FixtureRequest, tmp_path: Path, bucket_on: Callable[[str], Bucket]
) -> Iterator[Storage]:
    storage = make_storage(request.param, tmp_path, bucket_on)()
    yield storage
    storage.close()


def put(storage: Storage, uid: str, *parts: Buffer) -> None:
    """Store an object durably."""
    storage.put(BlobUid(uid), parts)
    storage.flush()


# Objects


def test_an_object_is_read_as_stored(storage: Storage) -> None:
    put(storage, A, b"backyfs")
    assert storage.get(A) == b"backyfs"


def test_put_returns_the_size_of_the_object(any_storage: Storage) -> None:
    assert any_storage.put(A, [b"tag", b"nonce", b"ciphertext"]) == 18


def test_parts_are_stored_one_after_the_other(storage: Storage) -> None:
    put(storage, A, b"tag", bytearray(b"nonce"), memoryview(b"the ciphertext")[4:])
    assert storage.get(A) == b"tagnonceciphertext"


@pytest.mark.parametrize("parts", [[], [b""], [b"", b""]])
def test_an_object_can_be_empty(storage: Storage, parts: Sequence[bytes]) -> None:
    assert storage.put(A, parts) == 0
    storage.flush()
    assert storage.get(A) == b""


@pytest.mark.parametrize("size", [1, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, (5 << 20) + 7])
def test_objects_of_any_size_can_be_stored(storage: Storage, size: int) -> None:
    content = os.urandom(size)
    put(storage, A, content[:1], content[1:])
    assert storage.get(A) == content


def test_a_buffer_may_be_reused_after_put(storage: Storage) -> None:
    buffer = bytearray(b"first")
    storage.put(A, [buffer])
    buffer[:] = b"other"
    storage.flush()
    assert storage.get(A) == b"first"


def test_objects_do_not_mix(storage: Storage) -> None:
    storage.put(A, [b"a"])
    storage.put(B, [b"b"])
    storage.flush()
    assert (storage.get(A), storage.get(B)) == (b"a", b"b")


def test_uids_may_differ_only_in_case(storage: Storage) -> None:
    put(storage, OF_BACKY2, b"one")
    put(storage, OF_BACKY2.swapcase(), b"two")
    assert storage.get(OF_BACKY2) == b"one"
    assert storage.get(BlobUid(OF_BACKY2.swapcase())) == b"two"


def test_objects_are_kept_when_the_storage_is_opened_again(open_storage: Callable[[], Storage]) -> None:
    first = open_storage()
    put(first, A, b"backyfs")
    first.close()
    second = open_storage()
    assert second.get(A) == b"backyfs"
    second.close()


def test_two_openings_of_a_storage_see_the_same_objects(storage: Storage, open_storage: Callable[[], Storage]) -> None:
    other = open_storage()
    put(storage, A, b"backyfs")
    assert other.get(A) == b"backyfs"
    other.close()


def test_an_unknown_object_is_missing(storage: Storage) -> None:
    with pytest.raises(ObjectMissingError, match=rf"^blob {A} is missing from the storage$") as caught:
        storage.get(A)
    assert caught.value.key == A


def test_a_neighbour_of_an_object_is_missing(storage: Storage) -> None:
    put(storage, A, b"a")
    with pytest.raises(ObjectMissingError):
        storage.get(B)


# Parts of objects


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 7, b"backyfs"), (0, 3, b"bac"), (2, 3, b"cky"), (6, 1, b"s"), (3, 0, b""),  # within it
        (0, 8, b"backyfs"), (5, 100, b"fs"), (7, 1, b""), (100, 5, b""),  # beyond its end
    ],
)  # fmt: skip
def test_a_part_beyond_the_end_of_an_object_is_shortened(
    storage: Storage, offset: int, length: int, expected: bytes
) -> None:
    put(storage, A, b"backyfs")
    assert storage.get_range(A, offset, length) == expected


def test_large_parts_are_read_completely(storage: Storage) -> None:
    content = os.urandom((5 << 20) + 7)
    put(storage, A, content)
    assert storage.get_range(A, 777, 5 << 20) == content[777 : 777 + (5 << 20)]


def test_a_part_of_an_unknown_object_is_missing(any_storage: Storage) -> None:
    with pytest.raises(ObjectMissingError) as caught:
        any_storage.get_range(A, 0, 1)
    assert caught.value.key == A


# Deleting and listing


def test_a_deleted_object_is_missing(storage: Storage) -> None:
    put(storage, A, b"a")
    put(storage, B, b"b")
    storage.delete([A])
    with pytest.raises(ObjectMissingError):
        storage.get(A)
    assert storage.get(B) == b"b"


def test_deleting_twice_does_no_harm(storage: Storage) -> None:
    put(storage, A, b"a")
    storage.delete([A])
    storage.delete([A])
    assert blob_uids(storage) == []


def test_deleting_an_unknown_object_does_no_harm(any_storage: Storage) -> None:
    any_storage.delete([A])
    assert blob_uids(any_storage) == []


def test_a_new_storage_lists_nothing(any_storage: Storage) -> None:
    assert blob_uids(any_storage) == []


def test_every_object_is_listed_by_its_uid(storage: Storage) -> None:
    uids = {A, B, OF_BACKY2, BlobUid("f" * 32)}
    for uid in uids:
        storage.put(uid, [b"x"])
    storage.flush()
    assert sorted(blob_uids(storage)) == sorted(uids)


def test_objects_can_be_deleted_while_they_are_listed(storage: Storage) -> None:
    for number in range(20):
        storage.put(BlobUid(f"{number:032x}"), [b"x"])
    storage.flush()
    for uid in blob_uids(storage):
        storage.delete([uid])
    assert blob_uids(storage) == []


def test_every_object_is_listed_with_its_size_and_age(storage: Storage) -> None:
    for uid, size in ((A, 0), (B, 3), (OF_BACKY2, 5000)):
        storage.put(uid, [bytes(size)])
    storage.flush()
    stored = list(storage.list())
    assert sorted((found.key, found.size_bytes) for found in stored) == sorted([(A, 0), (B, 3), (OF_BACKY2, 5000)])
    assert all(-1 < found.age_s < PATIENCE_S for found in stored)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("", {A, B, OF_BACKY2}), ("1", {OF_BACKY2}), ("a1b", {A, B}), ("a1b2f", {B}), (A, {A}),
     ("f", set()), ("/", set())],
)  # fmt: skip
def test_objects_can_be_listed_by_the_beginning_of_their_uids(
    storage: Storage, prefix: str, expected: set[BlobUid]
) -> None:
    for uid in (A, B, OF_BACKY2):
        storage.put(uid, [b"x"])
    storage.flush()
    storage.put(ObjectName("catalog/repository"), [b"{}"])
    storage.flush()
    assert {found.key for found in storage.list(prefix) if is_blob(found.key)} == expected


@pytest.mark.parametrize("any_storage", sorted([*STORAGES, *FORGETFUL]), indirect=True)
def test_unflushed_data_are_not_an_object_and_are_not_swept_while_young(any_storage: Storage) -> None:
    any_storage.put(A, [b"x"])
    assert list(any_storage.list()) == []
    assert any_storage.sweep(PATIENCE_S) == 0


def test_an_object_larger_than_any_block_is_not_read(path: Path) -> None:
    with opened(path) as storage:
        put(storage, A, b"a")
        os.truncate(path / "a1" / "b2" / f"{A}.blob", 1 << 40)
        with pytest.raises(IntegrityError, match="has 1099511627776 bytes in the storage, more than any block takes"):
            storage.get(A)
        assert storage.get_range(A, 0, 3) == b"a\0\0"


def test_unflushed_data_are_gone_when_the_storage_is_closed(path: Path) -> None:
    with opened(path) as storage:
        put(storage, A, b"a")
        storage.put(B, [b"b"])
        storage.put(ObjectName("catalog/repository"), [b"{}"])
    assert files_below(path) == [f"a1/b2/{A}.blob"]


def test_leftovers_of_a_failed_flush_are_gone_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "syncfs_can_be_trusted", lambda _path: True)
    with opened(path) as storage:
        storage.put(A, [b"a"])
        with monkeypatch.context() as patch:
            patch.setattr(directory_module, "syncfs", fail(errno.EIO))
            with pytest.raises(StorageError):
                storage.flush()
    assert files_below(path) == []


# Invalid names


@pytest.mark.parametrize("uid", HOSTILE)
def test_an_invalid_uid_is_refused_everywhere(any_storage: Storage, uid: str) -> None:
    for use in (
        lambda: any_storage.put(BlobUid(uid), [b"x"]),
        lambda: any_storage.get(BlobUid(uid)),
        lambda: any_storage.get_range(BlobUid(uid), 0, 1),
    ):
        with pytest.raises(StorageError, match="is malformed: it must be ") as caught:
            use()
        assert not isinstance(caught.value, ObjectMissingError)
    assert blob_uids(any_storage) == []


@pytest.mark.parametrize("key", [*HOSTILE, "catalog/../x", "catalog/", "catalog/a.tmp"])
def test_a_malformed_key_is_not_deleted(storage: Storage, key: str) -> None:
    with pytest.raises(ObjectsKeptError, match="is malformed: it must be "):
        storage.delete([BlobUid(key)])


# Named objects


PAGE = ObjectName("catalog/pages/0f/0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3")
NO_NAMES = [
    "catalog/", "catalog//x", "/catalog/x", "catalog/../x", "catalog/..", "catalog/.", "catalog/a.tmp",
    "catalog/a/b/c/d/e", "catalog/a b", "catalog/x\0", "catalog/x\n", "catalog/ä", f"catalog/{'x' * 65}", "other/x",
]  # fmt: skip


def put_object(storage: Storage, name: str, content: bytes) -> None:
    """Store a named object durably."""
    storage.put(ObjectName(name), [content])
    storage.flush()


@pytest.mark.parametrize("content", [b"", b"*", bytes(300_000)])
def test_a_named_object_is_read_as_stored(storage: Storage, content: bytes) -> None:
    put_object(storage, PAGE, content)
    assert storage.get(PAGE, most=len(content)) == content


def test_a_named_object_replaces_the_previous_one(storage: Storage) -> None:
    put_object(storage, PAGE, b"a long one")
    put_object(storage, PAGE, b"short")
    assert storage.get(PAGE, most=100) == b"short"
    assert object_names(storage, "catalog/") == [PAGE]


def test_of_two_objects_put_before_a_flush_the_last_one_is_kept(storage: Storage) -> None:
    storage.put(PAGE, [b"first"])
    storage.put(PAGE, [b"second"])
    storage.flush()
    assert storage.get(PAGE, most=100) == b"second"


def test_named_objects_are_kept_when_the_storage_is_opened_again(open_storage: Callable[[], Storage]) -> None:
    for content in (b"1", b"22"):
        storage = open_storage()
        put_object(storage, PAGE, content)
        storage.close()
    storage = open_storage()
    assert storage.get(PAGE, most=2) == b"22"
    storage.close()


def test_a_new_named_object_is_available_immediately(open_storage: Callable[[], Storage]) -> None:
    with closing(open_storage()) as storage:
        assert storage.put_new(PAGE, b"first")
    with closing(open_storage()) as storage:
        assert storage.get(PAGE, most=100) == b"first"
        assert object_names(storage, "catalog/") == [PAGE]


def test_a_new_object_does_not_replace_an_existing_one(storage: Storage) -> None:
    assert storage.put_new(PAGE, b"first")
    assert not storage.put_new(PAGE, b"second")
    assert storage.get(PAGE, most=100) == b"first"
    assert object_names(storage, "catalog/") == [PAGE]


def test_of_many_that_create_the_same_object_at_the_same_time_one_succeeds(open_storage: Callable[[], Storage]) -> None:
    storages = [open_storage() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: storages[number].put_new(PAGE, b"%d" % number), range(8)))
    assert made.count(True) == 1
    assert storages[0].get(PAGE, most=100) == b"%d" % made.index(True)
    for storage in storages:
        storage.close()


def test_a_storage_says_whether_it_keeps_objects(any_storage: Storage) -> None:
    put(any_storage, A, b"x")
    if any_storage.traits.requests is None:
        assert any_storage.traits.keeps == (any_storage.size(A) is not None)
    assert any_storage.traits.keeps == (blob_uids(any_storage) == [A])


def test_the_marker_of_a_storage_names_its_repository(storage: Storage) -> None:
    assert read_marker(storage) is None
    assert put_first_marker(storage, "12345678-aaaa")
    assert not put_first_marker(storage, "another")
    assert read_marker(storage) == frozenset({"12345678-aaaa"})
    replace_marker(storage, "one", "two")
    assert read_marker(storage) == frozenset({"one", "two"})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 64, b"backyfs storage 1\n", b"backyfs storage 2\nrepository a\n",
        b"backyfs storage 1\nrepository a",
        b"backyfs storage 1\nrepository ../a\n", b"backyfs storage 1\nrepository a\nmore\n", b"x" * 5000, b"\xff",
    ],
)  # fmt: skip
def test_a_damaged_marker_is_an_error_and_not_another_answer(storage: Storage, content: bytes) -> None:
    put_object(storage, "catalog/marker", content)
    with pytest.raises(StorageError, match="move that object away"):
        read_marker(storage)


def test_an_object_larger_than_allowed_is_not_read(storage: Storage) -> None:
    put_object(storage, PAGE, bytes(11))
    with pytest.raises(IntegrityError, match=f"^object {PAGE} has more than 10 bytes"):
        storage.get(PAGE, most=10)


def test_an_unknown_named_object_is_missing(any_storage: Storage) -> None:
    with pytest.raises(ObjectMissingError, match=f"^object {PAGE} ") as caught:
        any_storage.get(PAGE, most=1)
    assert caught.value.key == PAGE


def test_deleting_named_objects_twice_does_no_harm(any_storage: Storage) -> None:
    any_storage.put(PAGE, [b"x"])
    any_storage.flush()
    any_storage.delete([PAGE])
    any_storage.delete([PAGE])
    assert object_names(any_storage, "catalog/") == []


def test_named_objects_can_be_listed_below_a_prefix(storage: Storage) -> None:
    names = {"catalog/repository", PAGE, "catalog/pages/ff/x", "catalog/versions/y", "catalog/pages-2/z"}
    for name in names:
        storage.put(ObjectName(name), [b"x"])
    storage.flush()
    assert sorted(object_names(storage, "catalog/pages/")) == ["catalog/pages/0f/" + PAGE[17:], "catalog/pages/ff/x"]
    assert set(object_names(storage, "catalog/")) == names
    assert object_names(storage, "catalog/none/") == []


def test_named_objects_are_not_blobs(storage: Storage) -> None:
    put(storage, A, b"x")
    put_object(storage, "catalog/repository", b"x")
    put_object(storage, PAGE, b"x")
    assert blob_uids(storage) == [A]


@pytest.mark.parametrize("name", NO_NAMES)
def test_an_invalid_name_is_refused_everywhere(any_storage: Storage, name: str) -> None:
    for use in (
        lambda: any_storage.put(ObjectName(name), [b"x"]),
        lambda: any_storage.get(ObjectName(name), most=1),
    ):
        with pytest.raises(StorageError, match=r"object name .* is malformed"):
            use()


@pytest.mark.parametrize("prefix", ["/", "catalog/../", "../", "catalog/a.b/", "catalog/x/../../", "b/", "catalogs/"])
def test_an_impossible_prefix_lists_nothing(storage: Storage, prefix: str) -> None:
    put(storage, A, b"x")
    put_object(storage, PAGE, b"x")
    assert list(storage.list(prefix)) == []


@pytest.mark.parametrize("prefix", ["c", "cata", "catalog", "catalog/", "catalog/p", "catalog/pages/0", PAGE])
def test_named_objects_can_be_listed_by_the_beginning_of_their_names(storage: Storage, prefix: str) -> None:
    put(storage, A, b"x")
    put_object(storage, PAGE, b"page")
    put_object(storage, "catalog/index", b"x")
    found = {stored.key: stored.size_bytes for stored in storage.list(prefix)}
    others = {"catalog/index": 1} if "catalog/index".startswith(prefix) else {}
    assert found == {PAGE: 4} | others


def test_objects_of_both_kinds_are_listed_together(storage: Storage) -> None:
    put(storage, A, b"x")
    put_object(storage, PAGE, b"page")
    assert {stored.key for stored in storage.list()} == {A, PAGE}


def test_many_objects_of_both_kinds_can_be_deleted_in_one_call(storage: Storage) -> None:
    for uid in (A, B, OF_BACKY2):
        put(storage, uid, b"x")
    put_object(storage, PAGE, b"x")
    storage.delete([A, PAGE, OF_BACKY2, BlobUid("f" * 32)])
    assert [stored.key for stored in storage.list()] == [B]
    storage.delete([])


def test_an_object_that_cannot_be_deleted_does_not_prevent_the_deletion_of_others(storage: Storage) -> None:
    for uid in (A, B):
        put(storage, uid, b"x")
    with pytest.raises(ObjectsKeptError, match="is malformed") as caught:
        storage.delete([A, BlobUid("../x"), B])
    assert list(caught.value.kept) == ["../x"]
    assert list(storage.list()) == []


# Flushing, and threads


def test_flushing_nothing_does_no_harm(storage: Storage) -> None:
    storage.flush()
    put(storage, A, b"a")
    storage.flush()
    assert storage.get(A) == b"a"


def test_one_flush_covers_all_objects_put_before(storage: Storage) -> None:
    for number in range(50):
        storage.put(BlobUid(f"{number:032x}"), [bytes([number])])
    storage.flush()
    assert [storage.get(BlobUid(f"{number:032x}")) for number in range(50)] == [bytes([number]) for number in range(50)]


def test_each_thread_can_read_its_objects_after_its_flush(storage: Storage) -> None:
    # Whichever thread's flush covers the object.
    start = threading.Barrier(8)

    def work(thread: int) -> None:
        start.wait()
        for number in range(10):
            uid = BlobUid(f"{thread:04x}{number:028x}")
            storage.put(uid, [uid.encode(), bytes(1000)])
            storage.flush()
            assert storage.get(uid) == uid.encode() + bytes(1000)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert len(blob_uids(storage)) == 80


def test_threads_can_put_read_and_delete_at_the_same_time(storage: Storage) -> None:
    def work(number: int) -> None:
        uid = BlobUid(f"abcd{number:028x}")  # all in one place
        put(storage, uid, uid.encode())
        assert storage.get(uid) == uid.encode()
        if number % 2:
            storage.delete([uid])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(80)))
    assert sorted(blob_uids(storage)) == [f"abcd{number:028x}" for number in range(0, 80, 2)]


# A storage that keeps nothing


def test_objects_put_into_a_null_storage_are_missing_and_the_error_says_why() -> None:
    storage = NullStorage()
    put(storage, A, b"backyfs")
    expected = rf"^blob {A} was not kept: a storage of type null keeps nothing$"
    with pytest.raises(ObjectMissingError, match=expected) as caught:
        storage.get(A)
    assert caught.value.key == A
    assert blob_uids(storage) == []
    assert storage.traits.own_paths == ()


def test_a_null_storage_says_once_that_it_keeps_nothing(caplog: pytest.LogCaptureFixture) -> None:
    storage = NullStorage()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: put(storage, f"abcd{number}", b"x"), range(20)))
    assert [record.message for record in caplog.records] == [
        "the storage is of type null and keeps nothing: what is backed up cannot be restored"
    ]


# The directory storage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the directory of a new storage."""
    path = tmp_path / "data"
    create_directory(str(path))
    return path


@contextmanager
def opened(path: Path | str) -> Iterator[DirectoryStorage]:
    storage = DirectoryStorage(str(path))
    try:
        yield storage
    finally:
        storage.close()


def files_below(path: Path) -> list[str]:
    """Return all files below a directory."""
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir())


def open_below(path: Path) -> list[str]:
    """Return the open files of this process in a directory, including the directory itself."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the descriptor used for the listing
            continue
    return sorted(name for name in found if name == str(path) or name.startswith(f"{path}/"))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fail(number: int) -> Callable[..., Any]:
    """Return a stand-in for a function of `os` that fails."""

    def failing(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return failing


def test_files_have_the_same_paths_as_in_backy2(path: Path) -> None:
    with opened(path) as storage:
        put(storage, OF_BACKY2, b"x")
        assert files_below(path) == [f"18/c2/{OF_BACKY2}.blob"]


def test_a_file_written_by_backy2_is_found(path: Path) -> None:
    file = path / "18" / "c2" / f"{OF_BACKY2}.blob"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"old")
    with opened(path) as storage:
        assert storage.get(OF_BACKY2) == b"old"
        assert blob_uids(storage) == [OF_BACKY2]


def test_an_object_has_no_name_before_the_flush(path: Path) -> None:
    with opened(path) as storage:
        storage.put(A, [b"x"])
        assert blob_uids(storage) == []
        with pytest.raises(ObjectMissingError):
            storage.get(A)
        assert files_below(path) == [f"a1/b2/{A}.blob.tmp"]
        storage.flush()
        assert files_below(path) == [f"a1/b2/{A}.blob"]


def test_other_files_are_not_objects(path: Path) -> None:
    (path / "a1").mkdir()
    for name in ("README", "a1/notes.txt", f"a1/{A}.blob.tmp", "a1/blob"):
        (path / name).write_bytes(b"")
    with opened(path) as storage:
        assert blob_uids(storage) == []


def test_files_and_directories_are_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        create_directory(str(tmp_path / "data"))
        with opened(tmp_path / "data") as storage:
            put(storage, A, b"x")
    finally:
        os.umask(old)
    places = [tmp_path / "data", tmp_path / "data/a1", tmp_path / "data/a1/b2"]
    assert [mode_of(place) for place in places] == [0o700, 0o700, 0o700]
    assert mode_of(tmp_path / f"data/a1/b2/{A}.blob") == 0o600


def test_a_storage_owns_its_directory_by_its_absolute_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with opened("data") as storage:
        assert storage.traits.own_paths == (str(path),)
        monkeypatch.chdir("/")
        put(storage, A, b"x")
    assert files_below(path) == [f"a1/b2/{A}.blob"]


def test_nothing_remains_open(path: Path) -> None:
    with opened(path) as storage:
        put(storage, A, b"x")
        storage.get(A)
        with pytest.raises(ObjectMissingError):
            storage.get(B)
        assert open_below(path) == [str(path)]
    assert open_below(path) == []


def test_short_reads_are_continued_to_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread
    with opened(path) as storage:
        put(storage, A, bytes(range(256)))
        monkeypatch.setattr(os, "pread", lambda fd, count, at: pread(fd, min(count, 100), at))
        assert storage.get(A) == bytes(range(256))


def test_short_writes_are_continued_to_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, part: write(fd, bytes(part)[:100]))
    monkeypatch.setattr(os, "writev", lambda fd, parts: write(fd, bytes(parts[0])[:100]))
    with opened(path) as storage:
        assert storage.put(A, [bytes(range(256)), b"end"]) == 259
        storage.flush()
        assert storage.get(A) == bytes(range(256)) + b"end"


def test_a_named_object_has_its_name_after_the_flush(path: Path) -> None:
    storage = DirectoryStorage(str(path))
    put_object(storage, PAGE, b"old")
    storage.put(PAGE, [b"new"])
    assert (path / PAGE).read_bytes() == b"old"
    assert object_names(storage, "catalog/") == [PAGE]  # and not its temporary name
    storage.flush()
    assert [file.name for file in (path / PAGE).parent.iterdir()] == [PAGE[17:]]
    assert (path / PAGE).read_bytes() == b"new"
    assert stat.S_IMODE((path / PAGE).stat().st_mode) == 0o600
    assert stat.S_IMODE((path / "catalog").stat().st_mode) == 0o700
    storage.close()


def test_leftovers_of_a_killed_run_do_not_get_in_the_way(path: Path) -> None:
    first = DirectoryStorage(str(path))
    first.put(PAGE, [b"left behind"])
    first.close()
    second = DirectoryStorage(str(path))
    put_object(second, PAGE, b"new")
    assert second.get(PAGE, most=10) == b"new"
    second.close()


def test_the_error_for_a_directory_with_a_repository_says_how_to_recover_its_database(path: Path) -> None:
    storage = DirectoryStorage(str(path))
    put_object(storage, "catalog/repository", b"x")
    storage.close()
    with pytest.raises(StorageError, match=f"holds a repository; rebuild its database from the storage {path}"):
        create_directory(str(path))


# Durability


class SyncCalls:
    """Records the calls that make objects durable, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self._patch = monkeypatch
        for module, name in (
            (os, "writev"),
            (os, "fdatasync"),
            (os, "rename"),
            (os, "fsync"),
            (directory_module, "syncfs"),
        ):
            self._watch(module, name)

    def _watch(self, module: Any, name: str) -> None:
        real = getattr(module, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            self.names.append(name.lstrip("_"))
            return real(*arguments, **options)

        self._patch.setattr(module, name, watched)


def test_bytes_are_synced_before_names_and_names_before_the_flush_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "syncfs_can_be_trusted", lambda _path: True)
    calls = SyncCalls(monkeypatch)
    with opened(path) as storage:
        storage.put(A, [b"a"])
        storage.put(B, [b"b"])
        assert calls.names == ["writev", "writev"]
        storage.flush()
    # One syncfs for both; then a1/b2, which contains both names, a1 and the storage itself.
    assert calls.names == ["writev", "writev", "syncfs", "rename", "rename", "fsync", "fsync", "fsync"]


def test_each_file_is_synced_if_syncfs_cannot_be_trusted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "syncfs_can_be_trusted", lambda _path: False)
    calls = SyncCalls(monkeypatch)
    with opened(path) as storage:
        storage.put(A, [b"a"])
        storage.put(B, [b"b"])
        assert calls.names == ["writev", "fdatasync", "writev", "fdatasync"]
        storage.flush()
        assert storage.get(A) == b"a"
    assert calls.names[4:] == ["rename", "rename", "fsync", "fsync", "fsync"]


@pytest.mark.parametrize(
    ("release", "file_system", "trusted"),
    [
        ("6.1.0-18-amd64", "ext4", True),
        ("5.8.0", "xfs", True),
        ("5.7.19", "ext4", False),
        ("4.19.0", "ext4", False),
        ("6.1.0", "fuse.sshfs", False),
        ("6.1.0", "nfs4", False),
        ("6.1.0", "", False),
    ],
)
def test_syncfs_is_trusted_if_it_reports_errors(release: str, file_system: str, *, trusted: bool) -> None:
    assert localfiles.has_trusted_syncfs(release, file_system) is trusted


@pytest.mark.parametrize("release", ["4.19.0", "6.1.0"])
def test_the_release_of_the_kernel_and_the_type_of_the_file_system_decide(
    path: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    real = os.uname()
    uname = os.uname_result((real.sysname, real.nodename, release, real.version, real.machine))
    monkeypatch.setattr(os, "uname", lambda: uname)
    expected = localfiles.has_trusted_syncfs(release, localfiles.file_system_type(str(path)))
    assert localfiles.syncfs_can_be_trusted(str(path)) is expected
    assert localfiles.syncfs_can_be_trusted("/proc") is False


def test_the_type_of_a_file_system_is_found() -> None:
    assert localfiles.file_system_type("/proc") == "proc"


def test_a_flush_waits_for_objects_covered_by_another_flush(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow_syncfs(_fd: int) -> None:
        begun.set()
        assert go_on.wait(10)

    monkeypatch.setattr(directory_module, "syncfs_can_be_trusted", lambda _path: True)
    monkeypatch.setattr(directory_module, "syncfs", slow_syncfs)
    with opened(path) as storage, ThreadPoolExecutor(2) as threads:
        storage.put(A, [b"a"])
        first = threads.submit(storage.flush)
        assert begun.wait(10)
        second = threads.submit(storage.flush)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.05)
        go_on.set()
        second.result(timeout=10)
        assert storage.get(A) == b"a"
        first.result(timeout=10)


# Faults


def test_a_full_disk_is_reported_with_its_remedy_and_no_partial_object_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 256 << 10, monkeypatch), opened(disk) as storage:
        with pytest.raises(StorageError) as caught:
            storage.put(A, [bytes(200 << 10), bytes(200 << 10)])
        assert str(caught.value) == (
            f"storage: {disk}/a1/b2/{A}.blob.tmp: No space left on device; make room and run the command again"
        )
        assert files_below(disk) == []
        put(storage, B, b"what fits")
        assert storage.get(B) == b"what fits"


@pytest.mark.parametrize("size", [2, 5000, 64 << 10])
def test_an_incomplete_write_leaves_no_partial_object(
    path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    real = os.writev
    with opened(path) as storage:
        put(storage, A, bytes(size))
        monkeypatch.setattr(os, "writev", lambda fd, parts: real(fd, [b"".join(parts)[: size // 2]]))
        monkeypatch.setattr(os, "write", fail(errno.ENOSPC))
        with pytest.raises(StorageError, match="No space left on device; make room"):
            storage.put(B, [bytes(size)])
        storage.flush()
    assert files_below(path) == [f"a1/b2/{A}.blob"]


def test_a_failed_put_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as storage:
        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", fail(errno.EIO))
            with pytest.raises(StorageError, match="Input/output error"):
                storage.put(A, [b"x"])
        assert files_below(path) == []
        storage.flush()
        assert blob_uids(storage) == []
        put(storage, A, b"again")
        assert storage.get(A) == b"again"


def test_a_put_whose_sync_fails_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "syncfs_can_be_trusted", lambda _path: False)
    monkeypatch.setattr(os, "fdatasync", fail(errno.EIO))
    with opened(path) as storage:
        with pytest.raises(StorageError, match="Input/output error"):
            storage.put(A, [b"x"])
        assert files_below(path) == []


def test_an_interrupted_put_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    with opened(path) as storage:
        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", interrupted)
            with pytest.raises(KeyboardInterrupt):
                storage.put(A, [b"x"])
        assert files_below(path) == []


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EROFS, "Read-only file system; the file system is read-only"),
        (errno.EACCES, "Permission denied; check its owner and mode"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_file_that_cannot_be_opened_is_reported_with_its_remedy(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    with opened(path) as storage:
        put(storage, A, b"x")
        with monkeypatch.context() as patch:
            patch.setattr(Root, "open", fail(number))
            patch.setattr(Root, "open_to_read", fail(number))
            with pytest.raises(StorageError) as of_put:
                storage.put(B, [b"x"])
            with pytest.raises(StorageError) as of_get:
                storage.get(A)
    assert str(of_put.value) == f"storage: {path}/a1/b2/{B}.blob.tmp: {reason}"
    assert str(of_get.value) == f"storage: {path}/a1/b2/{A}.blob: {reason}"


def test_a_file_that_cannot_be_deleted_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as storage:
        put(storage, A, b"x")
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", fail(errno.EROFS))
            with pytest.raises(StorageError, match="Read-only file system"):
                storage.delete([A])
        assert storage.get(A) == b"x"


def test_a_failed_flush_names_no_object(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "syncfs_can_be_trusted", lambda _path: True)
    with opened(path) as storage:
        storage.put(A, [b"x"])
        monkeypatch.setattr(directory_module, "syncfs", fail(errno.EIO))
        with pytest.raises(StorageError, match=rf"^storage: {path}: Input/output error$"):
            storage.flush()
        assert blob_uids(storage) == []


def test_no_flush_succeeds_after_a_failed_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel reports lost bytes only once; a later syncfs returns as if they were on the disk.
    monkeypatch.setattr(directory_module, "syncfs_can_be_trusted", lambda _path: True)
    with opened(path) as storage:
        storage.put(A, [b"a"])
        with monkeypatch.context() as patch:
            patch.setattr(directory_module, "syncfs", fail(errno.EIO))
            with pytest.raises(StorageError):
                storage.flush()
        storage.put(B, [b"b"])
        lost = rf"^storage: {path}: Input/output error \(what was put since is lost as well\)$"
        with pytest.raises(StorageError, match=lost):
            storage.flush()
        assert blob_uids(storage) == []
    with opened(path) as storage:
        put(storage, OF_BACKY2, b"c")
        assert blob_uids(storage) == [OF_BACKY2]


def test_leftovers_of_killed_commands_are_removed_once_they_are_old(path: Path) -> None:
    with opened(path) as storage:
        put(storage, A, b"a")
        storage.put(B, [b"b"])
        storage.put(ObjectName("catalog/repository"), [b"{}"])
        (path / "a1/b2/notes.tmp").write_bytes(b"of somebody else")
        assert storage.sweep(PATIENCE_S) == 0
        assert storage.sweep(-PATIENCE_S) == 2
        assert files_below(path) == [f"a1/b2/{A}.blob", "a1/b2/notes.tmp"]
        with pytest.raises(StorageError, match="No such file or directory"):
            storage.flush()


def test_a_listing_skips_files_that_are_not_objects(path: Path) -> None:
    with opened(path) as storage:
        put(storage, A, b"a")
        (path / "a1" / "b2" / "ffff.blob").write_bytes(b"elsewhere")
        (path / "a1" / "b2" / f"{B}.blob").symlink_to(path / "a1" / "b2" / f"{A}.blob")
        (path / "a1" / "notes").write_bytes(b"mine")
        (path / "lost+found").mkdir()
        assert {found.key: found.size_bytes for found in storage.list()} == {A: 1, B: None}


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_directory_that_cannot_be_written_is_listed_without_ages(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with opened(path) as storage:
        put(storage, A, b"a")
        monkeypatch.setattr(os, "utime", fail(number))
        assert [(found.key, found.age_s) for found in storage.list()] == [(A, -math.inf)]
        assert storage.sweep(0) == 0


def test_a_failed_listing_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as storage:
        put(storage, A, b"a")
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", fail(errno.EIO))
            with pytest.raises(StorageError, match="Input/output error"):
                list(storage.list())


# The directory itself


def test_a_missing_storage_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"^storage directory {tmp_path}/none does not exist; is its "):
        DirectoryStorage(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_file_is_refused_as_a_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="does not exist"):
        DirectoryStorage(str(tmp_path / "file"))


def test_a_storage_that_disappears_is_not_created_again(path: Path) -> None:
    with opened(path) as storage:
        path.rename(path.with_name("gone"))
        with pytest.raises(WrongStorageError, match="is not the one that was opened"):
            storage.put(A, [b"x"])
        for act in (
            lambda: blob_uids(storage),
            lambda: list(storage.list()),
            lambda: object_names(storage, "catalog/"),
            lambda: storage.get(A),
            lambda: storage.get_range(A, 0, 1),
            lambda: storage.get(PAGE, most=100),
            lambda: storage.size(A),
            lambda: storage.delete([A]),
            lambda: storage.delete([PAGE]),
            lambda: storage.sweep(0),
            lambda: storage.put(PAGE, [b"x"]),
            lambda: storage.put_new(PAGE, b"x"),
        ):
            with pytest.raises(WrongStorageError, match="is not the one that was opened"):
                act()
    assert not path.exists()


def test_nothing_is_written_to_an_empty_directory_in_place_of_the_storage(path: Path) -> None:
    with opened(path) as storage:
        put(storage, A, b"x")
        storage.put(B, [b"y"])
        path.rename(path.with_name("mounted elsewhere"))
        path.mkdir()
        with pytest.raises(WrongStorageError):
            storage.flush()
        with pytest.raises(WrongStorageError):
            storage.put(BlobUid("ab" * 16), [b"z"])
    assert list(path.iterdir()) == []


def test_a_storage_can_be_read_after_it_is_mounted_again(path: Path) -> None:
    with opened(path) as storage:
        put(storage, A, b"x")
        put_object(storage, "catalog/marker", b"x")
        copy = path.with_name("copy")
        subprocess.run(["cp", "-a", str(path), str(copy)], check=True)
        path.rename(path.with_name("gone"))
        copy.rename(path)
        assert storage.get(A) == b"x"
        with pytest.raises(ObjectMissingError):
            storage.get(B)


def test_a_new_storage_gets_private_parent_directories(tmp_path: Path) -> None:
    create_directory(str(tmp_path / "a/b/data"))
    assert mode_of(tmp_path / "a/b/data") == 0o700


def test_an_empty_directory_can_become_a_storage(tmp_path: Path) -> None:
    create_directory(str(tmp_path))
    with opened(tmp_path) as storage:
        assert blob_uids(storage) == []


def test_a_directory_with_contents_does_not_become_a_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"theirs")
    refused = rf"^storage directory {tmp_path} is not empty: it holds file; name another one$"
    with pytest.raises(StorageError, match=refused):
        create_directory(str(tmp_path))
    assert files_below(tmp_path) == ["file"]


def test_the_root_of_a_new_file_system_can_become_a_storage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lost+found").mkdir()
    assert not create_directory(str(tmp_path))
    assert "is a mount point; a directory below it would be safer" in caplog.text


def test_a_directory_with_objects_is_accepted_if_they_are_expected(tmp_path: Path) -> None:
    (tmp_path / "a1/b2").mkdir(parents=True)
    with pytest.raises(StorageError, match="is not empty: it holds a1"):
        create_directory(str(tmp_path))
    assert create_directory(str(tmp_path), may_hold_blobs=True)
    (tmp_path / "photos").mkdir()
    with pytest.raises(StorageError, match="is not empty: it holds photos"):
        create_directory(str(tmp_path), may_hold_blobs=True)


def test_a_place_where_no_directory_can_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=rf"^storage: {tmp_path}/file/data: Not a directory$"):
        create_directory(str(tmp_path / "file/data"))
