"""`backyfs attach`: every kind of file system, on whole disks and in partitions, and messages about the others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from backyfs.errors import MountError
from backyfs.host import loops
from backyfs.host.mounttable import mount_at
from backyfs.metadata.records.versions import find_version
from tests.support.attaching import (
    MIB,
    attach,
    attached,
    cleared,
    config_of,
    crowded_disk,
    dirty,
    disk_of,
    empty_image,
    left_of,
    repository_of,
    volume_group_image,
    with_forged_names,
)
from tests.support.images import ext4_image, run_tool
from tests.support.program import backyfs, mounting
from tests.support.repositories import opened
from tests.support.stored import blob_of, file_of, flip_a_byte

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("loop_devices")

MOUNT_ERROR = 10
MAKERS = {
    "xfs": (320, ("mkfs.xfs", "-q")),  # mkfs does not make it smaller
    "btrfs": (128, ("mkfs.btrfs", "-q")),
    "ext3": (8, ("mkfs.ext3", "-q", "-F", "-L", "a label")),
    "ext2": (8, ("mkfs.ext2", "-q", "-F")),
    "ntfs": (8, ("mkntfs", "-q", "-F", "-Q", "-L", "Windows")),
    "vfat": (8, ("mkfs.vfat",)),
    "swap": (8, ("mkswap",)),
}


def made(directory: Path, kind: str) -> Path:
    size, command = MAKERS[kind]
    image = empty_image(directory / kind, size * MIB)
    subprocess.run([*command, str(image)], check=True, capture_output=True)
    return image


FORGED = {"forged group": {b"testvg": b"x;id;#"}, "forged volume": {b"root": b"`id`"}}


@pytest.fixture(scope="module")
def home(loop_devices: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a directory with a repository that has versions of all kinds."""
    home = tmp_path_factory.mktemp("attach")
    files = home / "files"
    files.mkdir()
    (files / "hello").write_text("good morning\n")
    with cleared(home):
        at = home / "by hand"
        whole = ext4_image(home / "ext4", files, 8 * MIB)
        images = {
            "ext4": dirty(whole, at),
            "ext2": made(home, "ext2"),
            "ext3": dirty(made(home, "ext3"), at),
            "xfs": dirty(made(home, "xfs"), at),
            "btrfs": dirty(made(home, "btrfs"), at),
            "swap": made(home, "swap"),
            "vfat": made(home, "vfat"),
            "luks": empty_image(home / "luks", 20 * MIB),
            "lvm": volume_group_image(home / "lvm", "testvg"),
            "empty": empty_image(home / "empty", MIB),
        }
        for kind, names in FORGED.items():
            images[kind] = with_forged_names(images["lvm"], home / kind, names)
        run_tool("mksquashfs", str(files), str(home / "squashfs"), "-quiet", "-no-progress")
        run_tool("mkfs.erofs", "--quiet", str(home / "erofs"), str(files))
        images |= {kind: home / kind for kind in ("squashfs", "erofs")}
        if shutil.which("ntfs-3g") is not None:
            images["ntfs"] = made(home, "ntfs")
        options = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--batch-mode"]
        key = home / "passphrase"
        key.write_text("secret")
        run_tool("cryptsetup", "luksFormat", *options, str(images["luks"]), str(key))
        images["disk"] = disk_of(
            home / "disk",
            {
                images["ext4"]: "linux",
                images["swap"]: "swap",
                images["btrfs"]: "linux",
                images["luks"]: "linux",
                images["lvm"]: "lvm",
                images["vfat"]: "uefi",
                images["empty"]: "linux",
            },
        )
        images["crowded"] = crowded_disk(home / "crowded", images["erofs"], 1024)
        repository_of(home, images)
        yield home


def detached(directory: Path) -> None:
    done = backyfs("--quiet", "detach", directory)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def options_of(mountpoint: Path) -> set[str]:
    done = subprocess.run(
        ["findmnt", "-n", "-o", "OPTIONS", str(mountpoint)], capture_output=True, text=True, check=True
    )
    return set(done.stdout.strip().split(","))


# File systems.


@pytest.mark.parametrize("kind", ["ext3", "ext4", "xfs", "btrfs"])
def test_a_file_system_backed_up_in_use_can_be_attached(home: Path, place: Path, kind: str) -> None:
    (row,) = attached(home, kind, place)
    assert (row["partition"], row["type"], row["state"], row["remark"]) == ("data", kind, "mounted", "")
    assert row["mountpoint"] == str(place / "data")
    assert (place / "data" / "hello").read_text() == "good morning\n"
    assert {"ro", "nosuid", "nodev"} <= options_of(place / "data")
    detached(place)
    assert not place.exists()
    assert left_of(home) == left_of(place.parent) == []


