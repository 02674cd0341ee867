"""Who else can change the target of a path; and tables of the kernel, with names chosen by others."""

from __future__ import annotations

import os
import pwd
import struct

import pytest

from backyfs.errors import MountError
from backyfs.host.kerneltables import read_lines, read_value
from backyfs.host.mounttable import parse
from backyfs.host.writers import require_trusted_path, trusted_directory, writers_of
from tests.support.users import USER

pytestmark = pytest.mark.root
ROOT = (0,)


@pytest.fixture
def place(tmp_path):
    """Make a directory of root, below directories of root, with a file in it."""
    place = tmp_path / "above" / "place"
    place.mkdir(parents=True)
    place.parent.chmod(0o755)
    place.chmod(0o755)
    (place / "file").touch(mode=0o644)
    return place


def facts(path, trusted=ROOT, **options):
    return [str(writer) for writer in writers_of(str(path), trusted, **options)]


def access_list(path, *entries):
    """Give a file an access control list that allows named users and groups to write: pairs of tag and number."""
    needed = [(0x01, 7, 2**32 - 1), (0x04, 5, 2**32 - 1), (0x10, 7, 2**32 - 1), (0x20, 5, 2**32 - 1)]
    named = [(tag, 7, number) for tag, number in entries]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in sorted(needed + named))
    os.setxattr(path, "system.posix_acl_access", packed)


def test_a_path_owned_by_root_has_no_other_writers(place):
    assert facts(place / "file") == []
    assert facts(place, entries=True) == []


@pytest.mark.parametrize("part", ["above", "above/place", "above/place/file"])
def test_the_owner_of_any_part_of_a_path_is_found(place, part):
    theirs = place.parents[1] / part
    os.chown(theirs, USER, USER)
    assert facts(place / "file") == [f"{theirs} belongs to user {USER}"]
    assert facts(place / "file", (0, USER)) == []


@pytest.mark.parametrize("part", ["above", "above/place", "above/place/file"])
@pytest.mark.parametrize(
    ("mode", "who"), [(0o757, "every user"), (0o775, f"the members of group {USER}")], ids=["all", "group"]
)
def test_a_mode_that_allows_others_to_write_is_found(place, part, mode, who):
    theirs = place.parents[1] / part
    os.chown(theirs, 0, USER)
    theirs.chmod(mode)
    assert facts(place / "file") == [f"{theirs} can be changed by {who}"]


def test_in_a_sticky_directory_others_can_create_files_but_not_change_them(place):
    place.chmod(0o1777)
    assert facts(place / "file") == []
    assert facts(place, entries=False) == []
    assert facts(place, entries=True) == [f"{place} can be changed by every user"]
    os.chown(place / "file", USER, USER)
    assert facts(place / "file") == [f"{place}/file belongs to user {USER}"]


def test_the_owner_of_a_sticky_directory_can_change_everything_in_it(place):
    place.chmod(0o1777)
    os.chown(place, USER, USER)
    assert facts(place / "file") == [f"{place} belongs to user {USER}"]


def test_a_group_with_only_one_user_counts_as_that_user(place):
    account = pwd.getpwnam("daemon")
    os.chown(place, account.pw_uid, account.pw_gid)
    place.chmod(0o775)
    assert facts(place / "file", (0, account.pw_uid)) == []
    assert facts(place / "file") != []


def test_a_user_in_an_access_control_list_is_found(place):
    access_list(place, (0x02, USER))
    assert facts(place / "file") == [f"{place} can be changed by user {USER}, by its access control list"]
    assert facts(place / "file", (0, USER)) == []


def test_a_group_in_an_access_control_list_is_found(place):
    access_list(place, (0x08, USER))
    assert facts(place / "file") == [f"{place} can be changed by the members of group {USER}"]


def test_a_mask_that_allows_nobody_else_to_write_is_harmless(place):
    access_list(place, (0x02, 0))
    assert facts(place / "file") == []


