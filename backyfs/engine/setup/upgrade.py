"""Upgrade the metadata to the schema of this program: wait for other commands, copy, change, check.

Whatever happens, the database is either the old one, which the old program can use, or the new one. On MariaDB the next
command continues an upgrade that was killed. Stored blocks are never touched.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO

from backyfs import keys
from backyfs.blocks import digest_bytes
from backyfs.engine.setup.backy2_processes import held_locks, processes
from backyfs.engine.transfer.export import new_file, write_export
from backyfs.engine.transfer.export_format import ExportHeader, ExportWriter, PageRecord
from backyfs.errors import DatabaseBusyError, IntegrityError, InterruptedByUser, JobsRunningError
from backyfs.geometry import PAGE_ENTRIES, page_count, page_length
from backyfs.metadata.db.database import Database, sqlite_path
from backyfs.metadata.db.revisions import HEAD, SchemaState
from backyfs.metadata.maps.blockmap import ABSENT, HOLE
from backyfs.metadata.records.versions import list_versions
from backyfs.metadata.schema.adoption import BlockFacts, check_facts
from backyfs.metadata.schema.upgrade import (
    compact_file,
    copy_sqlite,
    has_transactional_upgrade,
    is_half_done,
    known_blob_uids,
    live_jobs_of,
    old_tables,
    require_unused_tables,
    upgrade_lock,
    upgrade_schema,
)
from backyfs.model import DEFAULT_BLOCK_SIZE, PageNumber, VersionStatus
from backyfs.remedies import Advice
from backyfs.repository import check_can_open
from backyfs.repository.claim import SAMPLE_BLOBS
from backyfs.work.run import UNATTENDED
from backyfs.work.silence import remove_silent_jobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.config import Config
    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.schema.adoption import AdoptionReport
    from backyfs.metadata.schema.backy2 import Backy2Database, Backy2Version
    from backyfs.model import BlobUid, VersionRecord
    from backyfs.work.run import Control

DEFAULT_WAIT_S = 300
_BACKY2_HASH_FUNCTION = "sha512"  # if the configuration does not name one
_LOOK_EVERY_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradePlan:
    """What an upgrade would do."""

    database: str
    from_schema: str      # as shown to users
    to_revision: str
    versions: int | None  # of backy2, to be taken over; None: not a database of backy2
    blocks: int | None    # rows
    copy: str             # path for the copy of the metadata
    running: tuple[str, ...]  # what it would wait for


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeReport:
    """What an upgrade did."""

    database: str
    copy: str | None  # the old metadata; None: made by an earlier upgrade that was killed
    adopted: AdoptionReport | None
    duration_s: float


def needs_upgrade(config: Config) -> bool:
    """Return whether the database has an older schema.

    Raises:
        SchemaError: it has a newer one, or none.
    """
    with closing(Database(config.database_url)) as database:
        if database.schema().state is SchemaState.OLDER:
            return True
        database.check_revision()
        return False


def plan_upgrade(config: Config, *, copy_to: str | None = None) -> UpgradePlan | None:
    """Return what an upgrade would do; None: there is nothing to do. Nothing is changed.

    Raises:
        SchemaError: the schema is newer, there is none, or the configuration contradicts the rows.
        DatabaseError: the database cannot be read.
    """
    with closing(Database(config.database_url)) as database:
        if database.schema().state is not SchemaState.OLDER:
            database.check_revision()
            return None
        with database.read() as connection:
            check_can_open(config, known_blob_uids(connection, SAMPLE_BLOBS))
            facts = _block_facts(config)
            source = old_tables(connection, facts.block_size)
            if source is not None:
                check_facts(source, facts)
            return UpgradePlan(
                database=database.place,
                from_schema=database.schema().revision or "" if source is None else f"backy2, {source.revision}",
                to_revision=HEAD,
                versions=None if source is None else source.count_versions(),
                blocks=None if source is None else source.count_blocks(),
                copy=_copy_path(config, database, copy_to),
                running=tuple(_running(config, database, ignore_processes=False)),
            )


def upgrade(
    config: Config,
    *,
    wait_s: float = DEFAULT_WAIT_S,
    copy_to: str | None = None,
    ignore_processes: bool = False,
    control: Control = UNATTENDED,
) -> UpgradeReport | None:
    """Upgrade the database; return None if there was nothing to do, or another command has done it.

    `copy_to` is the directory for the copy of the metadata. `ignore_processes` ignores processes of backy2 that hold
    no lock, because they are known to use another database.

    Raises:
        JobsRunningError: other commands still used it after `wait_s` seconds; nothing was changed.
        SchemaError: the schema is newer, there is none, or the configuration contradicts the rows.
        DatabaseError: the upgrade failed, and the database is as it was.
        UsageError: the copy cannot be written.
    """
    with closing(Database(config.database_url)) as database:
        return _Upgrade(config, database, wait_s, copy_to, ignore_processes, control).run()


@dataclass(frozen=True, slots=True)
class _Upgrade:
    config: Config
    database: Database
    wait_s: float
    copy_to: str | None
    ignore_processes: bool
    control: Control

    def run(self) -> UpgradeReport | None:
        deadline = time.monotonic() + self.wait_s
        reported: set[str] = set()
        while not self._is_done():
            check_can_open(self.config, stop=self.control.stop)
            try:
                self._remove_silent_jobs()
                # Checked under the lock, because that is not possible during the upgrade of another command. The lock
                # is not held while waiting, because backy2 would fail at its next write.
                with upgrade_lock(self.database) as connection:
                    if self._is_done():
                        return None
                    running = self._running()
                    if not running:
                        check_can_open(self.config, known_blob_uids(connection, SAMPLE_BLOBS), stop=self.control.stop)
                        return self._upgrade(connection)
            except DatabaseBusyError as busy:
                running = [str(busy)]
            self._wait(running, reported, deadline)
        return None

    def _remove_silent_jobs(self) -> None:
        with self.database.read() as connection:
            has_jobs = bool(live_jobs_of(connection))
        if has_jobs:
            remove_silent_jobs(self.database, stop=self.control.stop, records=False)

    def _running(self) -> list[str]:
        return _running(self.config, self.database, ignore_processes=self.ignore_processes)

    def _is_done(self) -> bool:
        try:
            if self.database.schema().state is SchemaState.OLDER:
                return False
        except DatabaseBusyError:  # another command is upgrading the SQLite file and has locked it
            return False
        self.database.check_revision()
        return True

    def _wait(self, running: list[str], reported: set[str], deadline: float) -> None:
        for one in running:
            if one not in reported:
                reported.add(one)
                _log.warning("%s must be upgraded; waiting for the end of: %s", self.database.place, one)
        if self.control.stop():
            raise InterruptedByUser("interrupted while waiting; nothing was changed")
        if time.monotonic() >= deadline:
            raise JobsRunningError(
                f"must be upgraded, but is still in use by: {'; '.join(running)}; nothing was changed",
                subject=self.database.place,
                remedy=Advice.WAIT_FOR_JOBS(),
            )
        time.sleep(_LOOK_EVERY_S)

    def _upgrade(self, connection: Connection) -> UpgradeReport:
        started = time.monotonic()
        facts = _block_facts(self.config)
        source = old_tables(connection, facts.block_size)
        if source is not None:
            check_facts(source, facts)
        opens = self._key_test(source)
        require_unused_tables(connection)
        copy = self._copy(connection, source, facts)
        try:
            adopted = upgrade_schema(
                connection, facts, now=datetime.now(UTC), opens=opens, progress=self.control.progress
            )
        except BaseException:
            if copy is not None and has_transactional_upgrade(self.database):
                os.unlink(copy)
                _log.info("%s is removed, because nothing was changed and the database equals the copy", copy)
            raise
        compact_file(self.database)
        report = UpgradeReport(
            database=self.database.place, copy=copy, adopted=adopted, duration_s=time.monotonic() - started
        )
        _log.info("%s was upgraded in %.1f s", report.database, report.duration_s)
        return report

    def _key_test(self, source: Backy2Database | None) -> Callable[[bytes], bool] | None:
        """Return a test whether a key is wrapped by the configured key; None: there is nothing to test.

        A wrong key does not stop the upgrade, because taking over the metadata needs no key.
        """
        if source is None or self.config.key is None or source.wrapped_key() is None:
            return None
        configured_key = keys.read_key(self.config.key)

        def opens(wrapped_key: bytes) -> bool:
            try:
                keys.unwrap_key(configured_key, wrapped_key)
            except IntegrityError:
                return False
            return True

        return opens

    def _copy(self, connection: Connection, source: Backy2Database | None, facts: BlockFacts) -> str | None:
        """Copy the metadata before anything is changed, and return where."""
        path = _copy_path(self.config, self.database, self.copy_to)
        if sqlite_path(self.database.engine.url) is not None:
            copy_sqlite(self.database, path)
        elif is_half_done(connection) if source is None else source.is_aside:
            return None  # an upgrade that was killed has made it
        else:
            with new_file(path) as file:
                if source is None:
                    write_export(connection, list_versions(connection), file)
                else:
                    _dump(source, facts, file)
        _log.info("a copy of the old metadata is in %s", path)
        return path


def _dump(source: Backy2Database, facts: BlockFacts, file: BinaryIO) -> None:
    """Write all versions of a database of backy2 in the export format."""
    header = ExportHeader(
        created_at=datetime.now(UTC),
        block_size=facts.block_size,
        hash_function=facts.hash_function,
        repository=None,
    )
    writer = ExportWriter(file, header)
    for uid in source.version_uids():
        version = source.version(uid)
        writer.write(_honest_record(source, version))
        for record in source.statistics_of(uid):
            writer.write(record)
        for page in range(page_count(version.blocks)):
            start = page * PAGE_ENTRIES
            entries: list[BlobUid | int] = [ABSENT] * page_length(PageNumber(page), version.blocks)
            for block in source.blocks(uid, start, start + len(entries)):
                if not source.fits(version, block):
                    continue
                if block.blob is not None:
                    writer.write(block.blob)
                    entries[block.number - start] = block.blob.uid
                elif version.holes_are_known:
                    entries[block.number - start] = HOLE
            writer.write(PageRecord(PageNumber(page), None, tuple(entries)))
    writer.end()


def _honest_record(source: Backy2Database, version: Backy2Version) -> VersionRecord:
    """Return a version with its true status: with an unusable row it is not valid, whatever backy2 says."""
    if version.record.status is VersionStatus.VALID and not all(
        source.fits(version, block) for block in source.blocks(version.record.uid, 0, version.blocks)
    ):
        return replace(version.record, status=VersionStatus.INVALID)
    return version.record


def _running(config: Config, database: Database, *, ignore_processes: bool) -> list[str]:
    """Describe what uses the database: its jobs, and commands of backy2, which does not register jobs."""
    with database.read() as connection:
        found = [str(job) for job in live_jobs_of(connection)]
        if old_tables(connection, _block_facts(config).block_size) is None:
            return found
    found += [f"backy2, which has locked {path}" for path in held_locks(config.lock_dir)]
    if not ignore_processes:
        found += processes(config.process_name)
    return found


def _copy_path(config: Config, database: Database, directory: str | None) -> str:
    """Return an unused path for the copy: next to an SQLite file, or else next to the log file or the storage."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    file = sqlite_path(database.engine.url)
    if file is not None:
        beside, name = os.path.split(os.path.abspath(file))
        name = f"{name}.before-upgrade-{stamp}"
    else:
        # Not next to the configuration, because every file in /etc/backy/conf.d is read as one.
        beside = os.path.dirname(os.path.abspath(config.logfile or config.storage.local_path or "."))
        name = f"backyfs.before-upgrade-{stamp}.export"
    path = os.path.join(directory or beside, name)
    # An upgrade killed in the same second may have left a copy, or a part of one.
    number = 1
    while os.path.lexists(path) or os.path.lexists(f"{path}.new"):
        number += 1
        path = os.path.join(directory or beside, f"{name}.{number}")
    return path


def _block_facts(config: Config) -> BlockFacts:
    hash_function = config.hash_function or _BACKY2_HASH_FUNCTION
    return BlockFacts(
        block_size=config.block_size or DEFAULT_BLOCK_SIZE,
        hash_function=hash_function,
        digest_bytes=digest_bytes(hash_function),
    )
