"""What an image or a partition holds, and how it is mounted: read-only, and without replaying a journal.

Replaying wants to write, which nothing here can; without it one sees the files as they were when the backup was
made, but for what only the journal had. What is found comes from blkid, whose names of types these are.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from shlex import quote

from backyfs.errors import MountError
from backyfs.host.programs import reason_of, run

# Files of a backup are those of another system: its programs with the rights of others and its device nodes are
# nothing to trust. Programs may run: reading old data may take the old program.
_ALWAYS = "ro,nosuid,nodev"

# type of blkid -> types and options of mount(8) to try, in order
_WAYS: dict[str, tuple[tuple[str, str], ...]] = {
    "ext2": (("ext2", ""), ("ext4", "")),
    "ext3": (("ext3", "noload"), ("ext4", "noload")),
    "ext4": (("ext4", "noload"),),
    "xfs": (("xfs", "norecovery,nouuid"),),  # nouuid: the original may be mounted on this host
    "btrfs": (("btrfs", "rescue=nologreplay"), ("btrfs", "nologreplay")),  # the first since Linux 5.9
    "f2fs": (("f2fs", "norecovery"),),
    "nilfs2": (("nilfs2", "norecovery"),),
    "reiserfs": (("reiserfs", "nolog"),),
    "ntfs": (("ntfs3", ""), ("ntfs-3g", ""), ("ntfs", "")),
    "vfat": (("vfat", "utf8"), ("vfat", "")),
    "exfat": (("exfat", ""), ("exfat-fuse", "")),
    "ufs": (("ufs", "ufstype=ufs2"), ("ufs", "ufstype=44bsd")),
}
_UNKNOWN_TYPE = "unknown filesystem type"  # what mount(8) says of a type that the kernel does not have

# type of blkid -> what reads it where the kernel cannot
_OTHER_READERS = {
    "vfat": "mdir -i {device} ::",
    "ntfs": "apt install ntfs-3g",
    "exfat": "apt install exfat-fuse",
    "apfs": "apfs-fuse {device} {directory}",
    "hfsplus": "7z l {device}",
    "iso9660": "7z l {device}",
    "squashfs": "unsquashfs -ll {device}",
    "erofs": "fsck.erofs --extract=FILES {device}",
    "xfs": "xfs_db -r {device}",
    "ext2": "debugfs {device}",
    "ext3": "debugfs {device}",
    "ext4": "debugfs {device}",
}

_AMBIVALENT = "ID_FS_AMBIVALENT"
_NOTHING_TO_SEE = {
    "swap": "swap space, which has no files",
    "swsuspend": "the memory of a system that was hibernated",
    "jbd": "the journal of another file system",
    "xfs_external_log": "the log of another file system",
}


# What is looked for where some places cannot be read, and where places of superblocks are.
_LIKELY = ("ext2,ext3,ext4", "xfs", "ntfs", "crypto_LUKS", "LVM2_member", "btrfs", "vfat", "linux_raid_member")
_PLACES = (0, 4096, 32 << 10, 64 << 10)
_END_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What blkid found."""

    kind: str = ""          # TYPE of blkid: ext4, LVM2_member, crypto_LUKS, …; '' if nothing is known
    usage: str = ""         # filesystem, raid, crypto, other
    label: str = ""
    uid: str = ""
    table: str = ""         # PTTYPE: it has a partition table
    ambivalent: tuple[str, ...] = ()  # several types, of which it could be each

    @property
    def is_file_system(self) -> bool:
        """Tell whether it can be tried to mount it."""
        return self.usage == "filesystem" and self.kind not in _NOTHING_TO_SEE

    @property
    def nothing_to_see(self) -> str | None:
        """Return why there is nothing in it that could be looked at; None if there may be."""
        if self.kind in _NOTHING_TO_SEE:
            return _NOTHING_TO_SEE[self.kind]
        if self.kind or self.ambivalent:
            return None
        if self.table == "dos":
            return "partitions of its own; those of an extended partition are listed too"
        return f"a partition table ({self.table})" if self.table else "nothing that is known"