def test_links_are_followed_and_all_directories_on_the_way_count(place):
    theirs = place.parent / "theirs"
    theirs.mkdir()
    (theirs / "file").touch()
    (place / "link").symlink_to("../theirs/file")
    (place / "absolute").symlink_to(f"{place}/link")
    assert facts(place / "absolute") == []
    os.chown(theirs, USER, USER)
    assert facts(place / "absolute") == [f"{theirs} belongs to user {USER}"]
    with pytest.raises(MountError):
        require_trusted_path(str(place / "absolute"), str(place))


def test_a_loop_of_links_ends(place):
    (place / "link").symlink_to("link")
    with pytest.raises(OSError, match="Too many levels"):
        writers_of(str(place / "link"), ROOT)


def test_for_an_open_file_only_the_file_itself_counts(place):
    reading, writing = os.pipe()
    try:
        assert facts(f"/dev/fd/{reading}") == []
    finally:
        os.close(reading)
        os.close(writing)


def test_a_trusted_directory_may_not_be_a_link(place):
    (place / "link").symlink_to(place)
    with pytest.raises(MountError) as caught, trusted_directory(f"{place}/link"):
        pass
    assert str(caught.value) == f"{place}/link cannot be opened: Too many levels of symbolic links"
    with trusted_directory(str(place)) as fd:
        assert os.path.samestat(os.fstat(fd), place.stat())


def test_no_descriptor_remains_open(place):
    (place / "link").symlink_to("file")
    before = os.listdir("/proc/self/fd")
    writers_of(str(place / "link"), ROOT)
    for path in ("nothing", "link/x"):
        with pytest.raises(OSError, match=r"No such file|Not a directory"):
            writers_of(str(place / path), ROOT)
    assert len(os.listdir("/proc/self/fd")) == len(before)


# Tables of the kernel.


@pytest.mark.parametrize("odd", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\udcff", " \t\n\\"])
def test_only_a_newline_ends_a_line(tmp_path, odd):
    name = f"/mnt/a{odd}b"
    shown = os.fsencode(name)
    for byte in b"\\ \t\n":
        shown = shown.replace(bytes([byte]), b"\\%03o" % byte)
    line = b"36 35 98:0 / %s ro,noatime shared:1 - ext4 /dev/root\r rw,errors=continue" % shown
    (tmp_path / "mountinfo").write_bytes(line + b"\n" + line + b"\n")
    first, second = read_lines(str(tmp_path / "mountinfo"))
    assert first == second == line
    mount = parse(line)
    assert mount is not None
    assert (mount.mountpoint, mount.source, mount.read_only, mount.user_id) == (name, "/dev/root\r", True, None)


@pytest.mark.parametrize(
    "line",
    [b"", b"\r", b"36", b"36 35 98:0 / /mnt rw -", b"36 35 98:0 / /mnt rw shared:1", b"a b c / / rw - ext4 x rw",
     b"36 35 \xff:0 / /mnt rw - ext4 x rw"],
)  # fmt: skip
def test_a_malformed_line_is_skipped(line):
    assert parse(line) is None


def test_the_user_of_a_fuse_mount_is_the_one_named_by_the_kernel():
    line = b"36 35 0:50 / /mnt ro - fuse.backyfs user_id=0 ro,user_id=1234,group_id=5,allow_other"
    mount = parse(line)
    assert mount is not None
    assert mount.user_id == 1234
    assert mount.is_made_by(1234)
    assert not mount.is_made_by(0)


def test_other_options_are_not_taken_for_a_user():
    mount = parse(b"36 35 0:50 / /mnt ro - overlay none ro,lowerdir=/a,user_id=x,upperdir=/b")
    assert mount is not None
    assert mount.is_made_by(0)


def test_only_the_newline_of_a_value_is_removed(tmp_path):
    (tmp_path / "value").write_bytes(b" a\rb\x85 \n")
    assert read_value(str(tmp_path / "value")) == " a\rb\udc85 "
    assert read_value(str(tmp_path / "nothing")) == ""
