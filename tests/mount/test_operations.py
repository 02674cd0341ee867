"""The FUSE handlers, called without a kernel on a real repository."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import stat
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyfuse3
import pytest
import trio
from sqlalchemy import select

from backyfs.errors import DatabaseError
from backyfs.metadata.db.tables import job_versions, versions
from backyfs.metadata.maps.blockmap import commit_page, new_entries
from backyfs.metadata.records.versions import set_status
from backyfs.model import PageNumber, Version, VersionStatus
from backyfs.mount.contents import Contents
from backyfs.mount.imagefile import ImageFile
from backyfs.mount.live import Freshness, LiveTree
from backyfs.mount.operations import Operations
from backyfs.mount.pool import Pool
from backyfs.mount.selection import Selection
from backyfs.mount.settings import Settings
from backyfs.work.job import Job
from tests.support.images import random_bytes, sparse_image
from tests.support.jobs import spec
from tests.support.repositories import BLOCK, back_up, make_repository, opened
from tests.support.storages import with_watched_loads, with_watched_reads
from tests.support.stored import blob_of, file_of, finish, flip_a_byte, incomplete_copy, remove_version, truncate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backyfs.images.image import Image
    from backyfs.repository import Repository

# Blocks: 0 data, 1 hole, 2 data, 3 written zeros, 4 data and short.
LAST = 77
SIZE = 4 * BLOCK + LAST
PIECES = {
    0: random_bytes(BLOCK, 1),
    2 * BLOCK: random_bytes(BLOCK, 2),
    3 * BLOCK: bytes(BLOCK),
    4 * BLOCK: random_bytes(LAST, 3),
}
IMAGE = PIECES[0] + bytes(BLOCK) + PIECES[2 * BLOCK] + bytes(BLOCK) + PIECES[4 * BLOCK]
NO_INODE = 1 << 40
SEEN_AT_ONCE = Freshness(fresh_s=-1.0)  # changes of the database
WRITING_HANDLERS = [
    "setattr", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "create", "write",
    "setxattr", "removexattr",
]  # fmt: skip


class Mount:
    """Calls handlers as the kernel would, each in a separate event loop."""

    def __init__(self, repository: Repository, operations: Operations) -> None:
        self.repository = repository
        self.operations = operations

    def call(self, handler: str, *arguments: object) -> Any:
        return trio.run(getattr(self.operations, handler), *arguments)

    def find(self, path: str) -> Any:
        """Look up a path, name by name; return the attributes of its last entry."""
        found = self.call("getattr", pyfuse3.ROOT_INODE)
        for name in path.split("/"):
            found = self.call("lookup", found.st_ino, name.encode())
        return found

    def inode(self, path: str) -> int:
        return int(self.find(path).st_ino)

    def open_path(self, path: str) -> int:
        return int(self.call("open", self.inode(path), os.O_RDONLY).fh)

    def open_image(self, version: Version) -> int:
        return self.open_path(f"by_version_uid/{version.uid}/data")

    def read(self, fh: int, offset: int, size: int) -> bytes:
        return bytes(self.call("read", fh, offset, size))

    def names(self, path: str) -> list[bytes]:
        fh = self.call("opendir", self.inode(path) if path else pyfuse3.ROOT_INODE)
        listed: list[bytes] = []

        def reply(token: object, name: bytes, attributes: object, next_id: int) -> bool:
            listed.append(name)
            return True

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pyfuse3, "readdir_reply", reply)
            self.call("readdir", fh, 0, None)
        self.call("releasedir", fh)
        return listed

    def held_versions(self) -> list[int]:
        with self.repository.database.read() as connection:
            return list(connection.execute(select(job_versions.c.version_id)).scalars())


def image_of(mount: Mount, version: Version) -> Image:
    """Return the open image of a version."""
    files = [opened for opened in mount.operations._open.values() if isinstance(opened, ImageFile)]
    return next(file.reader.image for file in files if file.reader.image.version.uid == version.uid)


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


@contextmanager
def mounted(
    repository: Repository, *, read_ahead_bytes: int = 0, freshness: Freshness = SEEN_AT_ONCE
) -> Iterator[Mount]:
    settings = Settings(
        cache_bytes=64 * BLOCK, read_ahead_bytes=read_ahead_bytes, workers=2, freshness=freshness
    )
    with Job(repository.database, spec("mount nowhere")) as job:
        yield Mount(repository, Operations(Contents.of(repository, job, settings)))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with opened(make_repository(tmp_path)) as repository:
        yield repository


@pytest.fixture
def version(repository: Repository, tmp_path: Path) -> Version:
    return back_up(repository, sparse_image(tmp_path / "image", SIZE, PIECES)).version


@pytest.fixture
def mount(repository: Repository) -> Iterator[Mount]:
    with mounted(repository) as mount:
        yield mount


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Version]]:
    """Return a mount and its version, for tests that change nothing."""
    directory = tmp_path_factory.mktemp("shared")
    with opened(make_repository(directory)) as repository, mounted(repository) as mount:
        yield mount, back_up(repository, sparse_image(directory / "image", SIZE, PIECES)).version


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("backyfs"), "propagate", True)
    return caplog


# Reading.


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 1),
        (0, BLOCK),
        (10, 20),
        (BLOCK - 1, 1),
        (BLOCK - 1, 2),                   # data and hole
        (BLOCK, BLOCK),                   # a hole
        (2 * BLOCK - 5, 10),              # hole and data
        (BLOCK // 2, 3 * BLOCK),          # four blocks
        (3 * BLOCK - 1, BLOCK + 2),       # zeros between data
        (4 * BLOCK, LAST),                # the short block
        (0, SIZE),
    ],
)
def test_a_read_returns_the_bytes_that_were_backed_up(
    shared: tuple[Mount, Version], offset: int, size: int
) -> None:
    mount, version = shared
    assert mount.read(mount.open_image(version), offset, size) == IMAGE[offset : offset + size]


@pytest.mark.parametrize(
    ("offset", "size", "length"),
    [(0, 1 << 20, SIZE), (SIZE - 1, 2, 1), (SIZE, 1, 0), (SIZE + 1, 1, 0), (1 << 50, BLOCK, 0), (0, 0, 0)],
)
def test_a_read_ends_at_the_end_of_the_image(
    shared: tuple[Mount, Version], offset: int, size: int, length: int
) -> None:
    mount, version = shared
    assert mount.read(mount.open_image(version), offset, size) == IMAGE[offset : offset + length]


def test_the_holes_of_an_image_are_not_loaded(repository: Repository, version: Version) -> None:
    loads: list[str] = []
    with mounted(with_watched_loads(repository, loads.append)) as mount:
        fh = mount.open_image(version)
        assert mount.read(fh, BLOCK, BLOCK) == bytes(BLOCK)
        assert mount.read(fh, 3 * BLOCK, BLOCK) == bytes(BLOCK)
        assert loads == []
        assert mount.read(fh, 2 * BLOCK, 2 * BLOCK) == IMAGE[2 * BLOCK : 4 * BLOCK]
        assert loads == [blob_of(repository, version, 2).uid]


def test_reading_an_empty_image_returns_nothing(mount: Mount, repository: Repository, tmp_path: Path) -> None:
    empty = back_up(repository, sparse_image(tmp_path / "empty", 0, {})).version
    assert mount.find(f"by_version_uid/{empty.uid}/data").st_size == 0
    assert mount.read(mount.open_image(empty), 0, 4096) == b""


def test_a_small_file_can_be_read_from_any_offset(mount: Mount, version: Version) -> None:
    fh = mount.open_path(f"by_version_uid/{version.uid}/name")
    assert mount.read(fh, 0, 4096) == b"disk\n"
    assert mount.read(fh, 2, 2) == b"sk"
    assert mount.read(fh, 5, 10) == b""


def test_simultaneous_readers_get_the_right_bytes(mount: Mount, version: Version) -> None:
    fh = mount.open_image(version)
    ranges = [(offset, 3000) for offset in range(0, SIZE, 500)]
    got: dict[int, bytes] = {}

    async def read(offset: int, size: int) -> None:
        got[offset] = bytes(await mount.operations.read(fh, offset, size))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for offset, size in ranges:
                nursery.start_soon(read, offset, size)

    trio.run(main)
    assert got == {offset: IMAGE[offset : offset + size] for offset, size in ranges}


# Damage.


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, os.unlink, lambda file: os.truncate(file, 0)])
def test_a_damaged_blob_is_an_error_only_for_its_block(
    mount: Mount, repository: Repository, version: Version, damage: Callable[[Path], None]
) -> None:
    damage(file_of(repository, blob_of(repository, version, 2)))
    fh = mount.open_image(version)
    with refused(errno.EIO):
        mount.read(fh, 2 * BLOCK, 1)
    with refused(errno.EIO):
        mount.read(fh, 2 * BLOCK - 1, 2)
    assert mount.read(fh, 0, 2 * BLOCK) == IMAGE[: 2 * BLOCK]
    assert mount.read(fh, 3 * BLOCK, SIZE) == IMAGE[3 * BLOCK :]


def test_the_log_names_version_block_and_blob_of_damage(
    mount: Mount, repository: Repository, version: Version, log: pytest.LogCaptureFixture
) -> None:
    blob = blob_of(repository, version, 4)
    flip_a_byte(file_of(repository, blob))
    with refused(errno.EIO):
        mount.read(mount.open_image(version), 4 * BLOCK, 1)
    (record,) = (record for record in log.records if record.name.startswith("backyfs.mount"))
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith(f"version {version.uid}, block 4: blob {blob.uid} ")


def test_a_repaired_blob_can_be_read_again(
    mount: Mount, repository: Repository, version: Version
) -> None:
    file = file_of(repository, blob_of(repository, version, 0))
    flip_a_byte(file)
    fh = mount.open_image(version)
    with refused(errno.EIO):
        mount.read(fh, 0, 1)
    flip_a_byte(file)
    assert mount.read(fh, 0, BLOCK) == IMAGE[:BLOCK]


def test_a_block_map_that_names_no_blob_is_an_error(mount: Mount, repository: Repository, version: Version) -> None:
    fh = mount.open_image(version)
    image_of(mount, version).page(PageNumber(0)).entries[0] = 999
    with refused(errno.EIO):
        mount.read(fh, 0, 1)


def test_a_block_map_that_names_a_blob_of_another_size_is_an_error(
    mount: Mount, repository: Repository, version: Version
) -> None:
    fh = mount.open_image(version)
    page = image_of(mount, version).page(PageNumber(0))
    page.entries[0] = page.entries[4]  # the short one
    with refused(errno.EIO):
        mount.read(fh, 0, 1)


def test_a_block_never_backed_up_is_an_error_and_not_zeros(
    mount: Mount, repository: Repository, version: Version
) -> None:
    fh = mount.open_image(incomplete_copy(repository, version, absent=[1, 2]))
    with refused(errno.EIO):
        mount.read(fh, BLOCK, 1)
    with refused(errno.EIO):
        mount.read(fh, 2 * BLOCK, 1)
    assert mount.read(fh, 0, BLOCK) == IMAGE[:BLOCK]
    assert mount.read(fh, 3 * BLOCK, SIZE) == IMAGE[3 * BLOCK :]


def test_an_incomplete_version_without_a_block_map_is_an_error_everywhere(
    mount: Mount, repository: Repository, version: Version
) -> None:
    with repository.database.write() as connection:
        set_status(connection, version.id, VersionStatus.INCOMPLETE)
        commit_page(connection, version.id, PageNumber(0), new_entries(5, 0))  # no row: holes, or nothing yet
    fh = mount.open_image(version)
    for block in range(5):
        with refused(errno.EIO):
            mount.read(fh, block * BLOCK, 1)


def test_a_version_opened_before_its_backup_ended_is_complete_when_opened_again(
    mount: Mount, repository: Repository, version: Version
) -> None:
    copy = incomplete_copy(repository, version, absent=[0, 4])
    with refused(errno.EIO):
        mount.read(mount.open_image(copy), 0, 1)
    finish(repository, copy, version)
    assert mount.read(mount.open_image(copy), 0, SIZE) == IMAGE


# Errors.


@pytest.mark.parametrize(
    ("handler", "arguments"),
    [
        ("lookup", (b"name",)),
        ("getattr", ()),
        ("readlink", ()),
        ("opendir", ()),
        ("open", (os.O_RDONLY,)),
    ],
)
def test_an_unknown_inode_is_not_found(
    shared: tuple[Mount, Version], handler: str, arguments: tuple[object, ...]
) -> None:
    mount, _ = shared
    with refused(errno.ENOENT):
        mount.call(handler, NO_INODE, *arguments)


def test_an_unknown_name_is_not_found(mount: Mount, version: Version) -> None:
    for path in ("nothing", "by_name/nothing", "by_version_uid/nothing", f"by_version_uid/{version.uid}/nothing"):
        with refused(errno.ENOENT):
            mount.find(path)


def test_an_unexpected_error_is_an_input_output_error_and_logged(
    repository: Repository, version: Version, log: pytest.LogCaptureFixture
) -> None:
    def fail(_uid: str) -> None:
        raise ZeroDivisionError("a bug")

    with mounted(with_watched_loads(repository, fail)) as mount:
        fh = mount.open_image(version)
        with refused(errno.EIO):
            mount.read(fh, 0, 1)
    assert [record.getMessage() for record in log.records] == ["read failed; this is a bug, please report it"]


@pytest.mark.parametrize("handler", ["lookup", "getattr", "readlink", "opendir", "open", "statfs"])
def test_a_database_that_fails_is_an_input_output_error(
    mount: Mount, tmp_path: Path, handler: str, log: pytest.LogCaptureFixture
) -> None:
    arguments: dict[str, tuple[object, ...]] = {"lookup": (1, b"by_name"), "open": (1, os.O_RDONLY), "statfs": ()}
    mount.repository.database.engine.dispose()
    (tmp_path / "backyfs.sqlite").rename(tmp_path / "away")
    (tmp_path / "backyfs.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 100)
    try:
        with refused(errno.EIO):
            mount.call(handler, *arguments.get(handler, (pyfuse3.ROOT_INODE,)))
    finally:
        mount.repository.database.engine.dispose()
        (tmp_path / "away").rename(tmp_path / "backyfs.sqlite")
    assert [record.levelname for record in log.records] == ["ERROR"]


def test_a_system_error_keeps_its_number(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    async def load_tree() -> None:
        raise OSError(errno.ENOMEM, "out of memory")

    monkeypatch.setattr(mount.operations._contents.tree, "get", load_tree)
    with refused(errno.ENOMEM):
        mount.call("getattr", pyfuse3.ROOT_INODE)


# Writing.


@pytest.mark.parametrize("handler", sorted({*WRITING_HANDLERS} - {"write"}))
def test_nothing_can_be_changed(shared: tuple[Mount, Version], handler: str) -> None:
    mount, _ = shared
    count = len(inspect.signature(getattr(mount.operations, handler)).parameters)
    with refused(errno.EROFS):
        mount.call(handler, pyfuse3.ROOT_INODE, *[None] * (count - 1))


@pytest.mark.parametrize("file", ["data", "name"])
def test_nothing_can_be_written(shared: tuple[Mount, Version], file: str) -> None:
    mount, version = shared
    with refused(errno.EROFS):
        mount.call("write", mount.open_path(f"by_version_uid/{version.uid}/{file}"), 0, b"new")


def test_every_writing_handler_of_pyfuse3_is_refused() -> None:
    reading = {
        "access", "flush", "forget", "fsync", "fsyncdir", "getattr", "getxattr", "init", "listxattr", "lookup", "open",
        "opendir", "poll", "read", "readdir", "readlink", "release", "releasedir", "stacktrace", "statfs",
    }  # fmt: skip
    every = {name for name in vars(pyfuse3.Operations) if not name.startswith("_") and name.islower()}
    settings = {name for name in every if not callable(getattr(pyfuse3.Operations, name))}
    assert every - settings - reading == set(WRITING_HANDLERS)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND])
@pytest.mark.parametrize("file", ["data", "name"])
def test_nothing_is_opened_for_writing(shared: tuple[Mount, Version], file: str, flags: int) -> None:
    mount, version = shared
    inode = mount.inode(f"by_version_uid/{version.uid}/{file}")
    with refused(errno.EROFS):
        mount.call("open", inode, flags)


@pytest.mark.parametrize(
    ("mode", "allowed"),
    [(os.F_OK, True), (os.R_OK, True), (os.X_OK, True), (os.W_OK, False), (os.R_OK | os.W_OK, False)],
)
def test_access_is_granted_for_everything_but_writing(
    shared: tuple[Mount, Version], mode: int, *, allowed: bool
) -> None:
    mount, _ = shared
    assert mount.call("access", pyfuse3.ROOT_INODE, mode) is allowed


# Attributes.


def test_an_image_has_the_size_and_the_date_of_its_backup(mount: Mount, version: Version) -> None:
    found = mount.find(f"by_version_uid/{version.uid}/data")
    assert found.st_size == SIZE
    assert stat.filemode(found.st_mode) == "-r--r-----"
    assert (found.st_uid, found.st_gid, found.st_nlink) == (os.geteuid(), os.getegid(), 1)
    assert found.st_blocks == (2 * BLOCK + LAST + 511) // 512  # three blocks are not holes
    assert abs(found.st_mtime_ns / 1e9 - version.created_at.timestamp()) < 1e-6
    assert found.st_mtime_ns // 1000 % 1_000_000 == version.created_at.microsecond
    assert found.st_mtime_ns == found.st_atime_ns == found.st_ctime_ns


def test_the_attributes_of_an_image_are_kept_longer_than_names(mount: Mount, version: Version) -> None:
    found = mount.find(f"by_version_uid/{version.uid}/data")
    assert (found.attr_timeout, found.entry_timeout) == (300.0, 300.0)
    found = mount.find(f"by_version_uid/{version.uid}/tags")
    assert (found.attr_timeout, found.entry_timeout) == (0.7, 0.7)


@pytest.mark.parametrize(
    ("path", "mode", "size"),
    [
        ("by_version_uid", "dr-xr-x---", 0),
        ("by_name", "dr-xr-x---", 0),
        ("by_name/disk", "dr-xr-x---", 0),
        ("by_name/disk/latest", "lrwxrwxrwx", 57),
        ("by_version_uid/{uid}", "dr-xr-x---", 0),
    ],
)
def test_directories_and_links_have_their_modes(
    shared: tuple[Mount, Version], path: str, mode: str, size: int
) -> None:
    mount, version = shared
    found = mount.find(path.format(uid=version.uid))
    assert stat.filemode(found.st_mode) == mode
    assert found.st_size == size


def test_a_small_file_has_the_size_of_its_content(mount: Mount, version: Version) -> None:
    found = mount.find(f"by_version_uid/{version.uid}/name")
    assert stat.filemode(found.st_mode) == "-r--r-----"
    assert found.st_size == len("disk\n")


def test_an_inode_number_does_not_change(mount: Mount, version: Version) -> None:
    path = f"by_version_uid/{version.uid}/data"
    assert mount.inode(path) == mount.inode(path)
    assert mount.call("getattr", mount.inode(path)).st_ino == mount.inode(path)


def test_the_root_has_the_inode_number_that_fuse_requires(mount: Mount) -> None:
    assert mount.call("getattr", pyfuse3.ROOT_INODE).st_ino == 1


def test_the_kernel_may_cache_images_but_not_small_files(mount: Mount, version: Version) -> None:
    directory = f"by_version_uid/{version.uid}"
    assert mount.call("open", mount.inode(f"{directory}/data"), os.O_RDONLY).keep_cache
    assert not mount.call("open", mount.inode(f"{directory}/tags"), os.O_RDONLY).keep_cache


def test_the_kernel_does_not_cache_an_incomplete_version(
    mount: Mount, repository: Repository, version: Version
) -> None:
    copy = incomplete_copy(repository, version, absent=[0])
    inode = mount.inode(f"by_version_uid/{copy.uid}/data")
    assert not mount.call("open", inode, os.O_RDONLY).keep_cache
    assert not mount.call("open", inode, os.O_RDONLY).keep_cache
    finish(repository, copy, version)
    assert not mount.call("open", inode, os.O_RDONLY).keep_cache  # it was partly read before the backup ended
    assert mount.call("open", inode, os.O_RDONLY).keep_cache


def test_the_root_identifies_the_process_that_serves_the_mount(mount: Mount) -> None:
    assert mount.call("getxattr", pyfuse3.ROOT_INODE, b"user.backyfs.pid") == str(os.getpid()).encode()
    assert mount.call("listxattr", pyfuse3.ROOT_INODE) == [b"user.backyfs.pid", b"user.backyfs.repository"]


def test_the_root_identifies_the_repository(mount: Mount) -> None:
    assert mount.call("getxattr", pyfuse3.ROOT_INODE, b"user.backyfs.repository") == mount.repository.uid.encode()


@pytest.mark.parametrize("path", ["by_version_uid/{uid}", "by_version_uid/{uid}/data"])
def test_a_version_has_its_facts_as_extended_attributes(
    shared: tuple[Mount, Version], path: str
) -> None:
    mount, version = shared
    inode = mount.inode(path.format(uid=version.uid))
    attributes = {
        name.decode().removeprefix("user.backyfs."): mount.call("getxattr", inode, name).decode()
        for name in mount.call("listxattr", inode)
    }
    assert attributes == {
        "uid": version.uid,
        "name": "disk",
        "snapshot_name": "",
        "tags": "",
        "date": f"{version.created_at:%Y-%m-%dT%H:%M:%S}",
        "expire": "",
        "protected": "0",
        "valid": "1",
        "status": "valid",
        "size": str(SIZE),
        "encryption_versions": "2",
    }


def test_a_version_without_blobs_has_no_encryption_versions(
    mount: Mount, repository: Repository, tmp_path: Path
) -> None:
    empty = back_up(repository, sparse_image(tmp_path / "empty", 10 * BLOCK, {})).version
    inode = mount.inode(f"by_version_uid/{empty.uid}/data")
    assert mount.call("getxattr", inode, b"user.backyfs.encryption_versions") == b""
    assert mount.find(f"by_version_uid/{empty.uid}/data").st_blocks == 0


def test_there_are_no_other_extended_attributes(mount: Mount, version: Version) -> None:
    inode = mount.inode(f"by_version_uid/{version.uid}/data")
    for name in (b"user.backyfs.pid", b"user.backyfs.nothing", b"security.capability"):
        with refused(errno.ENODATA):
            mount.call("getxattr", inode, name)
    with refused(errno.ENODATA):
        mount.call("getxattr", pyfuse3.ROOT_INODE, b"security.capability")
    assert mount.call("listxattr", mount.inode(f"by_version_uid/{version.uid}/name")) == []


def test_the_file_system_has_the_size_of_its_images_and_is_full(
    mount: Mount, repository: Repository, version: Version, tmp_path: Path
) -> None:
    back_up(repository, tmp_path / "image")
    answer = mount.call("statfs")
    assert answer.f_frsize == 512
    assert answer.f_blocks == -(-2 * SIZE // 512)
    assert (answer.f_bfree, answer.f_bavail, answer.f_ffree) == (0, 0, 0)
    assert answer.f_namemax == 255


# Directories and links.


def test_directories_list_the_entries_of_the_tree(mount: Mount, version: Version) -> None:
    uid = version.uid.encode()
    assert mount.names("") == [b"by_version_uid", b"by_name"]
    assert mount.names("by_version_uid") == [uid]
    assert mount.names("by_name") == [b"disk"]
    assert mount.names("by_name/disk") == [f"{version.created_at:%Y-%m-%dT%H-%M-%S}_".encode() + uid, b"latest"]
    assert mount.names(f"by_version_uid/{version.uid}") == [
        b"data", b"partitions", b"name", b"snapshot_name", b"tags", b"date", b"expire", b"protected", b"valid",
    ]  # fmt: skip
    assert mount.names(f"by_version_uid/{version.uid}/partitions") == [b"table.txt"]


def test_a_directory_can_be_listed_in_any_number_of_parts(
    mount: Mount, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    fh = mount.call("opendir", mount.inode(f"by_version_uid/{version.uid}"))
    listed: list[bytes] = []
    room = 0
    next_start = 0

    def reply(token: object, name: bytes, attributes: object, next_id: int) -> bool:
        nonlocal room, next_start
        if room == 0:
            return False
        room -= 1
        next_start = next_id
        listed.append(name)
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    for expected in (2, 4, 6, 8, 9, 9):
        room = 2
        mount.call("readdir", fh, next_start, None)
        assert len(listed) == expected
    assert len(set(listed)) == 9


def test_links_point_to_their_versions(mount: Mount, version: Version) -> None:
    target = f"../../by_version_uid/{version.uid}".encode()
    assert mount.call("readlink", mount.inode("by_name/disk/latest")) == target
    assert mount.call("readlink", mount.inode(f"by_name/disk/{version.uid}")) == target


def test_a_directory_cannot_be_opened_as_a_file(mount: Mount) -> None:
    with refused(errno.ENOENT):
        mount.call("open", pyfuse3.ROOT_INODE, os.O_RDONLY)


# New and removed versions.


def test_a_new_version_appears(mount: Mount, repository: Repository, version: Version, tmp_path: Path) -> None:
    assert len(mount.names("by_version_uid")) == 1
    second = back_up(repository, tmp_path / "image", "other").version
    assert mount.names("by_name") == [b"disk", b"other"]
    assert mount.find(f"by_version_uid/{second.uid}/data").st_size == SIZE


def test_latest_moves_to_the_new_version(
    mount: Mount, repository: Repository, version: Version, tmp_path: Path
) -> None:
    inode = mount.inode("by_name/disk/latest")
    second = back_up(repository, tmp_path / "image").version
    assert mount.call("readlink", inode) == f"../../by_version_uid/{second.uid}".encode()


def test_a_removed_version_disappears(mount: Mount, repository: Repository, version: Version) -> None:
    inode = mount.inode(f"by_version_uid/{version.uid}/data")
    remove_version(repository, version.uid)
    assert mount.names("by_version_uid") == []
    assert mount.names("by_name") == []
    for handler, arguments in (("getattr", ()), ("open", (os.O_RDONLY,))):
        with refused(errno.ENOENT):
            mount.call(handler, inode, *arguments)


def test_a_version_removed_during_a_listing_is_left_out(
    mount: Mount, repository: Repository, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = back_up(repository, tmp_path / "image").version
    fh = mount.call("opendir", mount.inode("by_version_uid"))
    remove_version(repository, version.uid)
    listed: list[bytes] = []

    def reply(token: object, name: bytes, attributes: object, next_id: int) -> bool:
        listed.append(name)
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    mount.call("readdir", fh, 0, None)
    assert listed == [second.uid.encode()]


def test_an_open_small_file_keeps_its_content(
    mount: Mount, repository: Repository, version: Version
) -> None:
    fh = mount.open_path(f"by_version_uid/{version.uid}/valid")
    with repository.database.write() as connection:
        set_status(connection, version.id, VersionStatus.INVALID)
    assert mount.read(fh, 0, 100) == b"valid\n"
    with refused(errno.ENOENT):
        mount.find(f"by_version_uid/{version.uid}/valid")
    assert mount.read(mount.open_path(f"by_version_uid/{version.uid}/invalid"), 0, 100) == b"invalid\n"


def test_a_version_is_held_while_its_image_is_open(mount: Mount, version: Version) -> None:
    mount.find(f"by_version_uid/{version.uid}/data")
    mount.open_path(f"by_version_uid/{version.uid}/name")
    assert mount.held_versions() == []
    fh = mount.open_image(version)
    other = mount.open_image(version)
    assert mount.held_versions() == [version.id]
    mount.call("release", fh)
    assert mount.held_versions() == [version.id]
    mount.call("release", other)
    assert mount.held_versions() == []


def test_a_version_opened_by_many_at_the_same_time_is_held_once(mount: Mount, version: Version) -> None:
    inode = mount.inode(f"by_version_uid/{version.uid}/data")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(mount.operations.open, inode, os.O_RDONLY)

    trio.run(main)
    assert mount.held_versions() == [version.id]
    images = [opened.reader for opened in mount.operations._open.values() if isinstance(opened, ImageFile)]
    assert len(images) == 8
    assert len({id(image) for image in images}) == 1


def test_a_file_is_forgotten_when_it_is_closed(mount: Mount, version: Version) -> None:
    fh = mount.open_image(version)
    mount.call("flush", fh)
    mount.call("release", fh)
    with refused(errno.ENOENT):
        mount.read(fh, 0, 1)
    assert mount.operations._open == {}


def test_versions_are_looked_up_at_most_once_a_second(
    repository: Repository, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    with mounted(repository, freshness=Freshness()) as mount, monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now[0])
        mount.find(f"by_version_uid/{version.uid}/data")
        rename(repository, "renamed")
        assert mount.names("by_name") == [b"disk"]
        now[0] += 1.01
        assert mount.names("by_name") == [b"renamed"]


def rename(repository: Repository, name: str) -> None:
    with repository.database.write() as connection:
        connection.execute(versions.update().values(name=name))


# Read-ahead


def read_and_load_ahead(mount: Mount, fh: int, offset: int, size: int) -> bytes:
    """Read, and return when all read-ahead has finished."""

    async def read() -> bytes:
        opened = mount.operations._open[fh]
        assert isinstance(opened, ImageFile)
        opened.reader.image.page(PageNumber(0))  # so read-ahead does not wait for the database
        data = bytes(await mount.operations.read(fh, offset, size))
        while mount.operations._contents.cache._loads:  # noqa: ASYNC110 - nobody waits for them
            await trio.sleep(0.001)
        return data

    return trio.run(read)


READ_AHEAD_BYTES = 4 * BLOCK


def test_the_next_blocks_of_a_sequential_reader_are_already_loaded(repository: Repository, version: Version) -> None:
    loads: list[str] = []
    with mounted(with_watched_loads(repository, loads.append), read_ahead_bytes=READ_AHEAD_BYTES) as mount:
        cache = mount.operations._contents.cache
        fh = mount.open_image(version)
        assert read_and_load_ahead(mount, fh, 0, 2 * BLOCK) == IMAGE[: 2 * BLOCK]
        assert cache.peek(blob_of(repository, version, 2), 0) == IMAGE[2 * BLOCK : 3 * BLOCK]
        assert read_and_load_ahead(mount, fh, 2 * BLOCK, SIZE) == IMAGE[2 * BLOCK :]
        assert len(loads) == len(set(loads)) == 3


def test_a_failed_read_ahead_is_an_error_only_for_the_reader_of_the_block(
    repository: Repository, version: Version, caplog: pytest.LogCaptureFixture
) -> None:
    flip_a_byte(file_of(repository, blob_of(repository, version, 2)))
    with mounted(repository, read_ahead_bytes=READ_AHEAD_BYTES) as mount:
        fh = mount.open_image(version)
        with caplog.at_level(logging.ERROR, logger="backyfs"):
            assert read_and_load_ahead(mount, fh, 0, 2 * BLOCK) == IMAGE[: 2 * BLOCK]
        assert caplog.text == ""
        with refused(errno.EIO):
            mount.read(fh, 2 * BLOCK, BLOCK)


def test_a_bug_in_the_read_ahead_does_not_end_the_mount(repository: Repository, version: Version) -> None:
    wanted = blob_of(repository, version, 0).uid
    failed: list[str] = []

    def fail(uid: str) -> None:
        if uid != wanted:
            failed.append(uid)
            raise ZeroDivisionError

    with mounted(with_watched_loads(repository, fail), read_ahead_bytes=READ_AHEAD_BYTES) as mount:
        fh = mount.open_image(version)
        assert read_and_load_ahead(mount, fh, 0, 2 * BLOCK) == IMAGE[: 2 * BLOCK]
    assert failed


# Missing answers.


def test_the_tree_does_not_change_if_the_database_fails(
    repository: Repository, version: Version, log: pytest.LogCaptureFixture
) -> None:
    is_reachable = True

    def read() -> None:
        if not is_reachable:
            raise DatabaseError("cannot be reached")

    with mounted(with_watched_reads(repository, read)) as mount:
        assert mount.names("by_name") == [b"disk"]
        is_reachable = False
        for _ in range(3):
            assert mount.names("by_name") == [b"disk"]
    assert [record.getMessage() for record in log.records if record.levelname == "WARNING"] == [
        "the mount shows the versions as they were: cannot be reached"
    ]


def test_a_version_is_held_only_while_its_partition_table_is_read(mount: Mount, version: Version) -> None:
    inode = mount.inode(f"by_version_uid/{version.uid}/partitions")
    mount.call("opendir", inode)
    assert mount.held_versions() == []


def test_the_kernel_can_forget_everything(mount: Mount, version: Version) -> None:
    before = len(mount.operations._inodes)
    inodes = [mount.inode(f"by_version_uid/{version.uid}/{name}") for name in ("data", "name", "tags")]
    directory = mount.inode(f"by_version_uid/{version.uid}")
    mount.call("forget", [(inode, 1) for inode in inodes])
    mount.call("forget", [(directory, 4)])
    assert len(mount.operations._inodes) == before
    with refused(errno.ENOENT):
        mount.call("getattr", inodes[0])


def test_a_failed_lookup_leaves_no_inode(
    mount: Mount, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = mount.inode(f"by_version_uid/{version.uid}")
    before = len(mount.operations._inodes)

    async def used_bytes(*_: object) -> int:
        raise LookupError

    monkeypatch.setattr(mount.operations._contents.facts, "used_bytes", used_bytes)
    with refused(errno.ENOENT):
        mount.call("lookup", directory, b"data")
    assert len(mount.operations._inodes) == before


def test_a_database_that_never_answers_does_not_end_the_mount(repository: Repository) -> None:
    asked: list[int] = []

    def fail() -> None:
        asked.append(1)
        raise DatabaseError("cannot be reached")

    async def main() -> None:
        with pytest.raises(DatabaseError):
            await live_tree.get()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(live_tree.keep_fresh)
                while len(asked) < 4:  # noqa: ASYNC110 - a thread counts them
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    live_tree = live_tree_of(with_watched_reads(repository, fail), Freshness(refresh_s=0.01))
    trio.run(main)


def live_tree_of(repository: Repository, freshness: Freshness) -> LiveTree:
    questions = Pool("the database", DatabaseError, threads=4, patience_s=30)
    return LiveTree(repository.database, Selection(), questions, freshness)


def test_a_hanging_database_is_queried_once_and_awaited_only_briefly(
    repository: Repository, version: Version
) -> None:
    gate = threading.Event()
    gate.set()
    asked: list[int] = []

    def hang() -> None:
        asked.append(1)
        assert gate.wait(30)

    async def main() -> None:
        before = await live_tree.get()
        gate.clear()
        asked.clear()
        for _ in range(3):
            assert await live_tree.get() is before
        assert len(asked) == 1
        rename(repository, "renamed")
        gate.set()
        with trio.fail_after(10):
            while await live_tree.get() is before:  # noqa: ASYNC110 - a thread ends it
                await trio.sleep(0.001)

    live_tree = live_tree_of(with_watched_reads(repository, hang), Freshness(fresh_s=-1.0, patience_s=0.05))
    try:
        trio.run(main)
    finally:
        gate.set()
