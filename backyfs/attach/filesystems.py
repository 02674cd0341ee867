"""Find out what an image or a partition contains, and mount it read-only, with or without replaying its journal.

The kernel replays a journal whenever it mounts a writable device, even if the mount is read-only. Without replay, a
mount lacks whatever is only in the journal: the last seconds before the backup, or with xfs much more. Types and their
names are those of blkid.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from backyfs.errors import MountError
from backyfs.host.programs import reason_of, run
from backyfs.remedies import Advice, Remedy
from backyfs.text import shell_word, shell_words

# The files of a backup come from another system, so its setuid programs and device nodes cannot be trusted. Programs
# may run: old data may need the old program to read it.
ALWAYS = "ro,nosuid,nodev"

# type of blkid -> types and options of mount(8) to try, in order
_ATTEMPTS: dict[str, tuple[tuple[str, str], ...]] = {
    "ext2": (("ext2", ""), ("ext4", "")),
    "ext3": (("ext3", ""), ("ext4", "")),
    "xfs": (("xfs", "nouuid"),),  # the original, or another version, may be mounted on this host
    "ntfs": (("ntfs3", ""), ("ntfs-3g", ""), ("ntfs", "")),
    "vfat": (("vfat", "utf8"), ("vfat", "")),
    "exfat": (("exfat", ""), ("exfat-fuse", "")),
    "ufs": (("ufs", "ufstype=ufs2"), ("ufs", "ufstype=44bsd")),
}
# The same without replaying the journal, for each type whose journal the kernel replays.
_BARE_ATTEMPTS: dict[str, tuple[tuple[str, str], ...]] = {
    "ext3": (("ext3", "noload"), ("ext4", "noload")),
    "ext4": (("ext4", "noload"),),
    "xfs": (("xfs", "norecovery,nouuid"),),
    "btrfs": (("btrfs", "rescue=nologreplay"), ("btrfs", "nologreplay")),  # the first since Linux 5.9
    "f2fs": (("f2fs", "norecovery"),),
    "nilfs2": (("nilfs2", "norecovery"),),
    "reiserfs": (("reiserfs", "nolog"),),
}
_UNKNOWN_TYPE = "unknown filesystem type"  # printed by mount(8) if the kernel lacks the type

# type of blkid -> a command that reads it if the kernel cannot
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

# type of blkid -> a command that repairs a damaged journal
_REPAIRS = {
    "ext3": "e2fsck -fy",
    "ext4": "e2fsck -fy",
    "xfs": "xfs_repair -L",
    "btrfs": "btrfs rescue zero-log",
    "f2fs": "fsck.f2fs -f",
    "reiserfs": "reiserfsck --fix-fixable",
    "ntfs": "ntfsrecover",
    "jfs": "jfs_fsck -f",
    "hfsplus": "fsck.hfsplus -f",
}

_AMBIVALENT = "ID_FS_AMBIVALENT"
_EMPTY_KINDS = {
    "swap": "swap space, which has no files",
    "swsuspend": "the memory of a system that was hibernated",
    "jbd": "the journal of another file system",
    "xfs_external_log": "the log of another file system",
}
# type of blkid -> the type of a device that can contain its journal, and the option of mount(8) for that device
_EXTERNAL_JOURNALS = {
    "ext3": ("jbd", "journal_path"),
    "ext4": ("jbd", "journal_path"),
    "xfs": ("xfs_external_log", "logdev"),
}


# The types to look for if some places cannot be read, and the places of superblocks.
_LIKELY = ("ext2,ext3,ext4", "xfs", "ntfs", "crypto_LUKS", "LVM2_member", "btrfs", "vfat", "linux_raid_member")
_PLACES = (0, 4096, 32 << 10, 64 << 10)
_END_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The content of an image or a partition, as found by blkid."""

    kind: str = ""          # TYPE of blkid: ext4, LVM2_member, crypto_LUKS, …; '' if unknown
    usage: str = ""         # filesystem, raid, crypto, other
    label: str = ""
    uid: str = ""
    table: str = ""         # PTTYPE: it has a partition table
    ambivalent: tuple[str, ...] = ()  # all types that it could be, if there are several
    journal_uid: str = ""   # of its journal on another device; if this is such a journal: its uid in file systems

    @property
    def is_file_system(self) -> bool:
        """Whether it can be mounted."""
        return self.usage == "filesystem" and self.kind not in _EMPTY_KINDS

    @property
    def has_journal(self) -> bool:
        """Whether the kernel replays a journal when it is mounted."""
        return self.kind in _BARE_ATTEMPTS

    def is_journal_of(self, other: Content) -> bool:
        """Return whether this device contains the journal of another file system."""
        kind, _ = _EXTERNAL_JOURNALS.get(other.kind, ("", ""))
        return kind == self.kind != "" and self.journal_uid == (other.journal_uid or other.uid)

    @property
    def why_empty(self) -> str | None:
        """The reason why there is nothing in it to look at; None if there may be something."""
        if self.kind in _EMPTY_KINDS:
            return _EMPTY_KINDS[self.kind]
        if self.kind or self.ambivalent:
            return None
        if self.table == "dos":
            return "partitions, which are listed separately"
        return f"a partition table ({self.table})" if self.table else "unknown content"


