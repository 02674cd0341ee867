"""What can go wrong, as classes with fields; each class has the exit status of the command it ends.

    BackyfsError                 100  anything without a class of its own
    |-- UsageError                 1  arguments that make no sense together
    |-- ConfigError                1  a mistake in the configuration: section, key, line
    |-- DatabaseError              1  the metadata cannot be read or written
    |   |-- DatabaseBusyError      1  another command has the database, and waiting took too long
    |   |-- DatabaseFullError      1  there is no room on the disk of the database
    |   |-- DamagedPageError       1  a page of a block map is not what was stored
    |   |-- JobsRunningError       1  running commands stand in the way of an upgrade
    |   `-- SchemaError            1  the database is newer, or holds no repository
    |       |-- SchemaOutdatedError 1  it is older, and can be upgraded
    |       `-- NoRepositoryError  1  it holds no repository
    |-- KeyMaterialError           3  the key of the repository
    |   |-- MissingKeyError        3  none is configured, or it cannot be read
    |   `-- WrongKeyError          3  it is not the key of this repository
    |-- VersionError               4  the named version
    |   |-- VersionNotFoundError   4  no version, or more than one, answers to that name
    |   |-- VersionIncompleteError 4  its backup never ended
    |   |-- VersionKeptError       4  it may not be removed: protected, too young, in use, or the last valid one
    |   `-- VersionExistsError    22  an import names one that is there already
    |-- ExportFormatError         23  a file to import is not whole, or is no export at all
    |-- StorageError               6  the storage refuses, is full or is gone
    |   |-- WrongStorageError      6  it is not the storage of this repository
    |   |-- StorageFullError       6  it has no room
    |   |-- StorageRefusedError    6  permissions, or it is read-only
    |   |-- StorageAwayError       6  it does not answer, and may do so later
    |   |-- ObjectUnreadableError  6  it has something in the place of one object that cannot be read
    |   |-- ObjectsKeptError       6  some objects cannot be deleted
    |   `-- ObjectMissingError     6  it has no such object
    |-- IntegrityError            20  stored bytes are not what was stored
    |   |-- OddValueError         20  a value in the database cannot be
    |   `-- CatalogError          20  the catalog in the storage is not that of the repository, or not whole
    |-- HintsError                 5  hints do not fit the source, or the base they are for
    |-- SourceError                7  what is to be backed up cannot be read
    |-- TargetError                8  where to restore to: exists, too small, in use
    |   `-- ReaderGoneError        8  stdout, which nobody reads any more: the end of a restore to it, and no failure
    |-- OutputError               8  stdout cannot be written, and the command was run for what it prints
    |-- JobLostError               9  this command's row in `jobs` was removed under it
    |-- MountError                10  mounting, unmounting, FUSE
    |-- HookError                 11  a before_ hook of the configuration failed; the command was not done
    `-- InterruptedByUser        130  SIGINT or SIGTERM; what was stored stays usable

Statuses 1, 5, 6, 20, 22, 23 and 100 mean what they mean in backy2.

An error consists of subject, fact and remedy, each in its own field; the message is made of them and fits on one line:
"blob 1f is missing from the storage; scrub the repository". All three can be assigned, so nobody takes a message apart:

- A low module that does not know the subject raises the fact alone ("is cut short"). Its caller assigns the subject
  and raises the same error again, which keeps its class: `error.subject = f"blob {uid}"; raise`.
- An error of another class is made from the fields: `DatabaseError(error.fact, subject=…, remedy=error.remedy)`.
- The remedy is a value (`remedies.py`), because the command line words it as options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.remedies import Advice, Remedy

if TYPE_CHECKING:
    from collections.abc import Mapping


class BackyfsError(Exception):
    """Base of all errors that a caller can expect.

    `subject` is what the fact is about. It may be empty, and may end in a colon: "/path: Permission denied". A remedy
    that is given as a text is one without an advice.
    """

    exit_status = 100

    def __init__(self, fact: str, *, subject: str = "", remedy: Remedy | str | None = None) -> None:
        self.subject = subject
        self.fact = fact
        self.remedy = Remedy(remedy) if isinstance(remedy, str) else remedy
        super().__init__(fact)

    def __str__(self) -> str:
        return self.without("")

    @property
    def statement(self) -> str:
        """Subject and fact: the message without its remedy."""
        return f"{self.subject} {self.fact}" if self.subject else self.fact

    def without(self, subject: str) -> str:
        """Return the message without its subject, if that is this one: for a text that has named it already."""
        parts = (self.fact if self.subject == subject else self.statement, self.remedy)
        return "; ".join(str(part) for part in parts if part is not None)

    def advise(self, remedy: Remedy) -> None:
        """Add a remedy, after the one there is."""
        self.remedy = remedy if self.remedy is None else self.remedy.then(remedy)

    def __reduce__(self) -> tuple[object, ...]:
        # The arguments of a subclass are not those that `Exception` remembers; the fields are all there is.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class UsageError(BackyfsError):
    """Arguments that make no sense together."""

    exit_status = 1


class ConfigError(BackyfsError):
    """A mistake in the configuration, with its place."""

    exit_status = 1

    def __init__(
        self,
        fact: str,
        *,
        file: str = "",
        section: str = "",
        key: str = "",
        line: int | None = None,
        remedy: Remedy | str | None = None,
    ) -> None:
        """Make an error whose subject is its place: "FILE, line LINE: [SECTION] KEY:"."""
        self.file = file
        self.section = section
        self.key = key
        self.line = line
        place = file if line is None else f"{file}, line {line}"
        name = f"[{section}] {key}" if key else f"[{section}]" if section else ""
        super().__init__(fact, subject=" ".join(f"{part}:" for part in (place, name) if part), remedy=remedy)


class DatabaseError(BackyfsError):
    """The metadata cannot be read or written."""

    exit_status = 1


class DatabaseBusyError(DatabaseError):
    """Another command has the database, and does not let go of it."""


class DatabaseFullError(DatabaseError):
    """Nothing can be written to the database: its disk is full, or a quota or size limit is reached."""


class DamagedPageError(DatabaseError):
    """A page of a block map is not what was stored; the rest of the database may be."""


class JobsRunningError(DatabaseError):
    """Commands that are running stand in the way of an upgrade."""


class SchemaError(DatabaseError):
    """The database has another schema than this program works with."""


class SchemaOutdatedError(SchemaError):
    """The schema is older than the program's, and can be upgraded."""


