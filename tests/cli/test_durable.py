"""Exit status 0 means that the data are on the disk. A disk that caches data but then cannot write them is an error."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager, suppress

import pytest

from backyfs.cli.main import run
from backyfs.engine.restore.restore import restore
from backyfs.errors import InterruptedByUser
from backyfs.work.run import Control
from tests.support.images import random_bytes, random_image, run_tool
from tests.support.program import BACKYFS
from tests.support.repositories import back_up, make_repository, opened
from tests.unit.test_sources import loop_device
from tests.upgrade.reference import Reference

MIB = 1 << 20
SIZE = 16 * MIB
ROOM = 10 * MIB  # on the disk that gets SIZE bytes
LOST = "did not reach the disk in full: "


@pytest.fixture
def config(tmp_path):
    return make_repository(tmp_path / "repository", block_size=MIB)


@pytest.fixture
def version(repository, tmp_path):
    return back_up(repository, random_image(tmp_path / "image", SIZE)).version


@pytest.fixture
def small(tmp_path):
    """Make a directory with too little room for the sparse files that tests make there."""
    place = tmp_path / "small"
    place.mkdir()
    run_tool("mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place))
    yield place
    run_tool("umount", "--lazy", str(place))  # the kernel releases a loop device on it a moment later


@contextmanager
def file_system(disk, place):
    """Mount a file system that has less room than it believes, as on a thin volume."""
    if not disk.exists():
        with disk.open("wb") as file:
            file.truncate(256 * MIB)
        run_tool("mkfs.ext4", "-q", "-O", "^has_journal", str(disk))
    place.mkdir(exist_ok=True)
    run_tool("mount", "-o", "loop", str(disk), str(place))
    try:
        yield place
    finally:
        run_tool("umount", str(place))


@pytest.fixture
def thin(tmp_path, small):
    with file_system(small / "disk", tmp_path / "thin") as place:
        yield place


@pytest.mark.parametrize(
    ("options", "old_bytes"),
    [
        ("", None),
        ("--verify", None),
        ("--verify --no-sync", None),  # data read back must be on the disk
        ("--force", MIB),
        ("--differential", SIZE),
        ("--continue-from=0", 0),
        ("--offset=0", None),
        (f"--force --offset=4096 --length={SIZE - 4096}", SIZE),
    ],
)
def test_a_file_that_does_not_reach_the_disk_is_an_error(call, version, thin, options, old_bytes):
    out = thin / "out"
    if old_bytes is not None:
        with out.open("wb") as file:
            file.truncate(old_bytes)
    status, _, err = call("restore", *options.split(), version.uid, out)
    assert status == 8
    assert err.startswith(f"backyfs: error: {out} {LOST}")
    assert "then restore it again with --force, or to another disk" in err


def test_a_device_that_does_not_keep_everything_is_an_error(call, version, small):
    with (small / "disk").open("wb") as file:
        file.truncate(SIZE)
    with loop_device(small / "disk") as device:
        status, _, err = call("restore", "--force", version.uid, device)
    assert (status, f"{device} {LOST}" in err) == (8, True)


def test_a_stdout_that_does_not_reach_the_disk_is_an_error(config, version, thin):
    with (thin / "out").open("wb") as file:
        done = subprocess.run(
            [BACKYFS, "-c", config, "restore", version.uid, "-"],
            stdout=file, stderr=subprocess.PIPE, check=False, text=True,
        )  # fmt: skip
    assert (done.returncode, f"the standard output {LOST}" in done.stderr) == (8, True)


def test_waiting_for_the_disk_is_optional(call, version, thin):
    status, out, _ = call("restore", "--no-sync", version.uid, thin / "out")
    assert (status, "restored to" in out) == (0, True)


def test_an_interrupted_restore_is_continued_only_from_data_on_the_disk(repository, tmp_path, thin):
    (tmp_path / "image").write_bytes(random_bytes(MIB) * 96)
    version = back_up(repository, tmp_path / "image").version
    out = thin / "out"

    def has_written_more_than_fits():
        return out.exists() and out.stat().st_blocks * 512 > ROOM + MIB

    with pytest.raises(InterruptedByUser) as error:
        restore(repository, version, str(out), control=Control(stop=has_written_more_than_fits))
    assert f"the target is incomplete: {out} {LOST}" in str(error.value)
    assert "--continue-from" not in str(error.value)


def test_data_only_in_the_page_cache_do_not_count_as_equal(call, version, tmp_path, small):
    """After a failed write, the kernel keeps the bytes and calls them clean."""
    with file_system(small / "disk", tmp_path / "thin") as thin:
        assert call("restore", version.uid, thin / "out")[0] == 8
        run_tool("mount", "-o", f"remount,size={4 * ROOM}", str(small))
        status, _, err = call("restore", "--differential", version.uid, thin / "out")
        if status != 0:  # the file system has gone read-only, or still reports the first error
            assert status == 8, err
            return
    with file_system(small / "disk", tmp_path / "thin") as thin:
        assert (thin / "out").read_bytes() == random_bytes(SIZE)


# Files that commands create


@pytest.fixture
def synced(monkeypatch):
    """Collect the device and inode of everything that is synced."""
    inodes = set()
    fsync = os.fsync

    def record(fd):
        fsync(fd)
        inodes.add(os.fstat(fd)[1:3])

    monkeypatch.setattr(os, "fsync", record)
    return inodes


def names_in(directory):
    """Return all paths except logs and objects in a storage, which syncs its whole file system."""
    return {path for path in directory.rglob("*") if path.suffix != ".log" and "data" not in path.parent.parts}


def expect_durable(made, synced):
    assert made
    for path in made:
        # SQLite syncs its own files, and a reserve contains nothing.
        if path.is_file() and not path.name.endswith((".sqlite", "-wal", "-shm", "-reserve")):
            assert path.stat()[1:3] in synced, f"{path} was not synced"
        assert path.parent.stat()[1:3] in synced, f"the name of {path} was not synced"


@pytest.mark.parametrize(
    "words",
    [
        "init -c {}/new/etc/new.cfg --data {}/new/data --db {}/new/db/new.sqlite",
        "recover {}/repository/data --to {}/recovered.sqlite --key-file {}/repository/backyfs.key",
        "export disk@latest {}/exported",
        "key export {}/page",
        "--metrics-file {}/metrics ls",
        "db copy sqlite:///{}/repository/backyfs.sqlite sqlite:///{}/copy.sqlite",
        "restore disk@latest {}/out",
        "restore --offset 1M --length 1M disk@latest {}/out",
    ],
)
def test_every_file_a_command_creates_is_durable_with_its_name(call, version, tmp_path, synced, words):
    before = names_in(tmp_path)
    synced.clear()
    status, _, err = call(*words.replace("{}", str(tmp_path)).split())
    assert status == 0, err
    expect_durable(names_in(tmp_path) - before, synced)


def test_the_copy_an_upgrade_makes_is_durable(call, tmp_path, synced):
    reference = Reference("v1-sqlite", tmp_path)
    assert call("-c", reference.config_file, "upgrade")[0] == 0
    copies = set(reference.directory.glob("*.before-upgrade-*"))
    expect_durable(copies, synced)


def test_files_for_backy2_are_durable(capsys, tmp_path, synced):
    config = make_repository(tmp_path / "repository", encrypted=False)
    with opened(config) as repository:
        back_up(repository, random_image(tmp_path / "image", MIB))
    synced.clear()
    assert run(["-c", str(config), "export", "--all", "--format", "backy2", str(tmp_path / "exported")]) == 0
    assert capsys.readouterr().err == ""
    made = {tmp_path / "exported", *(tmp_path / "exported").iterdir()}
    assert len(made) == 2
    expect_durable(made, synced)


@pytest.mark.parametrize(
    ("words", "status"),
    [("export disk@latest -", 8), ("export disk@latest {}", 1), ("key export {}", 1), ("key print", 8)],
)
def test_an_export_that_does_not_reach_the_disk_is_an_error(config, version, small, thin, words, status):
    with suppress(OSError), (small / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    with (thin / "out").open("wb") as file:
        done = subprocess.run(
            [BACKYFS, "-c", config, *words.format(thin / "other").split()],
            stdout=file, stderr=subprocess.PIPE, check=False, text=True,
        )  # fmt: skip
    assert done.returncode == status
    assert "cannot be written" in done.stderr
    assert not (thin / "other").exists()
