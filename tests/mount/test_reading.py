"""A mount, read through the kernel: images byte for byte, the tree, damage, and refused writes."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from backyfs.metadata.db.tables import blobs
from backyfs.mount.tree import escape
from tests.support.images import random_bytes, random_image, sparse_image
from tests.support.program import PATIENCE_S, backyfs, mounting, process_of
from tests.support.repositories import BLOCK, back_up, make_repository, opened
from tests.support.stored import blob_of, file_of, finish, flip_a_byte, incomplete_copy, truncate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backyfs.model import Version

    Mounted = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("fuse")

LARGE = 700 * BLOCK + 1234
SIZES = (0, 1, 511, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK)


@dataclass(frozen=True)
class Disks:
    """A mount with a version of each image, by name."""

    at: Path
    config_file: Path
    images: dict[str, Path]
    versions: dict[str, Version]

    def data(self, name: str) -> Path:
        return self.at / "by_name" / name / "latest" / "data"


@pytest.fixture(scope="module")
def disks(fuse: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    """Mount images of all kinds, for tests that change nothing."""
    directory = tmp_path_factory.mktemp("disks")
    images = {f"random{size}": random_image(directory / f"random{size}", size, seed=size) for size in SIZES}
    images["holes"] = sparse_image(directory / "holes", 40 * BLOCK + 17, {})
    images["zeros"] = directory / "zeros"
    images["zeros"].write_bytes(bytes(9 * BLOCK + 99))
    images["mixed"] = sparse_image(
        directory / "mixed", 64 * BLOCK, {9 * BLOCK - 7: random_bytes(2 * BLOCK), 30 * BLOCK: b"x", 63 * BLOCK: b"end"}
    )
    images["large"] = random_image(directory / "large", LARGE)
    config_file = make_repository(directory / "repository")
    with opened(config_file) as repository:
        versions = {name: back_up(repository, image, name).version for name, image in images.items()}
    with mounting(config_file, directory / "mount") as at:
        yield Disks(at, config_file, images, versions)


@contextmanager
def fails(*numbers: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
        yield
    assert errno.errorcode[caught.value.errno or 0] in {errno.errorcode[number] for number in numbers}


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# Images.


@pytest.mark.parametrize("name", [*(f"random{size}" for size in SIZES), "holes", "zeros", "mixed", "large"])
def test_an_image_is_the_same_byte_for_byte(disks: Disks, name: str) -> None:
    assert disks.data(name).stat().st_size == disks.images[name].stat().st_size
    subprocess.run(["cmp", str(disks.data(name)), str(disks.images[name])], check=True, timeout=PATIENCE_S)


@given(
    offset=st.integers(0, LARGE + BLOCK),
    length=st.integers(0, 3 * BLOCK) | st.integers(0, 200 * BLOCK),
    direct=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_any_range_has_the_bytes_that_were_backed_up(disks: Disks, *, offset: int, length: int, direct: bool) -> None:
    expected = disks.images["large"].read_bytes()[offset : offset + length]
    # FUSE requires no alignment for O_DIRECT. Such reads never use the page cache, so the process serves them all.
    file = os.open(disks.data("large"), os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        assert os.pread(file, length, offset) == expected
    finally:
        os.close(file)


@pytest.mark.parametrize(
    "command",
    [
        ["cp", "{data}", "{copy}"],
        ["cp", "--sparse=always", "{data}", "{copy}"],
        ["dd", "if={data}", "of={copy}", "iflag=direct", "bs=64k", "status=none"],
        ["dd", "if={data}", "of={copy}", "bs=1000", "status=none"],
        ["tar", "--dereference", "--create", "--file={copy}.tar", "{data}"],
    ],
    ids=" ".join,
)
def test_programs_can_copy_images(disks: Disks, tmp_path: Path, command: list[str]) -> None:
    data, copy = disks.data("large"), tmp_path / "copy"
    subprocess.run([word.format(data=data, copy=copy) for word in command], check=True, stderr=subprocess.PIPE)
    if command[0] == "tar":
        with copy.open("wb") as file:
            subprocess.run(["tar", "--extract", "--to-stdout", f"--file={copy}.tar"], stdout=file, check=True)
    assert copy.read_bytes() == disks.images["large"].read_bytes()


def test_tail_can_follow_an_image(disks: Disks) -> None:
    with subprocess.Popen(["tail", "-c", "10", "-f", str(disks.data("large"))], stdout=subprocess.PIPE) as tail:
        assert tail.stdout is not None
        assert tail.stdout.read(10) == disks.images["large"].read_bytes()[-10:]
        tail.terminate()
        assert tail.wait(PATIENCE_S) == -signal.SIGTERM


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
def test_an_image_can_be_mapped_into_memory(disks: Disks, flags: int) -> None:
    with disks.data("large").open("rb") as file:
        with mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as mapped:
            for offset in (0, BLOCK - 1, 5 * BLOCK, LARGE - 1):
                assert mapped[offset : offset + 10] == disks.images["large"].read_bytes()[offset : offset + 10]
            assert mapped[:] == disks.images["large"].read_bytes()
        with fails(errno.EACCES):
            mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def test_an_image_can_be_locked_and_synced_like_any_file(disks: Disks) -> None:
    import fcntl

    with disks.data("large").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.fsync(file.fileno())


def ranges_of(seed: int) -> list[tuple[int, int]]:
    chance = random.Random(seed)
    return [(chance.randrange(LARGE), chance.randrange(1, 40 * BLOCK)) for _ in range(40)]


def test_sixteen_threads_can_read_overlapping_ranges(disks: Disks) -> None:
    image = disks.images["large"].read_bytes()

    def read(seed: int) -> bool:
        file = os.open(disks.data("large"), os.O_RDONLY | (os.O_DIRECT if seed % 2 else 0))
        try:
            ranges = ranges_of(seed)
            return all(os.pread(file, size, offset) == image[offset : offset + size] for offset, size in ranges)
        finally:
            os.close(file)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(read, range(16))) == [True] * 16


def test_sixteen_processes_can_read_the_same_image(disks: Disks) -> None:
    readers = [
        subprocess.Popen(["sha256sum", str(disks.data("large"))], stdout=subprocess.PIPE, text=True) for _ in range(16)
    ]
    expected = hashlib.sha256(disks.images["large"].read_bytes()).hexdigest()
    assert [reader.communicate()[0].split()[0] for reader in readers] == [expected] * 16


def test_killed_readers_do_no_harm(mounted: Mounted, disks: Disks) -> None:
    at = mounted(disks.config_file)  # none of it is in the page cache
    data = at / "by_name" / "large" / "latest" / "data"
    command = ["dd", f"if={data}", "of=/dev/null", "iflag=direct", "bs=512k", "status=none"]
    for delay_ms in range(0, 60, 3):
        readers = [subprocess.Popen(command) for _ in range(3)]
        time.sleep(delay_ms / 1000)
        for reader in readers:
            reader.kill()
            reader.wait()
    assert data.read_bytes() == disks.images["large"].read_bytes()


# The tree.


def test_the_tree_is_as_documented(disks: Disks) -> None:
    version = disks.versions["mixed"]
    assert sorted(os.listdir(disks.at)) == ["by_name", "by_version_uid"]
    assert set(os.listdir(disks.at / "by_name")) == set(disks.images)
    assert set(os.listdir(disks.at / "by_version_uid")) == {of.uid for of in disks.versions.values()}
    dated = f"{version.created_at:%Y-%m-%dT%H-%M-%S}_{version.uid}"
    assert sorted(os.listdir(disks.at / "by_name" / "mixed")) == [dated, "latest"]
    assert {file.name: file.stat().st_size for file in (disks.at / "by_version_uid" / version.uid).iterdir()} == {
        "data": 64 * BLOCK,
        "partitions": 0,
        "date": len("2026-01-01T00:00:00\n"),
        "name": len("mixed\n"),
        "snapshot_name": 1,
        "tags": 1,
        "expire": 1,
        "protected": 2,
        "valid": len("valid\n"),
    }


def test_small_files_can_be_read(disks: Disks) -> None:
    directory = disks.at / "by_name" / "mixed" / "latest"
    assert (directory / "name").read_text() == "mixed\n"
    assert (directory / "protected").read_text() == "0\n"
    assert (directory / "valid").read_text() == "valid\n"
    assert (directory / "tags").read_text() == "\n"


def test_all_paths_to_a_version_lead_to_the_same_file(disks: Disks) -> None:
    version = disks.versions["mixed"]
    name = disks.at / "by_name" / "mixed"
    direct = disks.at / "by_version_uid" / version.uid / "data"
    ways = [name / "latest", name / version.uid, *name.iterdir()]
    assert [os.readlink(way) for way in ways] == [f"../../by_version_uid/{version.uid}"] * 4
    assert {(way / "data").stat().st_ino for way in ways} == {direct.stat().st_ino}
    assert os.path.realpath(name / "latest" / "data") == os.path.realpath(direct)


def test_a_uid_below_its_name_is_found_but_not_listed(disks: Disks) -> None:
    version = disks.versions["mixed"]
    assert (disks.at / "by_name" / "mixed" / version.uid / "data").stat().st_size == 64 * BLOCK
    assert version.uid not in os.listdir(disks.at / "by_name" / "mixed")
    assert not os.path.lexists(disks.at / "by_name" / "large" / version.uid)


def test_an_image_has_the_date_of_its_backup_and_is_readable_only_by_its_owner(disks: Disks) -> None:
    found = disks.data("mixed").stat()
    assert oct(found.st_mode) == "0o100440"
    assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
    assert abs(found.st_mtime - disks.versions["mixed"].created_at.timestamp()) < 1e-5


def test_the_file_system_has_the_size_of_its_images_and_is_full(disks: Disks) -> None:
    found = os.statvfs(disks.at)
    total = sum(image.stat().st_size for image in disks.images.values())
    assert found.f_blocks == -(-total // found.f_frsize)
    assert (found.f_bfree, found.f_bavail) == (0, 0)


ODD_NAMES = ["Größe ✓", "a/b", "..", ".", "%2F", "new\nline", "\x1b[31mred", "x" * 300, "ä" * 200, "-rf", " ", "latest"]


def test_versions_with_any_name_can_be_read(mounted: Mounted, tmp_path: Path) -> None:
    config_file = make_repository(tmp_path / "repository")
    with opened(config_file) as repository:
        for number, name in enumerate(ODD_NAMES):
            back_up(repository, random_image(tmp_path / "image", 100 + number, seed=number), name)
    at = mounted(config_file)
    listed = os.listdir(os.fsencode(at / "by_name"))
    assert sorted(listed) == sorted(escape(name) for name in ODD_NAMES)
    for number, name in enumerate(ODD_NAMES):
        directory = os.path.join(os.fsencode(at), b"by_name", escape(name), b"latest")
        with open(os.path.join(directory, b"data"), "rb") as data, open(os.path.join(directory, b"name"), "rb") as fact:
            assert data.read() == random_bytes(100 + number, seed=number)
            assert fact.read().decode() == f"{name}\n"


def test_a_version_backed_up_while_mounted_appears(mounted: Mounted, tmp_path: Path) -> None:
    config_file = make_repository(tmp_path / "repository")
    at = mounted(config_file)
    assert os.listdir(at / "by_name") == []
    image = random_image(tmp_path / "image", 3 * BLOCK)
    assert backyfs("-c", config_file, "backup", image, "disk").returncode == 0
    data = at / "by_name" / "disk" / "latest" / "data"
    wait_until(data.exists)
    assert data.read_bytes() == image.read_bytes()
    random_image(image, 4 * BLOCK, seed=2)
    assert backyfs("-c", config_file, "backup", image, "disk").returncode == 0
    wait_until(lambda: data.stat().st_size == 4 * BLOCK)
    assert data.read_bytes() == image.read_bytes()
    assert len(os.listdir(at / "by_version_uid")) == 2


# Writing.


@pytest.mark.parametrize("flags", ["O_WRONLY", "O_RDWR", "O_WRONLY|O_TRUNC", "O_WRONLY|O_APPEND", "O_RDONLY|O_TRUNC"])
@pytest.mark.parametrize("file", ["data", "name"])
def test_nothing_is_opened_for_writing(disks: Disks, file: str, flags: str) -> None:
    path = disks.data("mixed").with_name(file)
    number = 0
    for flag in flags.split("|"):
        number |= getattr(os, flag)
    with fails(errno.EROFS):
        os.close(os.open(path, number))


@pytest.mark.parametrize(
    "write",
    [
        lambda directory: (directory / "new").touch(),
        lambda directory: (directory / "data").touch(),
        lambda directory: (directory / "new").mkdir(),
        lambda directory: directory.rmdir(),
        lambda directory: (directory / "data").unlink(),
        lambda directory: (directory / "data").chmod(0o600),
        lambda directory: os.chown(directory / "data", 1, 1),
        lambda directory: (directory / "data").rename(directory / "other"),
        lambda directory: os.link(directory / "data", directory / "other"),
        lambda directory: os.symlink("data", directory / "other"),
        lambda directory: os.mknod(directory / "other"),
        lambda directory: os.mkfifo(directory / "other"),
        lambda directory: os.truncate(directory / "data", 0),
        lambda directory: os.utime(directory / "data"),
        lambda directory: os.setxattr(directory / "data", "user.new", b"x"),
        lambda directory: os.removexattr(directory / "data", "user.new"),
    ],
    ids=[
        "create", "touch", "mkdir", "rmdir", "unlink", "chmod", "chown", "rename", "link", "symlink", "mknod",
        "mkfifo", "truncate", "utime", "setxattr", "removexattr",
    ],
)  # fmt: skip
def test_nothing_can_be_written(disks: Disks, write: Callable[[Path], object]) -> None:
    with fails(errno.EROFS):
        write(disks.at / "by_version_uid" / disks.versions["mixed"].uid)


def test_access_reports_that_nothing_can_be_written(disks: Disks) -> None:
    assert os.access(disks.data("mixed"), os.R_OK)
    assert not os.access(disks.data("mixed"), os.W_OK)


# Damage.


def test_damaged_blobs_are_errors_only_for_their_blocks(mounted: Mounted, tmp_path: Path) -> None:
    image = random_image(tmp_path / "image", 40 * BLOCK)
    config_file = make_repository(tmp_path / "repository")
    damages: dict[int, Callable[[Path], None]] = {3: flip_a_byte, 17: truncate, 30: os.unlink}
    with opened(config_file) as repository:
        version = back_up(repository, image).version
        blobs = {index: blob_of(repository, version, index) for index in damages}
        for index, damage in damages.items():
            damage(file_of(repository, blobs[index]))
    at = mounted(config_file)
    pid = process_of(at)
    content = image.read_bytes()
    with (at / "by_version_uid" / version.uid / "data").open("rb", buffering=0) as file:
        for _ in range(2):
            for index in range(40):
                if index in damages:
                    with fails(errno.EIO):
                        os.pread(file.fileno(), 1, index * BLOCK + 99)
                else:
                    read = os.pread(file.fileno(), BLOCK, index * BLOCK)
                    assert read == content[index * BLOCK : (index + 1) * BLOCK]
    assert process_of(at) == pid
    log = config_file.with_name("backyfs.log").read_text()
    for index, blob in blobs.items():
        assert re.search(rf"ERROR version {version.uid}, block {index}: blob {blob.uid} ", log)


def test_a_copy_of_a_damaged_image_stops_with_an_error(mounted: Mounted, tmp_path: Path) -> None:
    config_file = make_repository(tmp_path / "repository")
    with opened(config_file) as repository:
        version = back_up(repository, random_image(tmp_path / "image", 100 * BLOCK)).version
        flip_a_byte(file_of(repository, blob_of(repository, version, 50)))
    data = mounted(config_file) / "by_name" / "disk" / "latest" / "data"
    done = subprocess.run(
        ["cp", str(data), str(tmp_path / "copy")], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}
    )
    assert done.returncode == 1
    assert "Input/output error" in done.stderr


def test_a_block_marked_plain_without_a_fingerprint_is_an_error(
    mounted: Mounted, tmp_path: Path
) -> None:
    config_file = make_repository(tmp_path / "repository")
    with opened(config_file) as repository:
        version = back_up(repository, random_image(tmp_path / "image", 3 * BLOCK)).version
        blob = blob_of(repository, version, 1)
        file_of(repository, blob).write_bytes(b"E" * blob.size)
        forged = {"encryption_version": 0, "fingerprint": None, "wrapped_key": None}
        with repository.database.write() as connection:
            connection.execute(update(blobs).where(blobs.c.id == blob.id).values(forged))
    data = mounted(config_file) / "by_version_uid" / version.uid / "data"
    with data.open("rb", buffering=0) as file:
        with fails(errno.EIO):
            os.pread(file.fileno(), 1, BLOCK)
        assert os.pread(file.fileno(), BLOCK, 0) == random_bytes(3 * BLOCK)[:BLOCK]


def test_blocks_never_backed_up_are_an_error_and_not_zeros(mounted: Mounted, tmp_path: Path) -> None:
    image = sparse_image(tmp_path / "image", 10 * BLOCK, {0: random_bytes(4 * BLOCK)})
    config_file = make_repository(tmp_path / "repository")
    with opened(config_file) as repository:
        copy = incomplete_copy(repository, back_up(repository, image).version, absent=[2, 8])
    directory = mounted(config_file) / "by_version_uid" / copy.uid
    assert (directory / "invalid").read_text() == "incomplete\n"
    with (directory / "data").open("rb", buffering=0) as file:
        for index in (2, 8):
            with fails(errno.EIO):
                os.pread(file.fileno(), 1, index * BLOCK)
        assert os.pread(file.fileno(), BLOCK, BLOCK) == image.read_bytes()[BLOCK : 2 * BLOCK]
        assert os.pread(file.fileno(), BLOCK, 9 * BLOCK) == bytes(BLOCK)


def test_a_version_opened_during_its_backup_is_complete_afterwards(mounted: Mounted, tmp_path: Path) -> None:
    image = random_image(tmp_path / "image", 20 * BLOCK)
    config_file = make_repository(tmp_path / "repository")
    with opened(config_file) as repository:
        whole = back_up(repository, image).version
        running = incomplete_copy(repository, whole, absent=range(5, 20))
        at = mounted(config_file)
        data = at / "by_version_uid" / running.uid / "data"
        with data.open("rb", buffering=0) as file, fails(errno.EIO):
            os.pread(file.fileno(), 1, 19 * BLOCK)
        finish(repository, running, whole)
    wait_until(data.with_name("valid").exists)
    assert data.read_bytes() == image.read_bytes()
