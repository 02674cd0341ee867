"""A storage directory that others can write to: nothing leads out of it, and nothing in it makes commands hang."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from backyfs.errors import ObjectMissingError, ObjectsKeptError, ObjectUnreadableError, StorageError, WrongStorageError
from backyfs.model import BlobUid
from backyfs.storage import beneath
from backyfs.storage.beneath import Root
from backyfs.storage.directory import DirectoryStorage
from backyfs.storage.keys import ObjectName, is_blob
from backyfs.storage.newdirectory import create_directory
from tests.support.obstacles import OBSTACLES, put_in_place
from tests.support.stored import blob_uids, object_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

A = BlobUid("a1b2c3d4e5f60718293a4b5c6d7e8f90")
B = BlobUid("a1b2ffffffffffffffffffffffffffff")  # beside A
NAME = ObjectName("catalog/versions/0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3")
OTHER = ObjectName("catalog/versions/ffffffff-9a64-4f0b-8a57-6b1de0b5a0f3")
LONG_AGO_S = -1e9


@pytest.fixture(params=["openat2", "by component"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[DirectoryStorage]:
    """Make a storage with two blobs and two named objects."""
    if request.param == "by component":
        monkeypatch.setattr(beneath, "has_openat2", lambda: False)
    else:
        assert beneath.has_openat2()
    create_directory(str(path))
    with closing(DirectoryStorage(str(path))) as storage:
        for uid in (A, B):
            storage.put(uid, [uid.encode()])
        for name in (NAME, OTHER):
            storage.put(name, [name.encode()])
        storage.flush()
        yield storage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Make a directory that looks like any part of a storage, with files that a cleanup would delete."""
    outside = tmp_path / "outside"
    for directory in ("", "b2", "versions", "pages", "pages/0f"):
        (outside / directory).mkdir()
        for name in (f"{A}.blob", f"{B}.blob.tmp", "x.tmp", "repository", NAME.rpartition("/")[2]):
            (outside / directory / name).write_bytes(b"not yours")
    return outside


def tree(directory: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(directory.rglob("*"))}


def replace_by_link(path: Path, target: Path) -> None:
    path.rename(path.with_name(f"{path.name}.moved"))
    path.symlink_to(target)


@pytest.mark.parametrize("kind", sorted(OBSTACLES))
def test_an_obstacle_in_place_of_a_blob_is_named_and_its_neighbour_can_be_read(
    storage: DirectoryStorage, path: Path, kind: str
) -> None:
    place = path / "a1" / "b2" / f"{A}.blob"
    put_in_place(place, kind)
    message = f"storage: {place} is {kind.removesuffix(' to itself')}; move it away"
    for read in (lambda: storage.get(A), lambda: storage.get_range(A, 0, 4)):
        with pytest.raises(ObjectUnreadableError, match=message):
            read()
    assert storage.get(B) == B.encode()
    blobs = {found.key: found.size_bytes for found in storage.list() if is_blob(found.key)}
    assert blobs == {A: None, B: len(B)}


@pytest.mark.parametrize("kind", sorted(OBSTACLES))
def test_an_obstacle_in_place_of_a_named_object_is_named(
    storage: DirectoryStorage, path: Path, kind: str
) -> None:
    put_in_place(path / NAME, kind)
    with pytest.raises(ObjectUnreadableError, match=f"{NAME} is {kind.removesuffix(' to itself')}"):
        storage.get(NAME, most=1 << 20)
    assert storage.get(OTHER, most=1 << 20) == OTHER.encode()


@pytest.mark.parametrize("kind", sorted(set(OBSTACLES) - {"a directory"}))
def test_an_obstacle_in_place_of_an_object_can_be_deleted_and_replaced(
    storage: DirectoryStorage, path: Path, kind: str
) -> None:
    put_in_place(path / "a1" / "b2" / f"{A}.blob", kind)
    put_in_place(path / NAME, kind)
    storage.delete([A])
    storage.put(NAME, [b"again"])
    storage.flush()
    assert storage.get(NAME, most=100) == b"again"
    with pytest.raises(ObjectMissingError):
        storage.get(A)


def test_a_directory_in_place_of_an_object_is_neither_deleted_nor_replaced(
    storage: DirectoryStorage, path: Path
) -> None:
    put_in_place(path / "a1" / "b2" / f"{A}.blob", "a directory")
    put_in_place(path / NAME, "a directory")
    with pytest.raises(ObjectsKeptError, match=r"is a directory \(and 1 more\); move it away") as caught:
        storage.delete([A, B, NAME])
    assert sorted(caught.value.kept) == [A, NAME]
    assert B not in blob_uids(storage)
    storage.put(NAME, [b"again"])
    with pytest.raises(ObjectUnreadableError, match=f"{NAME} is a directory; move it away"):
        storage.flush()


