"""Remedies in the words of the command line: options and commands, for what the library says in neutral ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.errors import BackyfsError
from backyfs.remedies import Advice, Remedy
from backyfs.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Mapping

# Values between backquotes are words of a command, and quoted for the shell.
RENDERINGS = {
    # The configuration and the database.
    Advice.MAKE_REPOSITORY: "run `backyfs init` or name another file with -c",
    Advice.MAKE_REPOSITORY_AGAIN: "run `backyfs init` again",
    Advice.MAKE_RECOVERY_PAGE_AGAIN: "make it again with `backyfs init`, nothing is lost",
    Advice.MAKE_REPOSITORY_ELSEWHERE: (
        "to make another repository, name other places with -c, --data and --db (after an `init` that was killed: move "
        "it away)"
    ),
    Advice.INITIALIZE_DATABASE: "run `backyfs initdb` to make one",
    Advice.INITIALIZE_OR_CORRECT_DATABASE: (
        "run `backyfs initdb` to make one, or correct `engine` of [MetaBackend]"
    ),
    Advice.RECOVER_OR_CORRECT_DATABASE: (
        "run `backyfs recover` to rebuild the database, or correct `engine` of [MetaBackend]"
    ),
    Advice.UPGRADE_DATABASE: "run `backyfs upgrade`",
    Advice.PREVIEW_UPGRADE: "`backyfs upgrade --dry-run` shows more",
    Advice.COPY_ELSEWHERE: "name another directory with `backyfs upgrade --copy-to`",
    Advice.WAIT_FOR_JOBS: "try again when they have ended, or wait longer with `backyfs upgrade --wait`",
    Advice.FREE_DISK_SPACE: (
        "free some space there; `backyfs rm` and `backyfs cleanup` have a reserve and can make room"
    ),
    Advice.RECOVER_DATABASE: (
        "restore the database from a copy, or run `backyfs recover` to rebuild it from the storage"
    ),
    Advice.CORRECT_ROW: (
        "correct the row, restore the database from a copy, or run `backyfs recover` to rebuild it from the storage"
    ),
    Advice.RECOVER_FROM_CATALOG: "`backyfs recover` rebuilds the database from the catalog in the storage",
    Advice.GIVE_CATALOG_KEY: "name it with --key-file, --passphrase-file or --from-recovery",
    Advice.RECOVER_AGAIN: "run `backyfs recover` again",
    Advice.RECOVER_STORAGE: "`backyfs recover {path}` rebuilds its database, or name another directory",
    Advice.IMPORT_EXPORT: "a database can also be rebuilt from an export with `backyfs import`",
    Advice.CLEAN_UP_FULLY: "run `backyfs cleanup --full`, which counts again",
    # Versions.
    Advice.LIST_VERSIONS: "`backyfs ls` lists the versions",
    Advice.READ_DAMAGED_VERSION: (
        "`backyfs restore {uid} TARGET` writes everything else and lists the bad ranges; `backyfs mount` reads "
        "everything else; `backyfs repair` may fix it"
    ),
    Advice.CONTINUE_VERSION: "continue it with `backyfs backup --continue-version {uid}`",
    Advice.CONTINUE_BACKUP: (
        "add --continue-version {uid} to continue where it stopped, or start over: stored blocks are used again"
    ),
    Advice.UNPROTECT_VERSION: "run `backyfs unprotect {uid}` first",
    Advice.REMOVE_YOUNG: "add --force to remove it all the same",
    Advice.REMOVE_LAST: (
        "make another backup first, or force its removal with --force (with --expired: --even-last)"
    ),
    Advice.REMOVE_VERSIONS: "check the clock of this host; if it is right, remove them with `backyfs rm`",
    Advice.CONFIGURE_SCHEDULER: (
        "write a section [daily] with interval, keep and sla, or name others with --schedulers"
    ),
    Advice.REMOVE_TAGS: "remove some tags with `backyfs remove-tag`",
    # Blocks, the storage and the catalog.
    Advice.SCRUB: "run `backyfs scrub`",
    Advice.SCRUB_EVERYTHING: "run `backyfs scrub --all` to learn which versions have them",
    Advice.SCRUB_VERSION: "run `backyfs scrub {uid}`",
    Advice.SCRUB_OR_RECOVER: "run `backyfs scrub`, and see `backyfs recover`",
    Advice.CONTINUE_SCRUB: "a scrub with --not-since continues from there",
    Advice.REPAIR_BLOCKS: "a backup of the same bytes, or `backyfs repair`, makes it whole",
    Advice.REPAIR_OR_BACK_UP: (
        "back up their sources again or run `backyfs repair`, and keep what can be restored"
    ),
    Advice.SEARCH_SOURCE: "add --search to look everywhere in the source",
    Advice.NAME_REPAIR_SOURCE: "name a source with --from",
    Advice.UNIFY_ENCRYPTION: "run `backyfs migrate-encryption --all` to re-encrypt them",
    Advice.MIGRATE_ENCRYPTION: "run `backyfs migrate-encryption --all`",
    Advice.MIGRATE_ENCRYPTION_TO_BACKY2: (
        "run `backyfs migrate-encryption --all --to 1` first, or export without --format backy2"
    ),
    Advice.WRITE_CATALOG: "run `backyfs catalog push`",
    Advice.WRITE_WHOLE_CATALOG: "run `backyfs catalog push --all`",
    Advice.WRITE_CATALOG_OR_ALL: (
        "`backyfs catalog push` writes what is known to be missing, and with --all everything"
    ),
    Advice.WRITE_CATALOG_IF_DELETED: "if the catalog was deleted, `backyfs catalog push --all` writes it again",
    Advice.WRITE_CATALOG_IF_LOST: (
        "if its disk is not mounted, mount it; if [DataBackend] names a wrong place, correct it; if its content "
        "really is lost, run `backyfs catalog push --all`"
    ),
    Advice.REPLACE_MARKER: (
        "if the storage is the right one, move that object away and run `backyfs catalog push --all`"
    ),
    Advice.RECOVER_OR_DROP_ORPHANS: (
        "`backyfs recover` makes a database of the catalog, `backyfs catalog push` gives them up"
    ),
    Advice.DELETE_ORPHANS: (
        "import the versions that use them, or delete them with `backyfs cleanup --full --dangerous-force`"
    ),
    # Keys.
    Advice.LIST_KEY_SLOTS: "`backyfs key list` shows them",
    Advice.ADD_KEY_SLOT: "add another one first with `backyfs key add`",
    Advice.ADD_SLOT_FROM_RECOVERY: (
        "add a slot from a recovery page (`backyfs key add --from-recovery`), restore the database from a copy, or run "
        "`backyfs recover` to rebuild it from the storage"
    ),
    Advice.REMOVE_KEY_SLOT: "remove one with `backyfs key remove`",
    Advice.REMOVE_USED_KEY_SLOT: "configure another key first, or add --force",
    Advice.CHANGE_KEY_SLOT: "give another label, or use `backyfs key change`",
    Advice.OPEN_LISTED_SLOT: (
        "give the passphrase of a slot that `backyfs key list` shows, or configure the key"
    ),
    Advice.REKEY: "in the latter case run `backyfs rekey` first",
    Advice.REKEY_FROM_BACKY2: "run `backyfs rekey --old-key-file FILE` with that key",
    Advice.GIVE_OLD_KEY: "give that key with --old-key-file",
    Advice.GIVE_BACKY2_KEY: "give that key with --key-file",
    Advice.LEAVE_DAMAGED_KEYS: "add --leave-damaged to leave these blobs unreadable and continue",
    # Restore.
    Advice.OVERWRITE_TARGET: "add --force to overwrite it",
    Advice.OVERWRITE_OR_NAME_TARGET: "name another target, or add --force to overwrite it",
    Advice.RESTORE_AGAIN: "{step}, then restore it again with --force, or to another disk",
    Advice.CONTINUE_RESTORE: "the target is incomplete: add --continue-from {block} to continue",
    Advice.CONTINUE_RESTORE_OF_PART: (
        "the target is incomplete: add --force --offset {offset} --length {length} to continue"
    ),
    Advice.CONTINUE_EARLIER: "continue from an earlier block, or restore it again with --force",
    Advice.RESTORE_PART: "choose --offset and --length within it",
    # Mounts.
    # A line of a list of commands, not a part of a sentence.
    Advice.MOUNT_FOR_REPAIR: "backyfs mount --version {uid} --writable /var/tmp/{place} --discard /mnt",
    Advice.UNMOUNT: "run `backyfs umount {path}` first",
    Advice.UNMOUNT_AS_ROOT: "run `backyfs umount {path}` as root",
    Advice.DETACH: "run `backyfs detach {path}`",
    Advice.DETACH_REST: "run `backyfs detach {path}` to remove what is left",
    Advice.READ_WITHOUT_LOOP_DEVICES: (
        "without loop devices, run `backyfs mount DIR`: debugfs or fuse2fs (ext), 7z, guestmount, or qemu-nbd on a "
        "host that has them can read the image DIR/by_name/NAME/latest/data and its partitions/N"
    ),
    Advice.DETACH_OR_NAME_DIRECTORY: "run `backyfs detach {path}` first, or name another directory",
    Advice.NAME_OVERLAY: "name another directory with --writable",
    Advice.UNMOUNT_OR_NAME_OVERLAY: "unmount that one first, or name another directory with --writable",
    Advice.DROP_OR_NAME_OVERLAY: (
        "remove {map} and {data} there, which drops what was written to this version, or name another directory with "
        "--writable"
    ),
    Advice.LEAVE_OUT_OVERLAY: "mount without --writable to read this version",
}


def render_error(error: BackyfsError) -> str:
    """Return the message of an error, with its remedy as options and commands."""
    return error.statement if error.remedy is None else f"{error.statement}; {render_remedy(error.remedy)}"


def render_remedy(remedy: Remedy) -> str:
    """Return a remedy as options and commands."""
    text = remedy.text if remedy.advice is None else _filled(RENDERINGS[remedy.advice], remedy.values)
    return text if remedy.next is None else f"{text}; {render_remedy(remedy.next)}"


def render(value: object) -> object:
    """Return what to print for a value that may be an error or a remedy; any other one as it is."""
    if isinstance(value, BackyfsError):
        return render_error(value)
    return render_remedy(value) if isinstance(value, Remedy) else value


def _filled(template: str, values: Mapping[str, object]) -> str:
    quoted = {name: shell_word(str(value)) for name, value in values.items()}
    parts = template.split("`")
    return "`".join(part.format(**(quoted if number % 2 else values)) for number, part in enumerate(parts))
