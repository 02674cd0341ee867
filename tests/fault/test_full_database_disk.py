"""Not a byte free on the file system of the database: reading works, and removing makes room."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from backyfs.engine.versions.remove import remove_versions
from backyfs.errors import DatabaseError, DatabaseFullError, VersionNotFoundError
from backyfs.metadata.db.database import Database
from backyfs.metadata.maps.blockmap import HOLE, page_entries
from backyfs.metadata.records.versions import create_version, find_version, list_versions
from backyfs.model import PageNumber
from backyfs.work.job import Job
from tests.support.images import random_image
from tests.support.jobs import spec
from tests.support.program import BACKYFS, PATIENCE_S, backyfs, mounting, why_not_mount
from tests.support.repositories import back_up, make_repository, opened
from tests.support.services.database import ACCOUNT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.repository import Repository
    from tests.support.services.postgresql import PostgresqlServer

KINDS = {
    "tmpfs": 16,
    "ext4": 32,
    "xfs": 320,  # the smallest that mkfs.xfs makes
    "btrfs": 128,
}  # MiB
IMAGE_BYTES = 3 << 20


@contextmanager
def mounted(kind: str, directory: Path) -> Iterator[Path]:
    """Mount a new file system of this kind."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    place = directory / "disk"
    place.mkdir()
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={KINDS[kind]}m", "tmpfs", place], check=True)
    else:
        image = directory / "file-system"
        with image.open("wb") as file:
            file.truncate(KINDS[kind] << 20)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with mounted(request.param, tmp_path) as place:
        yield place


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted("tmpfs", tmp_path) as place:
        yield place


def fill(disk: Path) -> None:
    """Write until there is not a byte left."""
    with (disk / "ballast").open("ab", buffering=0) as ballast:
        for size in (1 << 20, 4096, 1):
            try:
                while ballast.write(b"\xff" * size):
                    os.fsync(ballast.fileno())
            except OSError:
                continue


def take_inodes(disk: Path) -> None:
    for number in range(1000):
        (disk / str(number)).touch()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return random_image(tmp_path / "image", IMAGE_BYTES, 1)


def new_repository(place: Path, image: Path) -> Path:
    """Make a repository with a backup, whose log is there too."""
    config_file = make_repository(place, block_size=64 << 10)
    with opened(config_file) as repository:
        back_up(repository, image, "vm")
    return config_file


