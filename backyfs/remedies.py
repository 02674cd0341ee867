"""What the user can do about an error, as values: in neutral words for callers of the library.

An `Advice` is a remedy that a front end may word in its own way, because it can offer it: the command line shows an
option or a command (`cli/remedies.py`), a web page could show a button. It is called with its values:

    raise TargetError("is a block device", subject=path, remedy=Advice.OVERWRITE_TARGET())
    _log.warning("version %s is invalid now; %s", uid, Advice.REPAIR_BLOCKS())

A remedy that every front end words alike, such as "name another directory", is a text.
An enum with templates, and not a class for each advice: a template is its own documentation, and one table per front
end is enough. A test compares the values that calls pass with the names in the templates.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, unique
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@unique
class Advice(Enum):
    """A remedy that the front end can offer; its value is the neutral wording, with the names of its values."""

    # The configuration and the database.
    MAKE_REPOSITORY = "create a repository, or name another configuration file"
    MAKE_REPOSITORY_AGAIN = "create the repository again"
    MAKE_RECOVERY_PAGE_AGAIN = "create the repository again, nothing is lost"
    MAKE_REPOSITORY_ELSEWHERE = "name other places for another repository; if creating one was killed, move it away"
    INITIALIZE_DATABASE = "initialize it"
    INITIALIZE_OR_CORRECT_DATABASE = "initialize it, or correct `engine` of [MetaBackend]"
    RECOVER_OR_CORRECT_DATABASE = "rebuild the database from that copy, or correct `engine` of [MetaBackend]"
    UPGRADE_DATABASE = "upgrade it"
    PREVIEW_UPGRADE = "a dry run of the upgrade shows more"
    COPY_ELSEWHERE = "name another directory for the copy"
    WAIT_FOR_JOBS = "try again when they have ended, or wait longer"
    FREE_DISK_SPACE = "free some space there; removing versions and cleaning up have a reserve and can make room"
    RECOVER_DATABASE = "restore the database from a copy, or rebuild it from the storage"
    CORRECT_ROW = "correct the row, restore the database from a copy, or rebuild it from the storage"
    RECOVER_FROM_CATALOG = "rebuild the database from the catalog in the storage"
    GIVE_CATALOG_KEY = "give that key or passphrase, or a recovery page"
    RECOVER_AGAIN = "run the recovery again"
    RECOVER_STORAGE = "rebuild its database from the storage {path}, or name another directory"
    IMPORT_EXPORT = "a database can also be rebuilt from an export"
    CLEAN_UP_FULLY = "run a full cleanup, which counts again"

    # Versions.
    LIST_VERSIONS = "list the versions to see which there are"
    READ_DAMAGED_VERSION = (
        "a restore writes everything else and lists the bad ranges; a mount reads everything else; a repair may fix it"
    )
    CONTINUE_VERSION = "continue its backup"
    CONTINUE_BACKUP = (
        "continue the version where it stopped, or start over: stored blocks are used again"
    )
    UNPROTECT_VERSION = "unprotect it first"
    REMOVE_YOUNG = "force its removal"
    REMOVE_LAST = "make another backup first, or force its removal"
    REMOVE_VERSIONS = "check the clock of this host; if it is right, remove them"
    CONFIGURE_SCHEDULER = "write a section [daily] with interval, keep and sla, or name other schedulers"
    REMOVE_TAGS = "remove some tags"

    # Blocks, the storage and the catalog.
    SCRUB = "scrub the repository"
    SCRUB_EVERYTHING = "scrub all versions to learn which of them have these blobs"
    SCRUB_VERSION = "scrub version {uid}"
    SCRUB_OR_RECOVER = "scrub the repository, or rebuild its database"
    CONTINUE_SCRUB = "to continue from there, scrub only blocks not checked since"
    REPAIR_BLOCKS = "another backup of the same bytes, or a repair, makes it whole"
    REPAIR_OR_BACK_UP = "back up their sources again or repair the blocks, and keep what can be restored"
    SEARCH_SOURCE = "search the whole source"
    NAME_REPAIR_SOURCE = "name a source to repair from"
    UNIFY_ENCRYPTION = "re-encrypt all blocks to store them alike"
    MIGRATE_ENCRYPTION = "re-encrypt all blocks"
    MIGRATE_ENCRYPTION_TO_BACKY2 = "re-encrypt all blocks in version 1 first, or export in the format of backyfs"
    WRITE_CATALOG = "write the catalog"
    WRITE_WHOLE_CATALOG = "write the whole catalog"
    WRITE_CATALOG_OR_ALL = "write what the catalog is known to lack, or the whole catalog"
    WRITE_CATALOG_IF_DELETED = "if the catalog was deleted, write the whole catalog again"
    WRITE_CATALOG_IF_LOST = (
        "if its disk is not mounted, mount it; if [DataBackend] names a wrong place, correct it; if its content "
        "really is lost, write the whole catalog"
    )
    REPLACE_MARKER = "if the storage is the right one, move that object away and write the whole catalog"
    RECOVER_OR_DROP_ORPHANS = "recover the database from the catalog, or write the catalog to give them up"
    DELETE_ORPHANS = "import the versions that use them, or force a full cleanup to delete them"

    # Keys.
    LIST_KEY_SLOTS = "list the key slots"
    ADD_KEY_SLOT = "add another one first"
    ADD_SLOT_FROM_RECOVERY = (
        "add a slot from a recovery page, restore the database from a copy, or rebuild it from the storage"
    )
    REMOVE_KEY_SLOT = "remove one first"
    REMOVE_USED_KEY_SLOT = "configure another key first, or force its removal"
    CHANGE_KEY_SLOT = "give another label, or change that slot"
    OPEN_LISTED_SLOT = "give the passphrase of one of its key slots, or configure the key"
    REKEY = "if it comes from backy2, give it a key of its own first"
    REKEY_FROM_BACKY2 = "give it a key of its own, with that key as the old one"
    GIVE_OLD_KEY = "give that key as the old key"
    GIVE_BACKY2_KEY = "give that key"
    LEAVE_DAMAGED_KEYS = "leave these blobs unreadable to continue without them"

    # Restore.
    OVERWRITE_TARGET = "allow overwriting it"
    OVERWRITE_OR_NAME_TARGET = "name another target, or allow overwriting it"
    RESTORE_AGAIN = "{step}, then restore again, overwriting the target or to another disk"
    CONTINUE_RESTORE = "the target is incomplete: continue from block {block}"
    CONTINUE_RESTORE_OF_PART = "the target is incomplete: restore bytes {offset} to {stop} again, overwriting them"
    CONTINUE_EARLIER = "continue from an earlier block, or restore all of it again, overwriting the target"
    RESTORE_PART = "choose an offset and a length within it"

    # Mounts.
    MOUNT_FOR_REPAIR = "mount version {uid} writable on /mnt, with its writes in /var/tmp/{place} until the end"
    UNMOUNT = "unmount {path} first"
    UNMOUNT_AS_ROOT = "unmount {path} as root"
    DETACH = "detach {path}"
    DETACH_REST = "detach {path} to remove what is left"
    READ_WITHOUT_LOOP_DEVICES = (
        "without loop devices, mount the repository: debugfs or fuse2fs (ext), 7z, guestmount, or qemu-nbd on a host "
        "that has them can read its images and their partitions"
    )
    DETACH_OR_NAME_DIRECTORY = "detach {path} first, or name another directory"
    NAME_OVERLAY = "name another directory for what is written"
    UNMOUNT_OR_NAME_OVERLAY = "unmount that one first, or name another directory for what is written"
    DROP_OR_NAME_OVERLAY = (
        "remove {map} and {data} there, which drops what was written to this version, or name another directory for "
        "what is written"
    )
    LEAVE_OUT_OVERLAY = "mount read-only to read this version"

    def __call__(self, **values: object) -> Remedy:
        """Return the remedy with the values that its text names."""
        return Remedy(str(self.value).format(**values), advice=self, values=values)


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to do about an error: a text, or an advice with its values; `str` gives the neutral words."""

    text: str
    advice: Advice | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    next: Remedy | None = None  # what is to be done as well, or instead

    def __str__(self) -> str:
        return self.text if self.next is None else f"{self.text}; {self.next}"

    def then(self, other: Remedy) -> Remedy:
        """Return this remedy, followed by another one."""
        return replace(self, next=other if self.next is None else self.next.then(other))