@pytest.mark.parametrize("kind", ["ext2", "ntfs"])
def test_a_file_system_without_a_journal_can_be_attached(home: Path, place: Path, kind: str) -> None:
    if kind == "ntfs" and shutil.which("ntfs-3g") is None:
        pytest.skip("ntfs-3g is not installed")
    (row,) = attached(home, kind, place)
    assert (row["type"], row["state"]) == (kind, "mounted")
    assert os.path.ismount(place / "data")
    detached(place)
    assert left_of(home) == []


@pytest.mark.parametrize(("options", "read_only"), [((), "0\n"), (("--no-replay",), "1\n")])
def test_the_device_uses_direct_io_reads_far_ahead_and_is_written_only_to_replay_a_journal(
    home: Path, place: Path, options: tuple[str, ...], read_only: str
) -> None:
    (row,) = attached(home, "ext4", *options, place)
    assert os.readlink(place / "devices" / "data") == row["device"]
    directory = Path("/sys/block", Path(str(row["device"])).name)
    assert (directory / "ro").read_text() == read_only
    assert (directory / "loop" / "dio").read_text() == "1\n"
    assert (directory / "queue" / "read_ahead_kb").read_text() == "8192\n"


def test_each_partition_is_mounted_or_explained(home: Path, place: Path) -> None:
    rows = {row["partition"]: row for row in attached(home, "disk", place)}
    assert [(number, row["type"], row["state"]) for number, row in rows.items()] == [
        ("1", "ext4", "mounted"),
        ("2", "swap", "nothing"),
        ("3", "btrfs", "mounted"),
        ("4", "crypto_LUKS", "ready"),
        ("5", "LVM2_member", "ready"),
        ("6", "vfat", "mounted" if "vfat" in Path("/proc/filesystems").read_text() else rows["6"]["state"]),
        ("7", "", "nothing"),
    ]
    for number in ("1", "3"):
        assert (place / number / "hello").read_text() == "good morning\n"
    assert rows["2"]["remark"] == "swap space, which has no files"
    assert rows["7"]["remark"] == "unknown content"
    assert sorted(os.listdir(place)) == [".backyfs", "1", "3", "4", "5", "6", "devices"]
    detached(place)
    assert left_of(home) == []


def test_only_one_of_a_thousand_identical_partitions_gets_a_device(home: Path, place: Path) -> None:
    rows = attached(home, "crowded", place)
    assert [row["partition"] for row in rows if row["device"]] == ["1"]
    assert (place / "1" / "hello").read_text() == "good morning\n"
    assert len(rows) == 128
    assert all("overlaps partition 1 and gets no device" in str(row["remark"]) for row in rows[1:])
    detached(place)
    done = backyfs("-c", config_of(home), "attach", "crowded@latest", place)
    assert "896 partitions of this image are left out" in done.stderr
    detached(place)
    assert left_of(home) == []


def test_a_uid_that_is_a_path_does_not_lead_to_another_image(loop_devices: None, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "elsewhere").mkdir()
    image = ext4_image(tmp_path / "elsewhere" / "data", tmp_path / "files", 8 * MIB)
    config = repository_of(tmp_path, {"disk": image})
    with cleared(tmp_path):
        with opened(config) as repository, repository.database.write() as connection:
            connection.execute(text("UPDATE versions SET uid = '../../../../elsewhere'"))
        done = backyfs("-c", config, "attach", "disk@latest", tmp_path / "place")
        assert done.returncode == 20
        assert "has an impossible uid: '../../../../elsewhere'" in done.stderr
        assert left_of(tmp_path) == []
        assert not (tmp_path / "place").exists()


def test_luks_is_left_to_somebody_with_the_passphrase(home: Path, place: Path) -> None:
    (row,) = attached(home, "luks", place)
    device = row["device"]
    name = f"backyfs-{Path(str(device)).name}"
    assert row["remark"] == "encrypted with LUKS: its passphrase opens it"
    assert row["commands"] == [
        f"cryptsetup open {device} {name}",
        f"mount -o ro,nosuid,nodev /dev/mapper/{name} {place}/data",
        f"umount {place}/data",
        f"cryptsetup close {name}",
    ]
    header = subprocess.run(["cryptsetup", "isLuks", str(device)], check=False)
    assert header.returncode == 0
    detached(place)


def test_a_volume_group_is_reported_with_the_commands_that_open_it(home: Path, place: Path) -> None:
    (row,) = attached(home, "lvm", place)
    device = row["device"]
    assert row["remark"] == "part of the LVM volume group testvg"
    assert row["commands"] == [
        f"vgchange --devices {device} --activate y testvg",
        f"mkdir {place}/testvg-home {place}/testvg-root",
        f"mount -o ro,nosuid,nodev /dev/testvg/home {place}/testvg-home",
        f"mount -o ro,nosuid,nodev /dev/testvg/root {place}/testvg-root",
        f"umount {place}/testvg-home {place}/testvg-root",
        f"vgchange --devices {device} --activate n testvg",
    ]
    detached(place)