def run(config: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return backyfs("-c", config, "--no-progress", *words)


def listed(config: Path) -> list[str]:
    done = run(config, "--json", "ls")
    assert done.returncode == 0, done.stderr
    return [row["name"] for row in json.loads(done.stdout)]


def test_everything_that_reads_works_and_what_removes_makes_room(disk: Path, image: Path, tmp_path: Path) -> None:
    config = new_repository(disk, image)
    fill(disk)
    assert listed(config) == ["vm"]
    target = tmp_path / "restored"
    restored = run(config, "restore", "vm@latest", target)
    assert restored.returncode == 0, restored.stderr
    assert target.read_bytes() == image.read_bytes()
    assert "other commands do not see this one" in restored.stderr
    backup = run(config, "backup", image, "other")
    assert (backup.returncode, "backyfs.sqlite is full" in backup.stderr) == (1, True), backup.stderr
    removed = run(config, "rm", "--force", "vm@latest")
    assert removed.returncode == 0, removed.stderr
    assert "deleting the reserve" in removed.stderr
    cleaned = run(config, "cleanup", "--dangerous-force")
    assert cleaned.returncode == 0, cleaned.stderr
    again = run(config, "backup", random_image(tmp_path / "smaller", IMAGE_BYTES // 4, 2), "vm")
    assert again.returncode == 0, again.stderr
    for done in (restored, backup, removed, cleaned, again):
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "status"),
    [("ls", 0), ("jobs", 0), ("stats", 0), ("du vm@latest", 0), ("diff-meta vm@latest vm@latest", 0), ("key list", 0),
     ("cleanup --full", 0), ("scrub vm@latest", 1), ("protect vm@latest", 1)],
)  # fmt: skip
def test_no_command_prints_a_traceback(command: str, status: int, small_disk: Path, image: Path) -> None:
    config = new_repository(small_disk, image)
    fill(small_disk)
    done = run(config, *command.split())
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


def test_a_mount_works(small_disk: Path, image: Path, tmp_path: Path) -> None:
    reason = why_not_mount()
    if reason is not None:
        pytest.skip(reason)
    config = new_repository(small_disk, image)
    fill(small_disk)
    with mounting(config, tmp_path / "mounted") as mountpoint:
        data = mountpoint / "by_name" / "vm" / "latest" / "data"
        assert data.read_bytes() == image.read_bytes()
        # While it is mounted, others make room, and it sees what they do.
        assert run(config, "rm", "--force", "vm@latest").returncode == 0
        assert run(config, "cleanup", "--dangerous-force").returncode == 0
        smaller = random_image(tmp_path / "smaller", IMAGE_BYTES // 4, 2)
        assert run(config, "backup", smaller, "new").returncode == 0
        end = time.monotonic() + PATIENCE_S
        latest = mountpoint / "by_name" / "new" / "latest"  # what is shown may be as old as the unfinished backup
        while not latest.is_dir():
            assert time.monotonic() < end, "the new version did not appear"
        assert (latest / "data").read_bytes() == smaller.read_bytes()


def test_what_a_killed_command_left_in_the_log_is_read(small_disk: Path, image: Path) -> None:
    config = new_repository(small_disk, image)
    renaming = (
        "import os, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute(\"UPDATE versions SET name = 'renamed'\")\n"
        "os.kill(os.getpid(), 9)\n"
    )
    file = small_disk / "backyfs.sqlite"
    killed = subprocess.run([sys.executable, "-c", renaming, file], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert file.with_name("backyfs.sqlite-wal").stat().st_size
    file.with_name("backyfs.sqlite-shm").unlink()  # as after a reboot
    fill(small_disk)
    assert listed(config) == ["renamed"]


def test_two_readers_at_once_both_read(small_disk: Path, image: Path) -> None:
    config = new_repository(small_disk, image)
    fill(small_disk)
    readers = [
        subprocess.Popen([BACKYFS, "-c", config, "--json", "ls"], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for reader in readers:
        out, _ = reader.communicate()
        assert (reader.returncode, [row["name"] for row in json.loads(out)]) == (0, ["vm"])


def test_a_writer_that_appears_during_a_read_does_not_change_what_is_read(small_disk: Path, image: Path) -> None:
    config = new_repository(small_disk, image)
    fill(small_disk)
    with opened(config) as repository, repository.database.read() as connection:
        version = find_version(connection, "vm@latest")
        done = run(config, "rm", "--force", version.uid)
        assert done.returncode == 0, done.stderr
        assert [each.uid for each in list_versions(connection)] == [version.uid]
    with opened(config) as repository, repository.database.read() as connection:
        assert list_versions(connection) == []


def test_reading_a_version_that_was_removed_is_an_error_and_never_zeros(small_disk: Path, image: Path) -> None:
    config = new_repository(small_disk, image)
    fill(small_disk)
    with opened(config) as repository:
        with repository.database.read() as connection:
            version = find_version(connection, "vm@latest")
            assert run(config, "rm", "--force", version.uid).returncode == 0
            # This transaction still sees it. The next one of a reader that has no row in `jobs` does not.
            assert page_entries(connection, version, PageNumber(0), 48)[0] > HOLE
        with (
            repository.database.read() as connection,
            pytest.raises(VersionNotFoundError, match="was removed while it was being read"),
        ):
            page_entries(connection, version, PageNumber(0), 48)


def test_a_reserve_is_made_with_the_repository_and_made_again(small_disk: Path, image: Path) -> None:
    config = new_repository(small_disk, image)
    reserve = small_disk / "backyfs.sqlite-reserve"
    size = reserve.stat().st_size
    assert size >= 256 << 10
    assert reserve.stat().st_blocks * 512 >= size
    fill(small_disk)
    with opened(config) as repository:
        with repository.database.read() as connection:
            versions = list_versions(connection)
        remove_versions(repository, versions, now=datetime.now(UTC))
        assert not reserve.exists()
    (small_disk / "ballast").unlink()
    assert run(config, "cleanup").returncode == 0
    assert reserve.stat().st_size == size


def test_a_disk_that_is_not_full_keeps_its_reserve(small_disk: Path, image: Path) -> None:
    config = new_repository(small_disk, image)
    assert run(config, "rm", "--force", "vm@latest").stderr == ""
    assert (small_disk / "backyfs.sqlite-reserve").exists()


def test_without_a_reserve_rm_says_that_the_disk_is_full(small_disk: Path, image: Path) -> None:
    config = new_repository(small_disk, image)
    (small_disk / "backyfs.sqlite-reserve").unlink()
    fill(small_disk)
    done = run(config, "rm", "--force", "vm@latest")
    assert done.returncode == 1
    assert "is full" in done.stderr
    assert listed(config) == ["vm"]


def test_no_free_inode_is_a_full_disk_too(tmp_path: Path, image: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    place = tmp_path / "disk"
    place.mkdir()
    options = f"size={KINDS['tmpfs']}m,nr_inodes=1000"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        config = new_repository(place, image)
        with pytest.raises(OSError, match="No space left"):
            take_inodes(place)
        assert listed(config) == ["vm"]
        done = run(config, "backup", image, "other")
        assert (done.returncode, "is full" in done.stderr) == (1, True), done.stderr
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_limit_on_the_size_of_files_is_told_as_such(tmp_path: Path, image: Path) -> None:
    config = new_repository(tmp_path, image)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))

    words = [BACKYFS, "-c", str(config), "--json"]
    read = subprocess.run([*words, "ls"], capture_output=True, text=True, check=False, preexec_fn=limit)
    assert read.returncode == 0, read.stderr
    wrote = subprocess.run(
        [*words, "protect", "vm@latest"], capture_output=True, text=True, check=False, preexec_fn=limit
    )
    assert (wrote.returncode, "a quota or size limit is reached" in wrote.stderr) == (1, True), wrote.stderr


def test_a_hot_journal_on_a_read_only_file_system_is_not_ignored(small_disk: Path) -> None:
    file = small_disk / "backy.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE versions (uid)")
    file.with_name("backy.sqlite-journal").write_bytes(b"something")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(DatabaseError, match="latest changes are still in"):
        Database(f"sqlite:///{file}")


def test_a_transaction_that_writes_is_refused_with_the_reason(
    small_disk: Path, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = new_repository(small_disk, image)
    fill(small_disk)
    with opened(config) as repository:
        with pytest.raises(DatabaseFullError, match="is full"), repository.database.write():
            pass
        job = Job(repository.database, spec("restore"), only_reads=True)
        with caplog.at_level(logging.WARNING, logger="backyfs"), job:
            assert "can remove versions that it reads" in caplog.text
        # As soon as there is room the same repository can write.
        (small_disk / "ballast").unlink()
        with repository.database.write() as connection:
            assert len(list_versions(connection)) == 1


def test_a_server_without_room_is_an_error_with_its_reason(postgresql_server: PostgresqlServer) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    with TemporaryDirectory(dir="/tmp", prefix="backyfs-tests-full-") as directory:
        place = Path(directory) / "disk"  # the account of the server can enter it
        place.parent.chmod(0o755)
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], check=True)
        try:
            shutil.chown(place, *ACCOUNT)
            postgresql_server.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
            postgresql_server.execute("CREATE DATABASE small TABLESPACE small")
            try:
                write_until_the_server_is_full(Path(directory), place, postgresql_server.url("small"))
            finally:
                postgresql_server.execute(postgresql_server.drop_statement("small"))
                postgresql_server.execute("DROP TABLESPACE small")
        finally:
            subprocess.run(["umount", place], check=True)


def write_until_the_server_is_full(directory: Path, disk: Path, url: str) -> None:
    config = make_repository(directory / "repository", database=url)
    with opened(config) as repository:
        fill(disk)
        with pytest.raises(DatabaseFullError, match=r"^postgresql.*: the server's disk is full"):
            make_versions(repository)
        with repository.database.read() as connection:
            assert list_versions(connection) == []


def make_versions(repository: Repository) -> None:
    with repository.database.write() as connection:
        for number in range(1000):
            create_version(
                connection,
                name=f"{number}".zfill(2000),
                snapshot_name="",
                size_bytes=0,
                created_at=datetime.now(UTC),
            )