def probe(file: str) -> Content:
    """Find out what a file or device contains.

    Raises:
        MountError: it cannot be read.
    """
    content = _probe(file)
    if content.why_empty is None or content.kind:
        return content
    error = _unreadable(file)
    if error is None:
        return content
    # blkid gives up at any place it cannot read, even the place of another type. So try the types one at a time.
    for kinds in _LIKELY:
        content = _probe(file, "--match-types", kinds)
        if content.kind:
            return content
    raise MountError(f"cannot be read where its type is stored: {error.strerror}", subject=file)


def _probe(file: str, *options: str) -> Content:
    done = run("blkid", "--probe", "--output", "udev", *options, "--", file)
    if done.returncode not in {0, 2, 8}:  # found, nothing found, found several things
        raise MountError(f"cannot be examined: {reason_of(done)}", subject=file)
    return parse(done.stdout)


def _unreadable(file: str) -> OSError | None:
    """Return the error of the first place of a superblock that cannot be read; None if all can be read."""
    try:
        with open(file, "rb", buffering=0) as opened:
            size = os.fstat(opened.fileno()).st_size
            for offset in (*_PLACES, max(size - _END_BYTES, 0)):
                os.pread(opened.fileno(), _END_BYTES, offset)
    except OSError as error:
        return error
    return None


def parse(output: str) -> Content:
    """Parse what blkid printed in its format for udev. Pure."""
    lines = [line.partition("=") for line in output.split("\n")]
    fields = {name: value for name, _, value in lines}
    ambivalent = [part.split(":")[1] for part in fields.get(_AMBIVALENT, "").split() if part.count(":") > 0]
    return Content(
        kind=fields.get("ID_FS_TYPE", ""),
        usage=fields.get("ID_FS_USAGE", ""),
        label=_decode(fields.get("ID_FS_LABEL_ENC", "")),
        uid=_decode(fields.get("ID_FS_UUID_ENC", "")),
        table=fields.get("ID_PART_TABLE_TYPE", ""),
        ambivalent=tuple(ambivalent),
        journal_uid=_decode(fields.get("ID_FS_EXT_JOURNAL", "") or fields.get("ID_FS_LOGUUID", "")),
    )


def mount_attempts(kind: str, *, replay: bool, journal: str | None = None) -> list[tuple[str, str]]:
    """Return types and options of mount(8) for a type of blkid, to try in this order. Pure.

    `journal` is the device of its journal, if that is a separate one.
    """
    found = _ATTEMPTS.get(kind, ((kind, ""),)) if replay or kind not in _BARE_ATTEMPTS else _BARE_ATTEMPTS[kind]
    external = "" if journal is None else f"{_EXTERNAL_JOURNALS[kind][1]}={journal}"
    return [
        (mount_type, ",".join(filter(None, (ALWAYS, options, external)))) for mount_type, options in found
    ]


def mount(device: str, directory: str, kind: str, *, replay: bool, journal: str | None = None) -> str:
    """Mount the file system of a device, and return the options that worked.

    Raises:
        MountError: it cannot be mounted.
    """
    reasons = []
    for mount_type, options in mount_attempts(kind, replay=replay, journal=journal):
        done = run("mount", "-t", mount_type, "-o", options, "--", device, directory)
        if done.returncode == 0:
            return options
        reasons.append(reason_of(done, about=directory))
    known = [reason for reason in reasons if _UNKNOWN_TYPE not in reason]
    if not known:
        raise MountError(
            f"the kernel of this host does not support {kind}, and no program for it is installed",
            subject=f"{directory}:",
        )
    raise MountError(known[0], subject=f"{directory}:")


def other_command(kind: str, device: str, directory: str) -> str:
    """Return a command to continue with for a file system that could not be mounted."""
    if kind in _OTHER_READERS:
        return _OTHER_READERS[kind].format(device=shell_word(device), directory=shell_word(directory))
    mount_type, options = mount_attempts(kind, replay=False)[0]
    return shell_words("mount", "-t", mount_type, "-o", options, device, directory)


def repair_commands(kind: str, version_uid: str, name: str) -> tuple[str | Remedy, ...]:
    """Return commands that repair a file system in a layer above the image, and mount it. Pure.

    `name` is the partition, or `data`.
    """
    image = f"/mnt/by_version_uid/{version_uid}/{f'partitions/{name}' if name.isdecimal() else name}"
    repair = _REPAIRS.get(kind)
    return (
        Advice.MOUNT_FOR_REPAIR(uid=shell_word(version_uid), place="repaired"),
        *(() if repair is None else (f"{repair} {shell_word(image)}",)),
        shell_words("mount", "-o", f"loop,{ALWAYS}{',nouuid' if kind == 'xfs' else ''}", image, "DIR"),
    )


def _decode(text: str) -> str:
    r"""Undo the escapes of blkid, such as `\x20` for a space."""
    raw = re.sub(
        rb"\\x([0-9a-f]{2})", lambda match: bytes((int(match[1], 16),)), os.fsencode(text)
    )
    return os.fsdecode(raw)