@pytest.mark.parametrize("above", ["a1", "a1/b2"])
def test_a_link_in_place_of_a_directory_of_blobs_is_not_followed(
    storage: DirectoryStorage, path: Path, outside: Path, above: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = tree(outside)
    replace_by_link(path / above, outside)
    new = BlobUid(f"a1b2{'0' * 28}")
    for act in (
        lambda: storage.get(A),
        lambda: storage.get_range(A, 0, 4),
        lambda: storage.delete([A]),
        lambda: storage.size(A),
        lambda: storage.put(new, [b"x"]),
    ):
        refused = f"{path}/{above} is a symbolic link; move it away"
        with pytest.raises((ObjectUnreadableError, ObjectsKeptError), match=refused):
            act()
    assert blob_uids(storage) == []
    assert sorted(object_names(storage)) == [NAME, OTHER]
    assert storage.sweep(LONG_AGO_S) == 0
    assert tree(outside) == before
    assert f"{path}/{above} is a symbolic link and not a directory" in caplog.text


@pytest.mark.parametrize("above", ["catalog", "catalog/versions"])
def test_a_link_in_place_of_a_directory_of_the_catalog_is_not_followed(
    storage: DirectoryStorage, path: Path, outside: Path, above: str
) -> None:
    before = tree(outside)
    replace_by_link(path / above, outside)
    for act in (
        lambda: storage.get(NAME, most=100),
        lambda: storage.delete([NAME]),
        lambda: storage.put(NAME, [b"x"]),
        lambda: storage.put_new(NAME, b"x"),
    ):
        refused = f"{path}/{above} is a symbolic link; move it away"
        with pytest.raises((ObjectUnreadableError, ObjectsKeptError), match=refused):
            act()
    assert object_names(storage, "catalog/versions/") == []
    assert storage.sweep(LONG_AGO_S) == 0
    assert tree(outside) == before


@pytest.mark.parametrize("above", ["a1", "a1/b2"])
def test_nothing_is_renamed_through_a_link_that_replaces_a_directory_before_a_flush(
    storage: DirectoryStorage, path: Path, outside: Path, above: str
) -> None:
    new = BlobUid(f"a1b2{'0' * 28}")
    storage.put(new, [b"x"])
    for directory in ("", "b2"):
        (outside / directory / f"{new}.blob.tmp").write_bytes(b"not yours")
    before = tree(outside)
    replace_by_link(path / above, outside)
    with pytest.raises(StorageError, match=f"{above} is a symbolic link"):
        storage.flush()
    assert tree(outside) == before


def test_the_storage_itself_may_be_reached_through_a_link(storage: DirectoryStorage, path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    with closing(DirectoryStorage(str(link))) as other:
        assert other.get(A) == A.encode()
        other.put(BlobUid("c" * 32), [b"through the link"])
        other.flush()
    assert storage.get(BlobUid("c" * 32)) == b"through the link"


def test_a_storage_whose_path_leads_elsewhere_later_is_not_damaged(storage: DirectoryStorage, path: Path) -> None:
    moved = path.with_name("moved")
    path.rename(moved)
    path.symlink_to(moved)
    assert storage.get(A) == A.encode()
    path.unlink()
    path.symlink_to(path)
    moved.rename(path.with_name("gone"))
    with pytest.raises(StorageError) as caught:
        storage.get(A)
    assert not isinstance(caught.value, (ObjectUnreadableError, ObjectMissingError))


def test_a_mount_point_below_the_storage_is_part_of_it(storage: DirectoryStorage, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other disk"
    (path / "a1").rename(other)
    (path / "a1").mkdir()
    subprocess.run(["mount", "--bind", str(other), str(path / "a1")], check=True)
    try:
        assert storage.get(A) == A.encode()
        storage.put(BlobUid(f"a1b2{'0' * 28}"), [b"x"])
        storage.flush()
        assert len(blob_uids(storage)) == 3
    finally:
        subprocess.run(["umount", str(path / "a1")], check=True)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENAMETOOLONG, errno.EUCLEAN])
def test_some_errors_concern_only_the_object(
    storage: DirectoryStorage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Root, "open_to_read", failing(number))
    with pytest.raises(ObjectUnreadableError):
        storage.get(A)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.EMFILE])
def test_a_missing_storage_is_not_damage(
    storage: DirectoryStorage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Root, "open_to_read", failing(number))
    with pytest.raises(StorageError) as caught:
        storage.get(A)
    assert not isinstance(caught.value, (ObjectUnreadableError, ObjectMissingError, WrongStorageError))


def failing(number: int) -> Any:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_that_grows_during_the_read_is_not_read_forever(
    storage: DirectoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = 0

    def give(_fd: int, length: int, _offset: int = 0) -> bytes:
        nonlocal given
        given += min(length, 5)
        assert given < 1000
        return b"grows"[:length]

    monkeypatch.setattr(os, "read", give)
    monkeypatch.setattr(os, "pread", give)
    assert len(storage.get(A)) == len(A)
    assert len(storage.get(NAME, most=1 << 20)) == len(NAME)
    assert len(storage.get_range(A, 0, 1 << 40)) == len(A)


def test_temporary_files_are_removed_and_directories_with_such_names_kept(
    storage: DirectoryStorage, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path / "a1" / "b2" / f"{A}.blob.tmp").mkdir()
    os.mkfifo(path / "a1" / "b2" / f"{B}.blob.tmp")
    (path / "catalog" / "x.tmp").symlink_to(path / NAME)
    assert storage.sweep(LONG_AGO_S) == 2
    assert (path / NAME).exists()
    assert f"{A}.blob.tmp is a directory and is kept" in caplog.text


def test_arbitrarily_deep_directories_are_not_descended_into(storage: DirectoryStorage, path: Path) -> None:
    directory = os.open(path / "catalog", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deep", dir_fd=directory)
        inner = os.open("deep", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = inner
    os.close(directory)
    try:
        assert sorted(object_names(storage, "catalog/")) == [NAME, OTHER]
        assert storage.sweep(LONG_AGO_S) == 0
    finally:
        subprocess.run(["rm", "-rf", str(path / "catalog" / "deep")], check=True)