class NoRepositoryError(SchemaError):
    """The database holds no repository."""


class KeyMaterialError(BackyfsError):
    """Something is the matter with the key of the repository."""

    exit_status = 3


class MissingKeyError(KeyMaterialError):
    """A key is needed and none can be had."""


class WrongKeyError(KeyMaterialError):
    """A key is there, and it is not the repository's."""


class VersionError(BackyfsError):
    """Something is the matter with the named version."""

    exit_status = 4


class VersionNotFoundError(VersionError):
    """No version, or more than one, answers to the name."""


class VersionIncompleteError(VersionError):
    """The version's backup never ended."""


class VersionKeptError(VersionError):
    """The version may not be removed: protected, too young, in use by a running command, or the last valid one."""


class VersionExistsError(VersionError):
    """A version that is to be imported is there already."""

    exit_status = 22


class ExportFormatError(BackyfsError):
    """A file is no export, or not all of one."""

    exit_status = 23


class StorageError(BackyfsError):
    """The storage does not do what it was asked."""

    exit_status = 6


class WrongStorageError(StorageError):
    """The storage is not that of this repository: another one, or a mount point without its file system."""


class ObjectUnreadableError(StorageError):
    """The storage is there, and cannot give or delete one object: a bad sector, a FIFO in its place, its mode."""


class StorageFullError(StorageError):
    """The storage has no room."""


class StorageRefusedError(StorageError):
    """The storage does not permit it: permissions, or a file system that is read-only."""


class StorageAwayError(StorageError):
    """The storage does not answer, and may do so later."""


class ObjectsKeptError(StorageError):
    """Some objects cannot be deleted."""

    def __init__(self, kept: Mapping[str, ObjectUnreadableError]) -> None:
        """Take the error of each object that was kept, by its key; at least one."""
        self.kept = kept
        first, *others = kept.values()
        fact = f"{first.fact} (and {len(others)} more)" if others else first.fact
        super().__init__(fact, subject=first.subject, remedy=first.remedy)


class ObjectMissingError(StorageError):
    """The storage has no object with this key."""

    def __init__(
        self, key: str, fact: str = "is missing from the storage", *, remedy: Remedy | str | None = None
    ) -> None:
        """Name an object: a blob by its uid, a named object by its name."""
        self.key = key
        super().__init__(fact, subject=f"{'object' if '/' in key else 'blob'} {key}", remedy=remedy)


class IntegrityError(BackyfsError):
    """The stored bytes of a blob are not what was stored."""

    exit_status = 20


class OddValueError(IntegrityError):
    """A row of the database has a value that cannot be: nothing of ours has written it."""

    def __init__(self, table: str, column: str, oddity: str, row: str = "") -> None:
        self.table = table
        self.column = column
        self.oddity = oddity  # the value, and what was expected
        self.row = row        # which one, if known
        place = f"table {table}, {row}" if row else f"table {table}"
        super().__init__(
            f"is damaged: {place} has an impossible {column}: {oddity}",
            subject="the database",
            remedy=Advice.CORRECT_ROW(),
        )


class CatalogError(IntegrityError):
    """The catalog in the storage, or an object of it, is not what was stored."""


class HintsError(BackyfsError):
    """Hints do not fit what they are for."""

    exit_status = 5


class SourceError(BackyfsError):
    """The source of a backup cannot be read."""

    exit_status = 7


class TargetError(BackyfsError):
    """The target of a restore cannot be used."""

    exit_status = 8


class ReaderGoneError(TargetError):
    """Nobody reads what is written any more; the command ends as `| head` expects it."""


class OutputError(BackyfsError):
    """Stdout cannot be written, and the command was run for what it prints."""

    exit_status = 8

    def __init__(self, error: OSError | None = None) -> None:
        fact = "is closed" if error is None else f"cannot be written: {error.strerror}"
        super().__init__(
            fact, subject="the standard output", remedy="redirect it to a file or program that takes all of it"
        )


class JobLostError(BackyfsError):
    """The row of this job is gone: another host took it for dead."""

    exit_status = 9


class MountError(BackyfsError):
    """Mounting or unmounting failed."""

    exit_status = 10


class HookError(BackyfsError):
    """A command of the administrator, run by `[hooks]`, failed or took too long."""

    exit_status = 11


class InterruptedByUser(BackyfsError):  # noqa: N818 - it is an ending, not an error
    """A signal ended the command; what it had done is kept."""

    exit_status = 130
