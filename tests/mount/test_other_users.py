"""Other users of the host, and what they fake to trick root when it detaches, unmounts or attaches. Needs root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backyfs.errors import MountError
from backyfs.host.answers import State, ask
from backyfs.host.loops import find_loop
from backyfs.host.mounttable import mount_at
from backyfs.host.records import list_attachments, load, noted_devices
from backyfs.host.stack import tear_down
from backyfs.host.writers import writers_of
from backyfs.metadata.records.versions import list_versions
from tests.support.attaching import MIB, cleared, empty_image, repository_of
from tests.support.images import ext4_image
from tests.support.program import BACKYFS, PATIENCE_S, backyfs, clear, mounting
from tests.support.repositories import opened
from tests.support.spoofing import answering_mount, silent_mount
from tests.support.users import USER

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("loop_devices")

MOUNT_ERROR = 10
LOAD = "import sys; from backyfs.host.records import load; print(load(sys.argv[1]))"


@pytest.fixture(scope="module")
def config(loop_devices: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the configuration of a repository with one version, a backup of a file system."""
    home = tmp_path_factory.mktemp("others")
    (home / "files").mkdir()
    (home / "files" / "hello").write_text("good morning\n")
    with cleared(home):
        yield repository_of(home, {"disk": ext4_image(home / "image", home / "files", 8 * MIB)})