def test_a_volume_group_whose_name_is_a_command_gets_no_commands(home: Path, place: Path) -> None:
    (row,) = attached(home, "forged group", place)
    assert row["state"] == "ready"
    assert row["commands"] == []
    # Only some releases of LVM report such a group.
    assert str(row["remark"]).endswith("the image was tampered with or is damaged, so there are no commands for it")
    detached(place)


def test_a_volume_whose_name_is_a_command_appears_in_no_command(home: Path, place: Path) -> None:
    (row,) = attached(home, "forged volume", place)
    device = row["device"]
    assert row["remark"] == (
        "part of the LVM volume group testvg; its volume '`id`' is left out, because LVM does not allow this name"
    )
    assert row["commands"] == [
        f"vgchange --devices {device} --activate y testvg",
        f"mkdir {place}/testvg-home",
        f"mount -o ro,nosuid,nodev /dev/testvg/home {place}/testvg-home",
        f"umount {place}/testvg-home",
        f"vgchange --devices {device} --activate n testvg",
    ]
    detached(place)


def test_without_replaying_the_commands_write_nothing(home: Path, place: Path) -> None:
    (row,) = attached(home, "luks", "--no-replay", place)
    assert str(row["remark"]).endswith("; these commands mount it without replaying its journal, as requested")
    commands = row["commands"]
    assert isinstance(commands, list)
    assert commands[0].startswith("cryptsetup open --readonly /dev/loop")
    assert commands[1].startswith("mount -o ro,nosuid,nodev,noload /dev/mapper/")
    detached(place)


@pytest.mark.parametrize("kind", ["squashfs", "erofs"])
def test_a_read_only_kind_of_file_system_can_be_attached(home: Path, place: Path, kind: str) -> None:
    (row,) = attached(home, kind, place)
    assert (row["type"], row["state"]) == (kind, "mounted")
    assert (place / "data" / "hello").read_text() == "good morning\n"
    detached(place)


def test_file_systems_unknown_to_the_kernel_are_reported_with_an_alternative(home: Path, place: Path) -> None:
    done = attach(home, "vfat", place)
    (row,) = json.loads(done.stdout)
    if "vfat" in Path("/proc/filesystems").read_text():
        assert (done.returncode, row["type"], row["state"]) == (0, "vfat", "mounted")
        return
    assert done.returncode == MOUNT_ERROR
    assert row["state"] == "failed"
    assert row["remark"] == "the kernel of this host does not support vfat, and no program for it is installed"
    assert row["commands"] == [f"mdir -i {row['device']} ::"]
    assert "no file system of version" in done.stderr
    detached(place)


@pytest.mark.parametrize("version", ["swap", "empty"])
def test_a_version_without_files_is_an_error_and_leaves_nothing(home: Path, place: Path, version: str) -> None:
    done = attach(home, version, place)
    assert done.returncode == MOUNT_ERROR
    assert "has nothing that could be mounted (data: " in done.stderr
    assert not place.exists()
    assert left_of(home) == left_of(place.parent) == []


# Places.


def test_the_default_directory_is_named_after_version_and_date(home: Path, place: Path) -> None:
    (row,) = attached(home, "ext4")
    directory = Path(str(row["directory"]))
    try:
        assert directory.parent == Path("/run/backyfs")
        assert directory.name.startswith("ext4_20")
        assert directory.stat().st_mode & 0o777 == 0o700
    finally:
        detached(directory)
    assert not directory.exists()


