"""Copy the metadata of a repository to another database, possibly on another engine."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.errors import JobsRunningError, UsageError
from backyfs.metadata.db.database import Database, sqlite_path
from backyfs.metadata.schema.rowcopy import copied_tables, copy_rows, digest_rows, require_equal
from backyfs.metadata.schema.schema import create_file, create_tables, drop_tables
from backyfs.metadata.schema.upgrade import has_transactional_upgrade, live_jobs_of
from backyfs.ownfiles import find_own
from backyfs.work.silence import remove_silent_jobs

if TYPE_CHECKING:
    from backyfs.metadata.db.database import Connection

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What was copied."""

    source: str
    target: str
    rows: dict[str, int]  # by table


def copy_database(from_url: str, to_url: str) -> CopyReport:
    """Copy all metadata to an empty database, and compare both row by row.

    Raises:
        UsageError: both URLs name the same database.
        SchemaError: the source holds no repository of this release, or the target is not empty.
        JobsRunningError: commands are using the source.
        DatabaseError: one of them fails, or the copy differs; the target is empty again.
    """
    with ExitStack() as opened:
        source = opened.enter_context(closing(Database(from_url)))
        target = opened.enter_context(closing(Database(to_url)))
        if _is_same(source, target):
            raise UsageError("is named twice", subject=source.place, remedy="name an empty database to copy to")
        source.check_revision()
        path = sqlite_path(target.engine.url)
        own = sqlite_path(source.engine.url)
        if path is not None and own is not None and find_own(path, [os.path.realpath(own)]) is not None:
            raise UsageError(f"belongs to {source.place}", subject=target.place, remedy="name another file")
        is_new = path is not None and not os.path.exists(path)
        try:
            if is_new:
                create_file(target)
            rows = _copy(source, target)
            target.use_wal()  # not before, so a file that is refused stays unchanged
        except BaseException:
            if path is not None and is_new:
                target.close()
                for name in (path, f"{path}-wal", f"{path}-shm"):
                    if os.path.exists(name):
                        os.unlink(name)
            raise
        return CopyReport(source=source.place, target=target.place, rows=rows)


def _is_same(source: Database, target: Database) -> bool:
    paths = (sqlite_path(source.engine.url), sqlite_path(target.engine.url))
    if paths[0] is None or paths[1] is None:
        return source.engine.url == target.engine.url
    return os.path.realpath(paths[0]) == os.path.realpath(paths[1])


def _copy(source: Database, target: Database) -> dict[str, int]:
    remove_silent_jobs(source)
    with source.write() as reading:  # as a writer, so no other command can change it
        running = live_jobs_of(reading)
        if running:
            raise JobsRunningError(
                f"is in use by {'; '.join(map(str, running))}",
                subject=source.place,
                remedy="try again when they have ended",
            )
        is_made = False
        try:
            with target.begin() as writing:
                create_tables(writing)
                is_made = True
                return _copy_tables(reading, writing)
        except BaseException:
            if is_made and not has_transactional_upgrade(target):
                with target.begin() as writing:
                    drop_tables(writing)
            raise


def _copy_tables(reading: Connection, writing: Connection) -> dict[str, int]:
    rows = {}
    for table in copied_tables():
        copied = copy_rows(reading, writing, table)
        require_equal(table.name, copied, digest_rows(writing, table))
        rows[table.name] = copied[0]
        _log.info("%s: %d rows copied and compared", table.name, copied[0])
    return rows