def probe(file: str) -> Content:
    """Look what a file or device holds.

    Raises:
        MountError: it cannot be read.
    """
    content = _probe(file)
    if content.nothing_to_see is None or content.kind:
        return content
    error = _unreadable(file)
    if error is None:
        return content
    # blkid gives up where it cannot read, be it the place of a superblock of something else. One at a time, then.
    for kinds in _LIKELY:
        content = _probe(file, "--match-types", kinds)
        if content.kind:
            return content
    raise MountError(f"it cannot be read where it says what it is: {error.strerror}")


def _probe(file: str, *options: str) -> Content:
    done = run("blkid", "--probe", "--output", "udev", *options, "--", file)
    if done.returncode not in {0, 2, 8}:  # found, nothing found, found several things
        raise MountError(f"{file} cannot be looked at: {reason_of(done)}")
    return parse(done.stdout)


def _unreadable(file: str) -> OSError | None:
    """Return the error of a place of a superblock that cannot be read; None if all can."""
    try:
        with open(file, "rb", buffering=0) as opened:
            size = os.fstat(opened.fileno()).st_size
            for offset in (*_PLACES, max(size - _END_BYTES, 0)):
                os.pread(opened.fileno(), _END_BYTES, offset)
    except OSError as error:
        return error
    return None


def parse(output: str) -> Content:
    """Return what blkid printed, in the form for udev, as a value. Pure."""
    lines = [line.partition("=") for line in output.splitlines()]
    fields = {name: value for name, _, value in lines}
    ambivalent = [part.split(":")[1] for part in fields.get(_AMBIVALENT, "").split() if part.count(":") > 0]
    return Content(
        kind=fields.get("ID_FS_TYPE", ""),
        usage=fields.get("ID_FS_USAGE", ""),
        label=_decode(fields.get("ID_FS_LABEL_ENC", "")),
        uid=_decode(fields.get("ID_FS_UUID_ENC", "")),
        table=fields.get("ID_PART_TABLE_TYPE", ""),
        ambivalent=tuple(ambivalent),
    )


def ways(kind: str) -> list[tuple[str, str]]:
    """Return types and options of mount(8) for a type of blkid, to be tried in order. Pure."""
    return [
        (mount_type, f"{_ALWAYS},{options}" if options else _ALWAYS)
        for mount_type, options in _WAYS.get(kind, ((kind, ""),))
    ]


def mount(device: str, directory: str, kind: str) -> str:
    """Mount the file system of a device, and return the options that did it.

    Raises:
        MountError: it cannot be mounted.
    """
    reasons = []
    for mount_type, options in ways(kind):
        done = run("mount", "-t", mount_type, "-o", options, "--", device, directory)
        if done.returncode == 0:
            return options
        reasons.append(reason_of(done))
    known = [reason for reason in reasons if _UNKNOWN_TYPE not in reason]
    if not known:
        raise MountError(f"the kernel of this host has no {kind}, and no program for it is installed")
    raise MountError(known[0].removeprefix(f"{directory}: "))


def other_command(kind: str, device: str, directory: str) -> str:
    """Return a command that goes on with a file system that could not be mounted."""
    if kind in _OTHER_READERS:
        return _OTHER_READERS[kind].format(device=device, directory=quote(directory))
    mount_type, options = ways(kind)[0]
    return f"mount -t {mount_type} -o {options} {device} {quote(directory)}"


def _decode(text: str) -> str:
    r"""Return a value as it was before blkid made `\x20` of a space, and so on."""
    raw = re.sub(
        rb"\\x([0-9a-f]{2})", lambda match: bytes((int(match[1], 16),)), os.fsencode(text)
    )
    return os.fsdecode(raw)
