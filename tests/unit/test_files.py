"""Files that the program creates: their owner, their mode, and that they are complete or absent."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backyfs.files import (
    DeviceDirectoryError,
    create_file,
    make_directories,
    make_directory,
    new_file,
    open_file,
    read_input,
    replace_file,
    require_no_device_directory,
    sync_directory,
)
from tests.support.users import USER


@pytest.fixture
def user_directory():
    """Make a directory owned by a user, which the user can reach."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        os.chown(name, USER, USER + 1)
        yield Path(name)


def owner(path):
    about = os.lstat(path)
    return about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)


def identity_of_thread():
    lines = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text().splitlines()
    return [line.split()[4] for line in lines if line.startswith(("Uid:", "Gid:"))]  # the ids for file access, proc(5)


def test_files_created_by_root_in_a_users_directory_belong_to_the_user(user_directory):
    os.close(create_file(str(user_directory / "new")))
    os.close(open_file(str(user_directory / "log"), os.O_WRONLY | os.O_APPEND))
    make_directories(str(user_directory / "a" / "b"))
    os.close(create_file(str(user_directory / "a" / "b" / "c")))
    with new_file(str(user_directory / "whole")) as file:
        file.write(b"x")
    replace_file(str(user_directory / "metrics"), b"x", 0o644)
    assert {path.name: owner(path) for path in user_directory.rglob("*")} == {
        "new": (USER, USER + 1, 0o600),
        "log": (USER, USER + 1, 0o600),
        "a": (USER, USER + 1, 0o700),
        "b": (USER, USER + 1, 0o700),
        "c": (USER, USER + 1, 0o600),
        "whole": (USER, USER + 1, 0o600),
        "metrics": (USER, USER + 1, 0o644),
    }


def test_files_created_by_root_elsewhere_belong_to_root(tmp_path):
    os.close(create_file(str(tmp_path / "new")))
    make_directory(str(tmp_path / "directory"))
    assert owner(tmp_path / "new") == (0, 0, 0o600)
    assert owner(tmp_path / "directory") == (0, 0, 0o700)


def test_a_path_relative_to_an_open_directory_is_created_there(user_directory):
    fd = os.open(user_directory, os.O_RDONLY)
    try:
        os.close(create_file("new", os.O_RDWR, dir_fd=fd))
        os.close(open_file("lock", os.O_RDWR, dir_fd=fd))
        os.close(open_file("lock", os.O_RDWR, dir_fd=fd))
    finally:
        os.close(fd)
    assert owner(user_directory / "new") == owner(user_directory / "lock") == (USER, USER + 1, 0o600)


def test_an_existing_file_keeps_its_owner(user_directory):
    path = user_directory / "log"
    path.touch(0o640)
    os.close(open_file(str(path), os.O_WRONLY | os.O_APPEND))
    assert owner(path) == (0, 0, 0o640)
    with pytest.raises(FileExistsError):
        create_file(str(path))


def test_a_link_in_place_of_a_new_file_is_not_followed(user_directory, tmp_path):
    (user_directory / "new").symlink_to(tmp_path / "of-root")
    (user_directory / "directory").symlink_to(tmp_path / "of-root")
    with pytest.raises(FileExistsError):
        create_file(str(user_directory / "new"))
    with pytest.raises(FileExistsError):
        make_directory(str(user_directory / "directory"))
    assert not (tmp_path / "of-root").exists()


def test_a_dangling_link_names_the_file_to_open(user_directory, tmp_path):
    (tmp_path / "log").symlink_to(user_directory / "real")
    os.close(open_file(str(tmp_path / "log"), os.O_WRONLY))
    assert owner(user_directory / "real") == (USER, USER + 1, 0o600)


def test_the_directory_of_the_new_file_decides_the_owner_and_not_that_of_a_link(user_directory, tmp_path):
    (user_directory / "shelf").symlink_to(tmp_path)
    os.close(create_file(str(user_directory / "shelf" / "new")))
    assert owner(tmp_path / "new") == (0, 0, 0o600)


def test_in_a_directory_that_its_owner_cannot_write_files_belong_to_root(user_directory):
    user_directory.chmod(0o500)
    os.close(create_file(str(user_directory / "new")))
    make_directory(str(user_directory / "directory"))
    assert owner(user_directory / "new") == (0, 0, 0o600)
    assert owner(user_directory / "directory") == (0, 0, 0o700)


def test_threads_do_not_get_each_others_identity(user_directory, tmp_path):
    directories = [user_directory, tmp_path] * 4

    def make(number):
        directory = directories[number % len(directories)]
        os.close(create_file(str(directory / f"file-{number}")))
        return identity_of_thread()

    with ThreadPoolExecutor(8) as threads:
        identities = list(threads.map(make, range(800)))
    assert identities == [["0", "0"]] * 800
    assert {owner(path)[0] for path in user_directory.iterdir()} == {USER}
    assert {owner(path)[0] for path in tmp_path.iterdir()} == {0}


def test_an_error_names_the_whole_path(user_directory, tmp_path):
    for directory in (user_directory, tmp_path):
        path = str(directory / "new")
        os.close(create_file(path))
        with pytest.raises(FileExistsError) as error:
            create_file(path)
        assert error.value.filename == path


def test_an_error_restores_the_identity_of_the_thread(user_directory):
    with pytest.raises(FileNotFoundError):
        create_file(str(user_directory / "missing" / "new"))
    os.close(create_file(str(user_directory / "new")))
    with pytest.raises(FileExistsError):
        create_file(str(user_directory / "new"))
    assert identity_of_thread() == ["0", "0"]


def test_a_partly_written_file_does_not_appear(tmp_path):
    def write_half():
        with new_file(str(tmp_path / "new")) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_a_file_created_by_others_in_the_meantime_is_not_replaced(tmp_path):
    def write_late():
        with new_file(str(tmp_path / "new")) as file:
            file.write(b"ours")
            (tmp_path / "new").write_bytes(b"theirs")

    with pytest.raises(FileExistsError):
        write_late()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("new", b"theirs")]


@pytest.mark.parametrize("path", ["/dev/typo", "/dev/mapper/typo", "/dev/pts/typo", "/dev/shm/../typo", "/dev/no/typo"])
def test_a_file_among_the_devices_is_refused(path):
    with pytest.raises(DeviceDirectoryError, match="there is no such device, and a regular file in its place"):
        require_no_device_directory(path)


@pytest.mark.parametrize("path", ["/dev/shm/file", "/device/file", "/dev/fd/9/file", "dev/file", "/tmp/dev/file"])
def test_a_file_outside_the_devices_is_accepted(path):
    require_no_device_directory(path)


def test_an_unreadable_directory_is_skipped(user_directory, tmp_path):
    sync_directory(str(user_directory))
    user_directory.chmod(0o300)
    os.seteuid(USER)
    try:
        sync_directory(str(user_directory))
    finally:
        os.seteuid(0)
    with pytest.raises(FileNotFoundError):
        sync_directory(str(tmp_path / "missing"))


def test_an_input_may_have_the_allowed_number_of_bytes_but_no_more(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(bytes(100))
    assert read_input(str(tmp_path / "input"), 100) == bytes(100)
    with pytest.raises(OSError, match="it has more than 99 bytes"):
        read_input(str(tmp_path / "input"), 99)
    with pytest.raises(OSError, match="it has more than 5000000 bytes"):
        read_input("/dev/zero", 5_000_000)