@pytest.fixture
def place(config: Path) -> Iterator[Path]:
    """Make a directory of root that other users can reach."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        path = Path(directory)
        path.chmod(0o755)
        with cleared(path), cleared(config.parent.parent):
            yield path


def give(path: Path, user: int = USER) -> Path:
    """Give a directory and everything in it to a user."""
    for each in (path, *path.rglob("*")):
        os.chown(each, user, user, follow_symlinks=False)
    return path


def fake(directory: Path) -> Path:
    """Make a directory look as if something were attached in it."""
    (directory / ".backyfs").mkdir(parents=True)
    (directory / "devices").mkdir()
    (directory / "devices" / "1").symlink_to("/dev/loop77")
    record = {
        "version_uid": "0" * 36, "mountpoint": f"{directory}/.backyfs/mount", "made": [str(directory)],
        "is_complete": True,
    }  # fmt: skip
    (directory / ".backyfs" / "record.json").write_text(json.dumps(record))
    return directory


def everything_in(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*"))


@contextmanager
def tmpfs(path: Path) -> Iterator[Path]:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(path)], check=True)
    try:
        yield path
    finally:
        clear(path)


# detach


@pytest.mark.parametrize("named", [["loop0", "1"], ["backyfs", ".backyfs/mount"]])
def test_an_attachment_faked_by_another_user_is_ignored(place: Path, named: list[str]) -> None:
    source, mountpoint = named
    theirs = fake(place / "theirs")
    (theirs / mountpoint).mkdir()
    with silent_mount(USER, give(theirs) / mountpoint, source=source):
        assert str(theirs) not in list_attachments()


def test_an_attachment_of_root_is_found_beside_a_faked_one(place: Path, config: Path) -> None:
    assert backyfs("-c", config, "attach", "disk@latest", place / "ours").returncode == 0
    theirs = fake(place / "theirs")
    (theirs / "1").mkdir()
    with silent_mount(USER, give(theirs) / "1", source="loop0"):
        found = list_attachments()
    assert str(place / "ours") in found
    assert str(theirs) not in found
    assert backyfs("detach", place / "ours").returncode == 0


def test_the_directory_of_another_user_is_not_detached(place: Path) -> None:
    theirs = give(fake(place / "theirs"))
    before = everything_in(place)
    done = backyfs("detach", theirs)
    assert done.returncode == MOUNT_ERROR
    assert f"{theirs} belongs to user {USER}, so others could read or replace the content of {theirs}" in done.stderr
    assert everything_in(place) == before


def test_a_directory_below_one_that_others_can_write_is_not_detached(place: Path) -> None:
    above = place / "above"
    ours = fake(above / "ours")
    above.chmod(0o777)
    before = everything_in(place)
    done = backyfs("detach", ours)
    assert done.returncode == MOUNT_ERROR
    assert f"{above} can be changed by every user" in done.stderr
    assert f"run `chmod go-w {above}`" in done.stderr
    assert everything_in(place) == before


def test_a_directory_whose_record_belongs_to_another_user_is_not_detached(place: Path) -> None:
    ours = fake(place / "ours")
    os.chown(ours / ".backyfs" / "record.json", USER, USER)
    assert load(str(ours)) is None


def test_a_directory_of_root_below_a_sticky_directory_is_detached(place: Path) -> None:
    above = place / "above"
    ours = fake(above / "ours")
    above.chmod(0o1777)
    assert backyfs("detach", ours).returncode == 0
    assert not ours.exists()


@pytest.mark.parametrize("kind", ["fifo", "zeros", "long", "nested", "directory"])
def test_a_record_of_any_kind_is_read_without_waiting(place: Path, kind: str) -> None:
    ours = fake(place / "ours")
    record = ours / ".backyfs" / "record.json"
    text = record.read_text()
    record.unlink()
    match kind:
        case "fifo":
            os.mkfifo(record)
        case "zeros":
            record.symlink_to("/dev/zero")
        case "long":
            with record.open("w") as file:
                file.write(text)
                file.truncate(1 << 40)
        case "nested":
            record.write_text("[" * 60_000)
        case "directory":
            record.mkdir()
    # In a separate process, because opening a FIFO or reading endless zeros would never end.
    done = subprocess.run(
        ["sh", "-c", 'ulimit -v 4000000; exec "$@"', "sh", sys.executable, "-c", LOAD, str(ours)],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_a_link_in_place_of_a_device_is_not_followed(place: Path) -> None:
    ours = fake(place / "ours")
    (ours / "devices").rename(place / "elsewhere")
    (ours / "devices").symlink_to(place / "elsewhere")
    assert noted_devices(str(ours)) == {}
    backyfs("detach", ours)
    assert (place / "elsewhere" / "1").is_symlink()


# Unmounting.


def test_a_part_of_the_path_that_became_a_link_is_not_followed(place: Path) -> None:
    with tmpfs(place / "way" / "mount"), tmpfs(place / "elsewhere" / "mount") as victim:
        mount = mount_at(str(place / "way" / "mount"))
        assert mount is not None
        (place / "way").rename(place / "moved")
        (place / "way").symlink_to(place / "elsewhere")
        try:
            with pytest.raises(MountError):
                tear_down(mount)
            assert victim.is_mount()
        finally:
            clear(place / "moved" / "mount")


def test_another_mount_in_the_same_place_is_not_unmounted(place: Path) -> None:
    with tmpfs(place / "mount") as at:
        mount = mount_at(str(at))
        assert mount is not None
        with pytest.raises(MountError) as caught:
            tear_down(replace(mount, mount_id=mount.mount_id + 100_000))
        assert str(caught.value) == f"{at} is now something else; look at it, then run this again"
        assert at.is_mount()


def test_umount_does_not_wait_for_a_process_named_by_another_user(place: Path) -> None:
    at = place / "mount"
    at.mkdir()
    with subprocess.Popen(["sleep", "1000"], user=USER, group=USER) as sleeper:
        try:
            pid = {"user.backyfs.pid": str(sleeper.pid), "user.backyfs.repository": "x"}
            with answering_mount(USER, at, directories=[], attributes=pid):
                done = backyfs("umount", at)
                assert (done.returncode, done.stderr) == (0, "")
                assert not at.is_mount()
            assert sleeper.poll() is None
        finally:
            sleeper.kill()


@pytest.mark.parametrize("pid", ["9" * 5000, "-1", "0", "99999999999", "1 x 1", ""])
def test_an_impossible_process_id_is_ignored(place: Path, pid: str) -> None:
    (place / "mount").mkdir()
    with answering_mount(USER, place / "mount", directories=[], attributes={"user.backyfs.pid": pid}):
        done = backyfs("umount", place / "mount")
        assert (done.returncode, done.stderr) == (0, "")


def test_the_mount_of_another_user_is_not_cleared_for_a_new_one(place: Path, config: Path) -> None:
    (place / "mount").mkdir()
    with answering_mount(USER, place / "mount", directories=[], attributes={}) as process:
        process.kill()
        process.wait()
        assert ask(str(place / "mount")).state is State.DEAD
        done = backyfs("-c", config, "mount", place / "mount")
        assert done.returncode == MOUNT_ERROR
        assert f"{place}/mount is already mounted by user {USER}" in done.stderr


@pytest.mark.parametrize("options", [(), ("-o", "allow_other")])
def test_other_users_cannot_read_the_images_of_a_mount(place: Path, config: Path, options: tuple[str, ...]) -> None:
    with mounting(config, place / "mount", *options) as at:
        (image,) = at.glob("by_version_uid/*/data")
        done = subprocess.run(
            ["cat", str(image)], user=USER, group=USER, extra_groups=[], capture_output=True, check=False
        )
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"Permission denied" in done.stderr


def test_root_is_warned_of_a_mountpoint_that_others_can_move(place: Path, config: Path) -> None:
    theirs = give_new(place / "theirs")
    (theirs / "mount").mkdir()
    done = backyfs("-c", config, "mount", theirs / "mount")
    assert done.returncode == 0
    assert f"{theirs} belongs to user {USER}: others can move {theirs}/mount while it is mounted" in done.stderr
    assert backyfs("umount", theirs / "mount").returncode == 0


def test_a_carriage_return_in_any_mountpoint_does_not_matter(place: Path) -> None:
    # In a separate mount namespace, so other tests do not see it.
    script = 'mount -t tmpfs none "$2" && exec "$1" umount "$3"'
    odd, other = place / "a\rb\x0bc\x1cd\x85e\u2028f", place / "other"
    odd.mkdir()
    other.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", BACKYFS, str(odd), str(other)],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == MOUNT_ERROR
    assert f"nothing of backyfs is mounted on {other}" in done.stderr


def test_the_file_of_a_loop_device_keeps_its_odd_name(place: Path) -> None:
    image = empty_image(place / "a\rb\u2028c", MIB)
    done = subprocess.run(["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True)
    loop = find_loop(done.stdout.strip())
    subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)
    assert loop is not None
    assert loop.backing_file == str(image)


# attach


def spoofed(config: Path) -> tuple[list[str], dict[str, str]]:
    """Return the directories and attributes of a mount that claims to show a version of a repository."""
    with opened(config) as repository, repository.database.read() as connection:
        uid = list_versions(connection)[0].uid
        attributes = {"user.backyfs.pid": "1", "user.backyfs.repository": str(repository.uid)}
    below = f"by_version_uid/{uid}"
    return ["by_version_uid", below, f"{below}/partitions"], attributes


def test_the_mount_of_another_user_is_not_used(place: Path, config: Path) -> None:
    (place / "spoof").mkdir()
    directories, attributes = spoofed(config)
    with answering_mount(USER, place / "spoof", directories=directories, attributes=attributes):
        done = backyfs("-c", config, "--json", "attach", "disk@latest", place / "ours")
        assert (done.returncode, done.stderr) == (0, "")
        (row,) = json.loads(done.stdout)
        assert row["image"].startswith(f"{place}/ours/.backyfs/mount/")
        assert (place / "ours" / "data" / "hello").read_text() == "good morning\n"
        assert backyfs("detach", place / "ours").returncode == 0


def test_a_mount_of_root_below_a_directory_of_another_user_is_not_used(place: Path, config: Path) -> None:
    theirs = place / "theirs"
    theirs.mkdir()
    with mounting(config, theirs / "mount"):
        os.chown(theirs, USER, USER)
        done = backyfs("-c", config, "--json", "attach", "disk@latest", place / "ours")
        assert done.returncode == 0
        (row,) = json.loads(done.stdout)
        assert row["image"].startswith(f"{place}/ours/.backyfs/mount/")
        assert backyfs("detach", place / "ours").returncode == 0


def theirs(place: Path) -> tuple[Path, str]:
    return give_new(place / "theirs"), "belongs to user"


def give_new(path: Path) -> Path:
    path.mkdir()
    return give(path)


def open_to_all(place: Path) -> tuple[Path, str]:
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    return place / "open", "can be changed by every user"


def open_like_tmp(place: Path) -> tuple[Path, str]:
    (place / "open").mkdir()
    (place / "open").chmod(0o1777)
    return place / "open", "can be changed by every user"


def open_to_a_group(place: Path) -> tuple[Path, str]:
    (place / "open").mkdir()
    os.chown(place / "open", 0, USER)
    (place / "open").chmod(0o770)
    return place / "open", f"can be changed by the members of group {USER}"


def below_theirs(place: Path) -> tuple[Path, str]:
    (give_new(place / "theirs") / "ours").mkdir()
    return place / "theirs" / "ours", "belongs to user"


def new_below_theirs(place: Path) -> tuple[Path, str]:
    return give_new(place / "theirs") / "new" / "newer", "belongs to user"


@pytest.mark.parametrize(
    "unsafe", [theirs, open_to_all, open_like_tmp, open_to_a_group, below_theirs, new_below_theirs]
)
def test_nothing_is_attached_where_others_could_change_it(place: Path, config: Path, unsafe) -> None:
    directory, fact = unsafe(place)
    before = everything_in(place)
    done = backyfs("-c", config, "attach", "disk@latest", directory)
    assert done.returncode == MOUNT_ERROR
    assert fact in done.stderr
    assert "name a directory that only root can change" in done.stderr
    assert everything_in(place) == before


def test_the_claims_of_a_mount_of_another_user_are_not_trusted(place: Path, config: Path) -> None:
    spoof = place / "spoof"
    spoof.mkdir()
    with answering_mount(USER, spoof, directories=["empty"], attributes={}):
        assert (spoof / "empty").stat().st_uid == 0
        assert [str(each) for each in writers_of(str(spoof / "empty"), (0,))] == [f"{spoof} is a mount of user {USER}"]
        done = backyfs("-c", config, "attach", "disk@latest", spoof / "empty")
        assert done.returncode == MOUNT_ERROR
        assert f"{spoof} is a mount of user {USER}, so others could" in done.stderr


def test_the_claims_of_a_mount_of_root_are_trusted(place: Path) -> None:
    (place / "mount").mkdir()
    with answering_mount(0, place / "mount", directories=["empty"], attributes={}):
        assert writers_of(str(place / "mount" / "empty"), (0,)) == []


def test_a_directory_readable_by_others_is_a_warning(place: Path, config: Path) -> None:
    (place / "ours").mkdir(mode=0o755)
    done = backyfs("-c", config, "attach", "disk@latest", place / "ours")
    assert done.returncode == 0
    assert f"others can look into {place}/ours" in done.stderr
    assert backyfs("detach", place / "ours").returncode == 0


def test_a_new_directory_in_a_sticky_one_like_tmp_is_accepted(place: Path, config: Path) -> None:
    (place / "open").mkdir()
    (place / "open").chmod(0o1777)
    done = backyfs("-c", config, "-m", "attach", "disk@latest", place / "open" / "ours")
    assert (done.returncode, done.stderr) == (0, "")
    assert backyfs("detach", place / "open" / "ours").returncode == 0