@pytest.mark.parametrize("name", ["with space", "zwölf ✓", "tab\tand\nnewline", "back\\slash", "-o"])
def test_a_directory_may_have_any_name(home: Path, place: Path, name: str) -> None:
    directory = place.parent / name
    done = backyfs("-c", config_of(home), "--json", "attach", "--", "ext4@latest", directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert (directory / "data" / "hello").read_text() == "good morning\n"
    assert backyfs("detach", "--", directory).returncode == 0
    assert not directory.exists()
    assert left_of(home) == []


def test_parent_directories_are_created_and_removed(home: Path, place: Path) -> None:
    attached(home, "ext4", place / "a" / "b")
    detached(place / "a" / "b")
    assert not place.exists()


def test_an_existing_directory_is_kept(home: Path, place: Path) -> None:
    place.mkdir()
    attached(home, "ext4", place)
    detached(place)
    assert list(place.iterdir()) == []


def test_a_directory_that_is_not_empty_is_refused(home: Path, place: Path) -> None:
    place.mkdir()
    (place / "file").touch()
    done = attach(home, "ext4", place)
    assert done.returncode == MOUNT_ERROR
    assert done.stderr == (
        f"backyfs: error: {place} is not empty; name one that is empty or does not exist\n"
    )
    assert os.listdir(place) == ["file"]


def test_a_directory_in_the_repository_is_refused(home: Path, place: Path) -> None:
    directory = home / "repository" / "data" / "files"
    done = attach(home, "ext4", directory)
    assert done.returncode == MOUNT_ERROR
    assert "overlaps the repository" in done.stderr
    assert not directory.exists()


def test_nothing_is_attached_over_another_attachment(home: Path, place: Path) -> None:
    attached(home, "ext4", place)
    done = attach(home, "ext3", place)
    assert done.returncode == MOUNT_ERROR
    assert f"is already attached in {place}; run `backyfs detach {place}` first" in done.stderr
    assert (place / "data" / "hello").read_text() == "good morning\n"


def test_a_version_can_be_attached_twice(home: Path, place: Path) -> None:
    second = place.with_name("second")
    attached(home, "xfs", place)
    attached(home, "xfs", second)
    detached(place)
    assert (second / "data" / "hello").read_text() == "good morning\n"
    detached(second)
    assert left_of(home) == []


# Mounts.


def test_an_existing_mount_of_the_repository_is_used_and_kept(home: Path, place: Path) -> None:
    with mounting(config_of(home), place.with_name("mount")) as at:
        (row,) = attached(home, "ext2", place)
        assert str(row["image"]).startswith(f"{at}/by_version_uid/")
        assert mount_at(str(place / ".backyfs" / "mount")) is None
        detached(place)
        assert mount_at(str(at)) is not None


def test_a_writable_mount_is_not_used(home: Path, place: Path) -> None:
    layer = place.with_name("layer")
    at = place.with_name("mount")
    at.mkdir()
    assert backyfs("-c", config_of(home), "mount", "--writable", layer, at).returncode == 0
    (row,) = attached(home, "ext4", place)
    assert str(row["image"]).startswith(f"{place}/.backyfs/mount/")
    detached(place)


def test_a_mount_of_another_repository_is_not_used(home: Path, place: Path) -> None:
    other = place.with_name("other")
    other.mkdir()
    config = repository_of(other, {"swap": home / "swap"})
    with mounting(config, place.with_name("mount")):
        (row,) = attached(home, "ext4", place)
        assert str(row["image"]).startswith(f"{place}/.backyfs/mount/")
        detached(place)


# Output.


def test_the_output_is_a_table_and_the_next_steps(home: Path, place: Path) -> None:
    done = backyfs("-c", config_of(home), "attach", "luks@latest", place)
    assert done.returncode == 0
    assert f" is attached in {place}\n" in done.stdout
    assert "To continue with the image:\n    cryptsetup open /dev/loop" in done.stdout
    assert done.stdout.endswith(f"`backyfs detach {place}` undoes this.\n")


def test_machine_output_has_fields(home: Path, place: Path) -> None:
    done = backyfs("-c", config_of(home), "-m", "attach", "ext3@latest", place)
    header, line = done.stdout.splitlines()
    assert header == "directory|partition|size_bytes|type|label|state|mountpoint|device|remark"
    device = os.readlink(place / "devices" / "data")
    assert line == f"{place}|data|{8 * MIB}|ext3|a label|mounted|{place}/data|{device}|"


def test_an_unknown_version_is_an_error_before_anything_is_created(home: Path, place: Path) -> None:
    done = attach(home, "nothing", place)
    assert done.returncode == 4
    assert not place.exists()


def test_a_damaged_beginning_is_not_taken_for_an_empty_disk(home: Path, place: Path) -> None:
    directory = place.with_name("damaged")
    directory.mkdir()
    config = repository_of(directory, {"ext4": home / "ext4"})
    with opened(config) as repository:
        with repository.database.read() as connection:
            version = find_version(connection, "ext4@latest")
        flip_a_byte(file_of(repository, blob_of(repository, version, 0)))
    done = backyfs("-c", config, "--json", "attach", "ext4@latest", place)
    assert done.returncode == MOUNT_ERROR
    assert "cannot be read where its type is stored: Input/output error" in done.stderr
    assert not place.exists()


def test_only_root_can_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(MountError, match="only root can set up loop devices and mount file systems; without loop"):
        loops.check_loop_devices()


def test_missing_loop_devices_are_reported() -> None:
    with pytest.raises(MountError, match=r"/dev/no-loop-control does not exist; load the module \(modprobe loop\)"):
        loops.check_loop_devices("/dev/no-loop-control")
