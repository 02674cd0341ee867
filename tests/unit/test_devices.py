"""Which block devices share bytes, in a fake /sys of directories and links like the kernel's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from backyfs.host.devices import overlapping
from backyfs.host.loops import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class Host:
    """A /sys to which devices are added from the bottom up."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.numbers: dict[str, str] = {}
        self.loops: list[Loop] = []
        for directory in ("dev/block", "class/block", "devices", "fs/btrfs"):
            (root / directory).mkdir(parents=True)

    def disk(self, name: str, partitions: Sequence[str] = (), below: Sequence[str] = ()) -> None:
        self._add(self.root / "devices" / name, below)
        for partition in partitions:
            directory = self.root / "devices" / name / partition
            self._add(directory, ())
            (directory / "partition").write_text("1\n")

    def loop(self, name: str, file: str) -> None:
        self.disk(name)
        self.loops.append(
            Loop(
                device=f"/dev/{name}",
                backing_file=file,
                numbers=frozenset({self.numbers[name]}),
                nodes=frozenset({f"/dev/{name}"}),
                holders=(),
                read_only=False,
            )
        )

    def btrfs(self, *members: str) -> None:
        devices = self.root / "fs" / "btrfs" / "uuid" / "devices"
        devices.mkdir(parents=True)
        for member in members:
            (devices / member).symlink_to(self.root / "class" / "block" / member)

    def overlapping(self, *names: str) -> set[str]:
        """Return the names of the devices that share bytes with the given ones."""
        found = overlapping([self.numbers[name] for name in names], self.loops, str(self.root))
        return {name for name, number in self.numbers.items() if number in found}

    def _add(self, directory: Path, below: Sequence[str]) -> None:
        number = f"9:{len(self.numbers)}"
        self.numbers[directory.name] = number
        (directory / "holders").mkdir(parents=True)
        (directory / "dev").write_text(f"{number}\n")
        (self.root / "dev" / "block" / number).symlink_to(directory)
        (self.root / "class" / "block" / directory.name).symlink_to(directory)
        for name in below:
            holders = (self.root / "class" / "block" / name).resolve() / "holders"
            (holders / directory.name).symlink_to(directory)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "sys")


def lvm_on_a_partition(host: Host) -> None:
    host.disk("sda", ["sda1", "sda2"])
    host.disk("dm-0", below=["sda2"])


def luks_on_lvm_on_raid(host: Host) -> None:
    host.disk("sda", ["sda1"])
    host.disk("sdb", ["sdb1"])
    host.disk("md0", ["md0p1"], below=["sda1", "sdb1"])
    host.disk("dm-0", below=["md0p1"])
    host.disk("dm-1", below=["dm-0"])


def snapshot_of_a_volume(host: Host) -> None:
    host.disk("sda")
    host.disk("dm-real", below=["sda"])
    host.disk("dm-cow", below=["sda"])
    host.disk("dm-origin", below=["dm-real"])
    host.disk("dm-snapshot", below=["dm-real", "dm-cow"])


def btrfs_on_two_disks(host: Host) -> None:
    host.disk("sda")
    host.disk("sdb")
    host.disk("sdc")
    host.btrfs("sda", "sdb")


def loops_on_a_file(host: Host) -> None:
    host.loop("loop0", "/srv/image")
    host.loop("loop1", "/srv/image")
    host.loop("loop2", "/srv/other")
    host.disk("dm-0", below=["loop1"])


@pytest.mark.parametrize(
    ("made", "name", "expected"),
    [
        (lvm_on_a_partition, "sda", {"sda", "sda1", "sda2", "dm-0"}),
        (lvm_on_a_partition, "sda1", {"sda", "sda1"}),
        (lvm_on_a_partition, "sda2", {"sda", "sda2", "dm-0"}),
        (lvm_on_a_partition, "dm-0", {"dm-0"}),
        (luks_on_lvm_on_raid, "sdb", {"sdb", "sdb1", "md0", "md0p1", "dm-0", "dm-1"}),
        (luks_on_lvm_on_raid, "dm-0", {"dm-0", "dm-1"}),
        (snapshot_of_a_volume, "dm-snapshot", {"dm-snapshot"}),
        (snapshot_of_a_volume, "dm-origin", {"dm-origin"}),
        (btrfs_on_two_disks, "sdb", {"sda", "sdb"}),
        (btrfs_on_two_disks, "sdc", {"sdc"}),
        (loops_on_a_file, "loop0", {"loop0", "loop1", "dm-0"}),
        (loops_on_a_file, "loop2", {"loop2"}),
    ],
)
def test_devices_share_bytes_with_devices_above_and_below(
    host: Host, made: Callable[[Host], None], name: str, expected: set[str]
) -> None:
    made(host)
    assert host.overlapping(name) == expected


def test_a_missing_device_shares_bytes_with_nothing(host: Host) -> None:
    host.disk("sda", ["sda1"])
    os.unlink(host.root / "devices" / "sda" / "sda1" / "dev")
    assert host.overlapping("sda") == {"sda"}
    assert overlapping(["8:99"], [], str(host.root / "none")) == {"8:99"}
