"""What can go wrong, as classes with fields; each class has the exit status of the command it ends.

    BackyfsError                 100  any other error
    |-- UsageError                 1  arguments that do not fit together
    |-- ConfigError                1  a mistake in the configuration: section, key, line
    |-- DatabaseError              1  the metadata cannot be read or written
    |   |-- DatabaseBusyError      1  another command locks the database for too long
    |   |-- DatabaseFullError      1  there is no room on the disk of the database
    |   |-- DamagedPageError       1  a page of a block map is not what was stored
    |   |-- JobsRunningError       1  running commands prevent an upgrade
    |   `-- SchemaError            1  the database is newer, or holds no repository
    |       |-- SchemaOutdatedError 1  it is older, and can be upgraded
    |       `-- NoRepositoryError  1  it holds no repository
    |-- KeyMaterialError           3  the key of the repository
    |   |-- MissingKeyError        3  none is configured, or it cannot be read
    |   `-- WrongKeyError          3  it is not the key of this repository
    |-- VersionError               4  the named version
    |   |-- VersionNotFoundError   4  the name matches no version, or several
    |   |-- VersionIncompleteError 4  its backup did not finish
    |   |-- VersionKeptError       4  it must not be removed: protected, too young, in use, or the last valid one
    |   `-- VersionExistsError    22  an import contains one that exists
    |-- ExportFormatError         23  a file to import is truncated, damaged or not an export
    |-- StorageError               6  the storage fails
    |   |-- WrongStorageError      6  it is not the storage of this repository
    |   |-- StorageFullError       6  it has no room
    |   |-- StorageRefusedError    6  permissions, or it is read-only
    |   |-- StorageAwayError       6  it does not answer, and may do so later
    |   |-- ObjectUnreadableError  6  one object cannot be read or deleted
    |   |-- ObjectsKeptError       6  some objects cannot be deleted
    |   `-- ObjectMissingError     6  the object does not exist
    |-- IntegrityError            20  stored data is damaged or was changed
    |   |-- OddValueError         20  the database contains an impossible value
    |   `-- CatalogError          20  the catalog is damaged, or that of another repository
    |-- HintsError                 5  hints do not fit the source, or the base they are for
    |-- SourceError                7  the source of a backup cannot be read
    |-- TargetError                8  the target of a restore exists, is too small, or is in use
    |   `-- ReaderGoneError        8  the reader of stdout closed it, which ends a restore without failure
    |-- OutputError               8  stdout cannot be written by a command that is run for its output
    |-- JobLostError               9  another command removed the row of this job
    |-- MountError                10  mounting, unmounting, FUSE
    |-- HookError                 11  a before_ hook of the configuration failed; the command was not done
    `-- InterruptedByUser        130  SIGINT or SIGTERM; stored data stays usable

Statuses 1, 5, 6, 20, 22, 23 and 100 mean what they mean in backy2.

An error has a subject, a fact and a remedy, each in its own field. The message consists of them and fits on one line:
"blob 1f is missing from the storage; scrub the repository". All three can be assigned, so nobody takes a message apart:

- A low module that does not know the subject raises the fact alone ("is truncated"). Its caller assigns the subject
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

    `subject` may be empty, and may end in a colon: "/path: Permission denied". A remedy given as text has no advice.
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
        # `Exception` remembers other arguments than a subclass takes. The fields are the whole state.
        return type(self).__new__, (type(self), *self.args), self.__dict__


class UsageError(BackyfsError):
    """Arguments that do not fit together."""

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
    """Another command locks the database."""


class DatabaseFullError(DatabaseError):
    """Nothing can be written to the database: its disk is full, or a quota or size limit is reached."""


class DamagedPageError(DatabaseError):
    """A page of a block map is not what was stored; the rest of the database may be."""


class JobsRunningError(DatabaseError):
    """Running commands prevent an upgrade."""


class SchemaError(DatabaseError):
    """The database has a schema that this program does not support."""


class SchemaOutdatedError(SchemaError):
    """The schema is older than the program's, and can be upgraded."""


class NoRepositoryError(SchemaError):
    """The database holds no repository."""


class KeyMaterialError(BackyfsError):
    """There is a problem with the key of the repository."""

    exit_status = 3


class MissingKeyError(KeyMaterialError):
    """A key is needed, and none is available."""


class WrongKeyError(KeyMaterialError):
    """The key is not that of the repository."""


class VersionError(BackyfsError):
    """There is a problem with the named version."""

    exit_status = 4


class VersionNotFoundError(VersionError):
    """The name matches no version, or several."""


class VersionIncompleteError(VersionError):
    """The backup of the version did not finish."""


class VersionKeptError(VersionError):
    """The version must not be removed: protected, too young, in use by a running command, or the last valid one."""


class VersionExistsError(VersionError):
    """A version to import exists already."""

    exit_status = 22


class ExportFormatError(BackyfsError):
    """A file is not an export, or is truncated or damaged."""

    exit_status = 23


class StorageError(BackyfsError):
    """The storage fails."""

    exit_status = 6


class WrongStorageError(StorageError):
    """The storage is not that of this repository: another one, or a mount point without its file system."""


class ObjectUnreadableError(StorageError):
    """The storage works, but one object cannot be read or deleted: a bad sector, a FIFO in its place, its mode."""


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
    """Stored data is damaged or was changed."""

    exit_status = 20


# They concern one object. Every other StorageError means that the storage does not work, and nothing is damaged.
DAMAGE = (IntegrityError, ObjectMissingError, ObjectUnreadableError)


class OddValueError(IntegrityError):
    """A row of the database has an impossible value, which this program did not write."""

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
    """The catalog in the storage, or an object of it, is damaged or that of another repository."""


class HintsError(BackyfsError):
    """Hints do not fit the source, or the version they are based on."""

    exit_status = 5


class SourceError(BackyfsError):
    """The source of a backup cannot be read."""

    exit_status = 7


class TargetError(BackyfsError):
    """The target of a restore cannot be used."""

    exit_status = 8


class ReaderGoneError(TargetError):
    """The reader of the output closed it; the command ends as `| head` expects."""


class OutputError(BackyfsError):
    """Stdout cannot be written, and the command is run for its output."""

    exit_status = 8

    def __init__(self, error: OSError | None = None) -> None:
        fact = "is closed" if error is None else f"cannot be written: {error.strerror}"
        super().__init__(
            fact, subject="the standard output", remedy="redirect it to a file or program that takes all of it"
        )


class JobLostError(BackyfsError):
    """The row of this job is gone, because another command took the job for dead."""

    exit_status = 9


class MountError(BackyfsError):
    """Mounting or unmounting failed."""

    exit_status = 10


class HookError(BackyfsError):
    """A command of the administrator, run by `[hooks]`, failed or took too long."""

    exit_status = 11


class InterruptedByUser(BackyfsError):  # noqa: N818 - it is an ending, not an error
    """A signal ended the command; everything it did is kept."""

    exit_status = 130
