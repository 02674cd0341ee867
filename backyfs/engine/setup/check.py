"""Check whether everything a repository needs exists and works. Nothing is changed except for a test object.

The checks are independent: one that depends on another that failed says so.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs import keys, sealing
from backyfs.config import find_mistakes, has_password
from backyfs.engine.setup.encryption_check import check_blocks
from backyfs.engine.setup.findings import CheckReport, Finding, Grade
from backyfs.engine.setup.host_check import check_clock, check_fuse, check_writable, free_space
from backyfs.engine.setup.storage_check import try_test_object
from backyfs.engine.setup.upgrade import plan_upgrade
from backyfs.errors import (
    BackyfsError,
    ConfigError,
    DatabaseError,
    IntegrityError,
    KeyMaterialError,
    StorageAwayError,
    StorageError,
    WrongKeyError,
)
from backyfs.metadata.db.clock import database_time
from backyfs.metadata.db.database import Database, sqlite_path
from backyfs.metadata.db.revisions import SchemaState
from backyfs.metadata.records.blobs import newest_wrapped_key
from backyfs.metadata.records.identity import list_key_slots, load_identity
from backyfs.metadata.records.versions import list_versions
from backyfs.metadata.schema.upgrade import known_blob_uids, old_tables
from backyfs.model import DEFAULT_BLOCK_SIZE
from backyfs.moments import time_text
from backyfs.remedies import Advice, Remedy
from backyfs.repository import check_agreement, no_repository
from backyfs.repository.claim import SAMPLE_BLOBS, check_before_upgrade, check_claim
from backyfs.repository.keyring import unlock
from backyfs.storage.registry import find_setting, open_storage
from backyfs.text import shell_word
from backyfs.trust import reasons_not_to_trust, refuses_untrusted, secret_files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from backyfs.config import Config
    from backyfs.repository.keyring import Unlocked
    from backyfs.storage.protocol import Storage

_Result = tuple[Grade, str] | tuple[Grade, str, Remedy]  # of one check
_CLOCKS_APART_S = 5.0
_OTHERS = 0o077
_NEED_CONFIG = ("database", "key", "storage", "space")


def check_configuration(file: str | None, environ: Mapping[str, str], *, now: datetime) -> CheckReport:
    """Check the configuration in `file` or the usual places, and everything it refers to.

    The database is not upgraded, and nothing is left behind.
    """
    config, mistakes, warnings = find_mistakes(file, environ)
    findings = [*_configuration(config, mistakes, warnings)]
    doubts = [] if config is None else reasons_not_to_trust(config)
    if config is None:
        findings += [*_skipped(("permissions", *_NEED_CONFIG), "right"), *check_clock(now)]
    elif doubts and refuses_untrusted():  # all commands refuse it, and it may name a command that prints the key
        findings += [
            Finding(check="permissions", grade=Grade.FAILED, message=doubt, exit_status=ConfigError.exit_status)
            for doubt in doubts
        ]
        findings += [*_skipped(_NEED_CONFIG, "out of reach of others"), *check_clock(now)]
    else:
        findings += _Checks(config, doubts, now).findings()
    return CheckReport(findings=(*findings, *check_fuse()))


@dataclass(frozen=True, slots=True)
class _Checks:
    """The checks that need a configuration."""

    config: Config
    doubts: Sequence[str]  # about users who can change it
    now: datetime
    state: list[SchemaState] = field(default_factory=list)  # of the database, once it is known

    def findings(self) -> Iterator[Finding]:
        yield from self._guarded("permissions", self._permissions)
        yield from self._guarded("log", self._log)
        yield from self._guarded("database", self._database)
        yield from self._guarded("key", self._key)
        yield from self._guarded("encryption", self._encryption)
        yield from self._guarded("storage", self._storage)
        yield from self._guarded("space", self._space)
        yield from check_clock(self.now)
        yield from self._guarded("clock", self._database_clock)

    @staticmethod
    def _guarded(name: str, look: Callable[[], Iterator[_Result]]) -> Iterator[Finding]:
        try:
            for result in look():
                grade, message = result[0], result[1]
                remedy = result[2] if len(result) == 3 else None
                status = ConfigError.exit_status if grade is Grade.FAILED else 0
                yield Finding(check=name, grade=grade, message=message, remedy=remedy, exit_status=status)
        except BackyfsError as error:
            yield _failed(name, error)
        except OSError as error:
            message = f"{error.filename}: {error.strerror}"
            yield Finding(check=name, grade=Grade.FAILED, message=message, exit_status=ConfigError.exit_status)

    def _permissions(self) -> Iterator[_Result]:
        found = [*self.doubts, *self._open_files()]
        yield from ((Grade.WARNING, message) for message in found)
        if not found:
            yield Grade.OK, "nobody else can read the key or change the configuration"

    def _open_files(self) -> Iterator[str]:
        for path in self.config.files:
            about = os.stat(path)
            if about.st_mode & stat.S_IWGRP and not any(path in doubt for doubt in self.doubts):
                fact = f"{path} can be changed by others, and names commands to run, once its group has more members"
                yield f"{fact}; run `chmod g-w {shell_word(path)}`"
            if about.st_mode & _OTHERS & ~0o033 and self._has_secrets():
                yield f"{path} holds secrets and can be read by others; run `chmod 600 {shell_word(path)}`"
        for path in secret_files_of(self.config):
            if os.path.exists(path) and os.stat(path).st_mode & _OTHERS:
                yield f"{path} holds a key and can be read by others; run `chmod 600 {shell_word(path)}`"

    def _has_secrets(self) -> bool:
        storage, key = self.config.storage, self.config.key
        return (
            (key is not None and key.hex_digits is not None)
            or storage.has_secrets
            or has_password(self.config.database_url)
        )

    def _log(self) -> Iterator[_Result]:
        path = self.config.logfile
        if path is None:
            yield Grade.OK, "the log goes to stderr only"
            return
        writable = os.access(path if os.path.exists(path) else os.path.dirname(path), os.W_OK)
        if writable and not os.path.isdir(path):
            yield Grade.OK, f"{path} can be written"
        else:
            yield Grade.FAILED, f"{path} cannot be written; name another file as logfile, or remove the key"

    def _database(self) -> Iterator[_Result]:
        with closing(Database(self.config.database_url)) as database:
            state = database.schema().state
            path = sqlite_path(database.engine.url)
            if path is not None and state is not SchemaState.NONE:
                check_writable(path)
            if state is SchemaState.OLDER:
                self.state.append(state)
                yield self._upgrade_warning()
                return
            if state is SchemaState.NONE:
                raise no_repository(self.config, database.place)
            if state is not SchemaState.CURRENT:
                database.check_revision()
            self.state.append(state)
            with database.read() as connection:
                check_agreement(self.config, load_identity(connection))
                count = len(list_versions(connection))
            yield Grade.OK, f"{database.place} is up to date and has {count} versions"

    def _upgrade_warning(self) -> _Result:
        plan = plan_upgrade(self.config)
        if plan is None:
            return Grade.WARNING, "the database was upgraded just now; check again"
        what = f"the schema of {plan.from_schema}"
        versions = "" if plan.versions is None else f" with {plan.versions} versions"
        message = (
            f"{plan.database} has {what}{versions}; the next command copies the metadata to {plan.copy} and upgrades it"
        )
        return Grade.WARNING, message, Advice.PREVIEW_UPGRADE()

    def _key(self) -> Iterator[_Result]:
        if self.config.encryption_version is not None:
            sealing.check_configured(self.config.encryption_version)
        key = None if self.config.key is None else keys.read_key(self.config.key)
        shown = "" if key is None else keys.show_check(keys.key_check(key))
        if key is None and self.config.passphrase is not None:
            shown = "the passphrase"
        if not self.state:
            yield Grade.SKIPPED, f"{shown or 'none'} is configured, but cannot be checked without the database"
            return
        with closing(Database(self.config.database_url)) as database:
            if self.state[0] is SchemaState.OLDER:
                yield self._key_of_backy2(database, key, shown)
                return
            with database.read() as connection:
                slots, wrapped_key = list_key_slots(connection), newest_wrapped_key(connection)
            if self._unlocked(database).keyring.repository_key is not None:
                by_passphrase = slots and (key is None or keys.slot_of_key(slots, key) is None)
                obeys = "the passphrase opens" if by_passphrase else f"{shown} is the key of"
                yield Grade.OK, f"{obeys} this repository"
                return
            if wrapped_key is not None:
                what = "no key is configured" if key is None else f"the configured key {shown} does not open them"
                yield Grade.WARNING, f"there are encrypted blocks, and {what}; configure the key that backy2 used last"
                return
        if not shown or self.config.encryption_version == 0:
            yield Grade.OK, "none is needed: the repository is not encrypted"
        else:
            yield Grade.OK, f"{shown} becomes the key of this repository with the next command, because it has none yet"

    def _unlocked(self, database: Database) -> Unlocked:
        with ExitStack() as opened:
            storage: Storage | None
            try:
                storage = opened.enter_context(closing(open_storage(self.config.storage)))
            except (ConfigError, StorageError):
                storage = None  # another check reports it
            return unlock(self.config, database, storage)

    def _encryption(self) -> Iterator[_Result]:
        if not self.state or self.state[0] is not SchemaState.CURRENT:
            yield Grade.SKIPPED, "how blocks are stored cannot be checked without an up-to-date database"
            return
        with closing(Database(self.config.database_url)) as database, database.read() as connection:
            yield from check_blocks(self.config, connection)

    def _key_of_backy2(self, database: Database, key: bytes | None, shown: str) -> tuple[Grade, str]:
        with database.read() as connection:
            source = old_tables(connection, self.config.block_size or DEFAULT_BLOCK_SIZE)
            wrapped_key = None if source is None else source.wrapped_key()
        if wrapped_key is None:
            return Grade.OK, f"{shown or 'none'} is configured, and no block is encrypted"
        if key is None:
            raise KeyMaterialError(
                "blocks are encrypted, but the configuration has no key", remedy="set encryption_key_file"
            )
        try:
            keys.unwrap_key(key, wrapped_key)
        except IntegrityError as error:
            raise WrongKeyError(
                "does not open the blocks",
                subject=f"the configured key {shown}",
                remedy="configure the one that backy2 used last",
            ) from error
        return Grade.OK, f"{shown} opens the blocks"

    def _storage(self) -> Iterator[_Result]:
        place = self.config.storage.place
        with self._advised():
            opened = open_storage(self.config.storage)
        with closing(opened) as storage:
            if not storage.traits.keeps:
                yield Grade.WARNING, "it is of type null and keeps nothing; configure a storage of another type"
                return
            if not self.state:
                yield Grade.SKIPPED, f"{place} exists, but cannot be checked without the database"
                return
            with self._advised():
                marked = self._claimed(storage)
            kept = try_test_object(storage, place)
        done = "written, read and listed" if kept else "written, read, listed and deleted"
        yield Grade.OK, f"{place}: {marked}a test object was {done}"
        if kept is not None:
            yield Grade.WARNING, f"{place}: {kept.fact}, so a cleanup fails and the test object stays", Remedy(
                "if another host cleans up, that is as it should be; if not, permit deletion"
            )

    @contextmanager
    def _advised(self) -> Iterator[None]:
        """Let an error of the storage name the setting with which it would answer, if one is found."""
        try:
            yield
        except StorageError as error:
            # Others say that the storage answered: nothing is wrong with how it is reached.
            is_unreached = type(error) in (StorageError, StorageAwayError)
            setting = find_setting(self.config.storage) if is_unreached else None
            if setting is not None:
                error.remedy = Remedy(f"set {setting} in [DataBackend]: it answers then")
            raise

    def _claimed(self, storage: Storage) -> str:
        """Return what the marker of the storage says, before anything is written there."""
        with closing(Database(self.config.database_url)) as database:
            if self.state[0] is SchemaState.OLDER:
                with database.read() as connection:
                    check_before_upgrade(storage, known_blob_uids(connection, SAMPLE_BLOBS))
                return ""
            with database.read() as connection:
                uid = load_identity(connection).uid
            if check_claim(database, storage, uid):
                return "it has the marker of this repository; "
            return "it gets the marker of this repository with the next command; "

    def _space(self) -> Iterator[_Result]:
        with closing(Database(self.config.database_url)) as database:
            file = sqlite_path(database.engine.url)
        places: list[tuple[str, type[BackyfsError]]] = []
        if file is not None:
            places.append((os.path.dirname(os.path.abspath(file)), DatabaseError))
        if self.config.storage.local_path is not None:
            places.append((self.config.storage.local_path, StorageError))
        seen = set()
        for path, error in places:
            if os.path.exists(path) and os.stat(path).st_dev not in seen:
                seen.add(os.stat(path).st_dev)
                yield free_space(path, error)
        if not seen:
            yield Grade.SKIPPED, "neither the storage nor the database is in a mounted file system of this host"

    def _database_clock(self) -> Iterator[_Result]:
        if not self.state or self.state[0] is not SchemaState.CURRENT:
            return
        with closing(Database(self.config.database_url)) as database, database.read() as connection:
            asked = datetime.now(UTC)
            apart_s = (database_time(connection) - asked).total_seconds()
            versions = [one for one in list_versions(connection) if one.is_dated_in_the_future(self.now)]
        if abs(apart_s) > _CLOCKS_APART_S:
            yield Grade.WARNING, (
                f"the clock of the database server is {abs(apart_s):.0f} s {'ahead of' if apart_s > 0 else 'behind'} "
                "the clock of this host; synchronise both with a time server"
            )
        if versions:
            newest = max(versions, key=lambda one: one.created_at)
            date = time_text(newest.created_at, to="minutes")
            yield Grade.WARNING, (
                f"{len(versions)} versions are dated in the future, the last one {date} "
                f"({newest.uid}); schedules count from these dates. Correct the clock of the host that made them"
            )


def _configuration(
    config: Config | None, mistakes: tuple[ConfigError, ...], warnings: tuple[str, ...]
) -> Iterator[Finding]:
    for mistake in mistakes:
        yield _failed("configuration", mistake)
    for warning in warnings:
        yield Finding(check="configuration", grade=Grade.WARNING, message=warning)
    if config is not None and not warnings:
        yield Finding(check="configuration", grade=Grade.OK, message=", ".join(config.files))


def _failed(check: str, error: BackyfsError) -> Finding:
    return Finding(
        check=check,
        grade=Grade.FAILED,
        message=error.statement,
        remedy=error.remedy,
        exit_status=error.exit_status,
    )


def _skipped(checks: Iterable[str], until: str) -> list[Finding]:
    message = f"cannot be checked until the configuration is {until}"
    return [Finding(check=name, grade=Grade.SKIPPED, message=message) for name in checks]
