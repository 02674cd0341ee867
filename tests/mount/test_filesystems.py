"""Parsing blkid, /proc and /sys; and messages about file systems, volume groups and the like."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from backyfs.attach.filesystems import Content, mount_attempts, other_command, parse, repair_commands
from backyfs.attach.layers import (
    VolumeGroup,
    describe_bitlocker,
    describe_group,
    describe_luks,
    describe_other,
    describe_raid,
    describe_zfs,
)
from backyfs.cli.remedies import render
from backyfs.host.holders import commands_to_close, has_volume_group, holders_of
from backyfs.host.mounttable import Mount, is_below, list_mounts, resolve
from backyfs.host.records import Record, forget_device, hidden_directory, load, note_device, noted_devices, save
from backyfs.remedies import Remedy
from backyfs.text import is_control

# Contents.


@pytest.mark.parametrize(
    ("output", "content", "nothing"),
    [
        ("ID_FS_TYPE=ext4\nID_FS_USAGE=filesystem\n", Content(kind="ext4", usage="filesystem"), None),
        (
            "ID_FS_LABEL_ENC=a\\x20b\\xc3\\xb6\nID_FS_TYPE=ntfs\nID_FS_USAGE=filesystem\nID_FS_UUID_ENC=12\n",
            Content(kind="ntfs", usage="filesystem", label="a bö", uid="12"),
            None,
        ),
        ("ID_FS_TYPE=swap\nID_FS_USAGE=other\n", Content(kind="swap", usage="other"), "swap space, which has no files"),
        ("", Content(), "unknown content"),
        (
            "ID_PART_TABLE_TYPE=dos\n",
            Content(table="dos"),
            "partitions, which are listed separately",
        ),
        ("ID_PART_TABLE_TYPE=gpt\n", Content(table="gpt"), "a partition table (gpt)"),
        (
            "ID_FS_AMBIVALENT=filesystem:ext4:1.0 raid:LVM2_member:LVM2\\x20001\n",
            Content(ambivalent=("ext4", "LVM2_member")),
            None,
        ),
    ],
)
def test_the_output_of_blkid_is_parsed(output: str, content: Content, nothing: str | None) -> None:
    assert parse(output) == content
    assert content.why_empty == nothing


@pytest.mark.parametrize(
    ("kind", "replayed", "bare"),
    [
        ("ext2", ("ext2", ""), ("ext2", "")),
        ("ext3", ("ext3", ""), ("ext3", ",noload")),
        ("ext4", ("ext4", ""), ("ext4", ",noload")),
        ("xfs", ("xfs", ",nouuid"), ("xfs", ",norecovery,nouuid")),
        ("btrfs", ("btrfs", ""), ("btrfs", ",rescue=nologreplay")),
        ("f2fs", ("f2fs", ""), ("f2fs", ",norecovery")),
        ("nilfs2", ("nilfs2", ""), ("nilfs2", ",norecovery")),
        ("reiserfs", ("reiserfs", ""), ("reiserfs", ",nolog")),
        ("ntfs", ("ntfs3", ""), ("ntfs3", "")),
        ("vfat", ("vfat", ",utf8"), ("vfat", ",utf8")),
        ("squashfs", ("squashfs", ""), ("squashfs", "")),
    ],
)
def test_each_kind_has_its_options(kind: str, replayed: tuple[str, str], bare: tuple[str, str]) -> None:
    for replay, (mount_type, options) in ((True, replayed), (False, bare)):
        assert mount_attempts(kind, replay=replay)[0] == (mount_type, f"ro,nosuid,nodev{options}")
        assert all("ro" in options.split(",") for _, options in mount_attempts(kind, replay=replay))


def test_a_journal_on_another_device_is_reported() -> None:
    assert mount_attempts("ext4", replay=True, journal="/dev/loop3") == [
        ("ext4", "ro,nosuid,nodev,journal_path=/dev/loop3")
    ]
    assert mount_attempts("xfs", replay=False, journal="/dev/loop3") == [
        ("xfs", "ro,nosuid,nodev,norecovery,nouuid,logdev=/dev/loop3")
    ]


def test_a_journal_is_found_by_the_uuid_in_its_file_system() -> None:
    ext4 = parse("ID_FS_TYPE=ext4\nID_FS_UUID_ENC=1\nID_FS_EXT_JOURNAL=2\n")
    xfs = parse("ID_FS_TYPE=xfs\nID_FS_UUID_ENC=3\n")
    jbd, other = (parse(f"ID_FS_TYPE=jbd\nID_FS_UUID_ENC={uid}\nID_FS_LOGUUID={uid}\n") for uid in (2, 4))
    log = parse("ID_FS_TYPE=xfs_external_log\nID_FS_LOGUUID=3\n")
    assert [jbd.is_journal_of(each) for each in (ext4, xfs, jbd, Content())] == [True, False, False, False]
    assert [log.is_journal_of(each) for each in (ext4, xfs, log, Content())] == [False, True, False, False]
    assert not other.is_journal_of(ext4)


@pytest.mark.parametrize(
    ("kind", "name", "commands"),
    [
        (
            "ext4",
            "2",
            (
                "e2fsck -fy /mnt/by_version_uid/U/partitions/2",
                "mount -o loop,ro,nosuid,nodev /mnt/by_version_uid/U/partitions/2 DIR",
            ),
        ),
        (
            "xfs",
            "data",
            (
                "xfs_repair -L /mnt/by_version_uid/U/data",
                "mount -o loop,ro,nosuid,nodev,nouuid /mnt/by_version_uid/U/data DIR",
            ),
        ),
        ("nilfs2", "data", ("mount -o loop,ro,nosuid,nodev /mnt/by_version_uid/U/data DIR",)),
    ],
)
def test_a_file_system_with_a_damaged_journal_is_repaired_in_a_layer(
    kind: str, name: str, commands: tuple[str, ...]
) -> None:
    first, *others = repair_commands(kind, "U", name)
    assert render(first) == "backyfs mount --version U --writable /var/tmp/repaired --discard /mnt"
    assert tuple(others) == commands


def test_contents_that_cannot_be_mounted_have_an_alternative() -> None:
    assert other_command("hfsplus", "/dev/loop1", "/a b") == "7z l /dev/loop1"
    assert other_command("btrfs", "/dev/loop1", "/a b") == (
        "mount -t btrfs -o ro,nosuid,nodev,rescue=nologreplay /dev/loop1 '/a b'"
    )


# Layers.


def test_a_volume_group_on_two_devices_is_opened_with_both() -> None:
    group = VolumeGroup(name="vg", uid="no-such", volumes=("root",))
    layer = describe_group(
        group, ["/dev/loop1", "/dev/loop2"], "/at/2", "/m/by_version_uid/u/partitions/2", replay=False
    )
    config = """'activation/read_only_volume_list=["vg"]'"""
    assert layer.commands == (
        f"vgchange --devices /dev/loop1,/dev/loop2 --activate y --config {config} vg",
        "mkdir /at/vg-root",
        "mount -o ro,nosuid,nodev,noload /dev/vg/root /at/vg-root",
        "umount /at/vg-root",
        "vgchange --devices /dev/loop1,/dev/loop2 --activate n vg",
    )


def test_a_volume_group_with_journals_to_replay_is_writable() -> None:
    group = VolumeGroup(name="vg", uid="no-such", volumes=("root",))
    layer = describe_group(group, ["/dev/loop1"], "/at/2", "/m/by_version_uid/u/partitions/2", replay=True)
    assert layer.commands[0] == "vgchange --devices /dev/loop1 --activate y vg"
    assert layer.commands[2] == "mount -o ro,nosuid,nodev /dev/vg/root /at/vg-root"


def test_an_unreadable_volume_group_has_a_placeholder() -> None:
    layer = describe_group(None, ["/dev/loop1"], "/at/2", "/m/by_version_uid/u/data", replay=False)
    assert layer.commands[2] == "mount -o ro,nosuid,nodev,noload /dev/VG/LV /at/VG-LV"


def test_a_volume_group_of_this_host_is_not_activated_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backyfs.attach.layers.has_volume_group", lambda uid: uid == "active")
    group = VolumeGroup(name="vg", uid="active", volumes=("root",))
    layer = describe_group(group, ["/dev/loop1"], "/at/2", "/m/by_version_uid/u/partitions/2", replay=True)
    assert "do not activate it as it is" in layer.remark
    assert tuple(map(render, layer.commands)) == (
        "backyfs mount --version u --writable /var/tmp/vg_backup --discard /mnt",
        "losetup --find --show /mnt/by_version_uid/u/partitions/2",
        "vgimportclone --devices /dev/loopN --basevgname vg_backup /dev/loopN",
        "vgchange --devices /dev/loopN --activate y vg_backup",
    )


@pytest.mark.parametrize(
    "name",
    ["x;touch P;#", "$(id)", "`id`", "a b", "a'b", 'a"]b', "a\nb", "a\x1bb", "a|b", "a\n", "-a", ".", "..", "", "a/b",
     "ä", "a" * 128],
)
def test_a_name_that_lvm_does_not_allow_appears_in_no_command(name: str) -> None:
    of_group = describe_group(
        VolumeGroup(name=name, uid="no-such", volumes=("root",)), ["/dev/loop1"], "/at/2", "/m/x", replay=False
    )
    assert of_group.commands == ()
    assert (repr(name) if name else "without a volume group") in of_group.remark
    of_volume = describe_group(
        VolumeGroup(name="vg", uid="no-such", volumes=("root", name)), ["/dev/loop1"], "/at/2", "/m/x", replay=True
    )
    assert of_volume.commands[2:4] == ("mount -o ro,nosuid,nodev /dev/vg/root /at/vg-root", "umount /at/vg-root")
    assert f"its volume {name!r} is left out, because LVM does not allow this name" in of_volume.remark
    assert describe_group(
        VolumeGroup(name="vg", uid="no-such", volumes=(name,)), ["/dev/loop1"], "/at/2", "/m/x", replay=True
    ).commands == ()  # fmt: skip


@pytest.mark.parametrize("name", ["vg", "a" * 127, "_", "+", "...", ".hidden", "0-1_2+3.4"])
def test_a_name_that_lvm_allows_is_used(name: str) -> None:
    group = VolumeGroup(name=name, uid="no-such", volumes=(name,))
    commands = describe_group(group, ["/dev/loop1"], "/at/2", "/m/x", replay=True).commands
    assert shlex.split(str(commands[2]))[-2:] == [f"/dev/{name}/{name}", f"/at/{name}-{name}"]


def test_a_name_that_zfs_does_not_allow_appears_in_no_command() -> None:
    layer = describe_zfs("/dev/loop1", "x;touch P;#", "/at/1")
    assert layer.commands == ()
    assert "'x;touch P;#', which ZFS does not allow" in layer.remark
    assert describe_zfs("/dev/loop1", "-f", "/at/1").commands == ()


HOSTILE = "/at $(touch P)`touch P`;touch P;#'\"\n\x1b\udcff/2"
GROUP = VolumeGroup(name="vg", uid="no-such", volumes=("a", "b"))
IMAGE = f"/m{HOSTILE}/by_version_uid/u;id/data"


@pytest.mark.parametrize(
    "commands",
    [
        describe_group(GROUP, ["/dev/loop1"], HOSTILE, IMAGE, replay=False).commands,
        describe_group(None, ["/dev/loop1"], HOSTILE, IMAGE, replay=True).commands,
        describe_luks("/dev/loop1", HOSTILE, replay=False).commands,
        describe_bitlocker("/dev/loop1", HOSTILE).commands,
        describe_raid(["/dev/loop1"], HOSTILE).commands,
        describe_zfs("/dev/loop1", "my tank", HOSTILE).commands,
        repair_commands("ext4", "u;id", "data"),
        *((other_command(kind, "/dev/loop1", HOSTILE),) for kind in ("vfat", "apfs", "btrfs", "ext4", "minix")),
    ],
)
def test_no_directory_name_runs_in_a_shell_or_controls_a_terminal(
    commands: tuple[str | Remedy, ...], tmp_path: Path
) -> None:
    directory = os.fsencode(HOSTILE)
    for command in (str(render(line)) for line in commands):
        assert not any(map(is_control, command))
        script = f'{command.split()[0]}() {{ printf "%s\\0" "$@"; }}; {command}'
        done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, check=True, cwd=tmp_path)
        words = done.stdout.split(b"\0")[:-1]
        assert done.stderr == b""
        assert not any(word.startswith(b"/at ") and not word.startswith(directory[:-2]) for word in words)
        if command.startswith("mount "):
            assert words[words.index(b"-o") + 1].removeprefix(b"loop,").startswith(b"ro,nosuid,nodev")
    assert list(tmp_path.iterdir()) == []


def test_other_contents_are_explained() -> None:
    assert describe_raid(["/dev/loop1", "/dev/loop2"], "/at/1").commands[0] == (
        "mdadm --assemble --readonly --run /dev/md/backyfs /dev/loop1 /dev/loop2"
    )
    assert describe_zfs("/dev/loop1", "tank", "/at/1").commands == (
        "zpool import -o readonly=on -o nosuid,nodev -R /at/1 -d /dev/loop1 tank",
        "zpool export tank",
    )
    assert describe_bitlocker("/dev/loop1", "/at/1").commands[0] == (
        "cryptsetup open --readonly --type bitlk /dev/loop1 backyfs-loop1"
    )
    assert describe_other("drbd", "/dev/loop1").commands == ()


def mapped(block: Path, name: str, label: str, uid: str, holders: tuple[str, ...] = ()) -> None:
    """Create the entries in /sys for a device of the device mapper."""
    (block / name / "dm").mkdir(parents=True)
    (block / name / "dm" / "name").write_text(f"{label}\n")
    (block / name / "dm" / "uuid").write_text(f"{uid}\n")
    (block / name / "dev").write_text(f"253:{name.removeprefix('dm-')}\n")
    for holder in holders:
        (block / name / "holders" / holder).mkdir(parents=True)
    (block / name / "holders").mkdir(exist_ok=True)


def test_holders_of_a_device_are_closed_from_the_top_down(tmp_path: Path) -> None:
    group = "AbCdEf-1234-5678-9abc-defg-hijk-lmnopz"
    mapped(tmp_path, "dm-0", "crypt", "CRYPT-LUKS2-0123-crypt", ("dm-1",))
    mapped(tmp_path, "dm-1", "vg-root", f"LVM-{group.replace('-', '')}Xyz")
    (tmp_path / "md5" / "holders").mkdir(parents=True)
    found = holders_of(("dm-0", "md5", "gone"), str(tmp_path))
    assert [holder.what for holder in found] == ["logical volume vg-root", "opened LUKS device crypt", "md5"]
    mounts = [
        Mount(
            mount_id=1,
            parent_id=0,
            mountpoint="/root",
            file_system_type="ext4",
            device="253:1",
            source="x",
            read_only=True,
        )
    ]
    assert commands_to_close(found, mounts) == [
        "umount /root",
        "dmsetup remove vg-root",
        "cryptsetup close crypt",
        "mdadm --stop /dev/md5",
    ]
    assert has_volume_group(group, str(tmp_path))
    assert not has_volume_group(group[:-1] + "y", str(tmp_path))
    assert not has_volume_group(group, str(tmp_path / "nothing"))


# Paths.


def test_paths_are_resolved_as_in_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    (tmp_path / "absolute").symlink_to(tmp_path / "link")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("a/b", "link", "absolute", "link/../b", "link/nothing/here", "./a//b/.", "absolute/.."):
        path = os.path.join(tmp_path, name)
        assert resolve(path) == os.path.realpath(path)
    assert resolve(f"{tmp_path}/loop").startswith(str(tmp_path))


def test_a_mountpoint_itself_is_not_accessed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/elsewhere")
    assert resolve(f"{tmp_path}/link", {f"{tmp_path}/link"}) == f"{tmp_path}/link"


def test_relative_paths_start_at_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("a/b") == f"{os.path.realpath(tmp_path)}/a/b"


def test_a_path_beside_another_is_not_below_it() -> None:
    assert is_below("/a/b", "/a")
    assert is_below("/a", "/a")
    assert is_below("/a", "/")
    assert not is_below("/ab", "/a")


def test_mounts_of_this_host_can_be_listed() -> None:
    assert all(each.mountpoint.startswith("/") and ":" in each.device for each in list_mounts())


# Records.


def test_a_record_is_read_as_written(tmp_path: Path) -> None:
    record = Record(version_uid="u", mountpoint="/a b\udcff", made=("/x", "/x/y"), is_complete=True)
    os.mkdir(hidden_directory(str(tmp_path)))
    save(str(tmp_path), record)
    assert load(str(tmp_path)) == record


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version_uid": 1}'])
def test_a_broken_record_counts_as_missing(tmp_path: Path, text: str) -> None:
    os.mkdir(hidden_directory(str(tmp_path)))
    Path(hidden_directory(str(tmp_path)), "record.json").write_text(text)
    assert load(str(tmp_path)) is None


def test_a_device_is_recorded_until_it_is_forgotten(tmp_path: Path) -> None:
    for name, device in (("10", "/dev/loop1"), ("2", "/dev/loop2"), ("2", "/dev/loop3")):
        note_device(str(tmp_path), name, device)
    assert list(noted_devices(str(tmp_path)).items()) == [("2", "/dev/loop3"), ("10", "/dev/loop1")]
    forget_device(str(tmp_path), "2")
    forget_device(str(tmp_path), "2")
    assert noted_devices(str(tmp_path)) == {"10": "/dev/loop1"}
