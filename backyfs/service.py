"""Use the repository of a configuration: what the command line and other front ends call before a library function.

Opening a repository upgrades its database first if that is needed, and keeps the catalog in the storage up to date.
Nothing is printed here: what a caller wants to know is passed to the functions that it gives.
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backyfs.errors import BackyfsError, DatabaseBusyError, SchemaOutdatedError
from backyfs.reports.values import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from backyfs.config import Config
    from backyfs.engine.setup.initdb import DatabaseReport
    from backyfs.engine.setup.upgrade import UpgradeReport
    from backyfs.metadata.db.database import Database
    from backyfs.model import RequestCounts, RunId
    from backyfs.reports.values import Object, Row
    from backyfs.repository import Repository
    from backyfs.work.run import Control

    OpenDatabase = Database  # as callers of `Service.database` name it

# SQLAlchemy, alembic and cryptography are slow to load, so every function imports only what it needs.
_log = logging.getLogger(__name__)


def _no_control() -> AbstractContextManager[Control]:
    from backyfs.work.run import UNATTENDED  # noqa: PLC0415 - slow to load

    return nullcontext(UNATTENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A configuration, and the caller that uses its repository: one command after the other, from one thread."""

    config: Config
    stop: Callable[[], bool] = lambda: False  # called often, from several threads; True: end what is under way
    ask: Callable[[], str] | None = None      # asks somebody for a passphrase; None: nobody is there to answer
    control: Callable[[], AbstractContextManager[Control]] = _no_control  # follows and stops an upgrade
    upgraded: Callable[[UpgradeReport], None] = lambda _report: None      # called after an upgrade
    requested: Callable[[RequestCounts], None] = lambda _counts: None     # called at the end, if there were any
    odd_rows: set[str] = field(default_factory=set)  # messages about damaged rows that were left out and logged
    runs: list[RunId] = field(default_factory=list)  # of the jobs that have ended, see `Control.recorded`

    @contextmanager
    def repository(self, *, insist: bool = False, cached: bool = False) -> Iterator[Repository]:
        """Open the repository, after an upgrade if that is needed, and keep its catalog at the end.

        With `insist` a storage without a marker is taken for the repository's. With `cached` blobs are read through
        the disk cache.

        Raises:
            What `backyfs.repository.open_repository` and `backyfs.engine.setup.upgrade.upgrade` raise.
        """
        with ExitStack() as opened:
            try:
                repository = opened.enter_context(self.open_as_it_is(insist=insist, cached=cached))
            except (SchemaOutdatedError, DatabaseBusyError):
                self._upgrade()
                repository = opened.enter_context(self.open_as_it_is(insist=insist, cached=cached))
            opened.callback(self.note_odd_rows, repository.database)
            opened.callback(self._report_requests, repository)
            try:
                yield repository
            except BackyfsError:
                self._keep_catalog(repository)
                raise
            self._keep_catalog(repository)

    def open_as_it_is(
        self, *, insist: bool = False, cached: bool = False
    ) -> AbstractContextManager[Repository]:
        """Open the repository without an upgrade, and do not keep its catalog.

        Raises:
            What `backyfs.repository.open_repository` raises.
        """
        from backyfs.repository import open_repository  # noqa: PLC0415 - see above

        return open_repository(self.config, stop=self.stop, ask=self.ask, insist=insist, cached=cached)

    @contextmanager
    def database(self, *, resumes: bool = False) -> Iterator[Database]:
        """Open the database alone, for functions that work where the storage is out of reach, such as those of keys.

        The catalog is kept afterwards, with `resumes` also if only an earlier command, which was killed, has changed
        something. A failure of that is only a warning.

        Raises:
            SchemaOutdatedError: its schema is older.
            SchemaError: there is no repository.
        """
        from backyfs.engine.catalog.publish import is_catalog_due  # noqa: PLC0415 - see above
        from backyfs.engine.secrets.keyslots import open_database  # noqa: PLC0415 - see above

        with open_database(self.config) as database:
            yield database
            is_due = database.has_written or (resumes and is_catalog_due(database))
        if is_due:
            self.publish()

    def make_repository(self) -> DatabaseReport:
        """Make the repository that the configuration names; one that exists is opened, and upgraded if need be.

        Raises:
            What `repository` and `backyfs.repository.create_repository` raise.
        """
        from backyfs.engine.setup.initdb import describe_repository, make_missing_repository  # noqa: PLC0415

        made = make_missing_repository(self.config)
        if made:
            self.publish()
        else:
            with self.repository():
                pass
        return describe_repository(self.config, made=made)

    def record(
        self, repository: Repository, report: Object | Sequence[Row], errors: Sequence[BackyfsError] = ()
    ) -> None:
        """Add a report to the run of the last job; the last of `errors` is how the command will end.

        Call this after the operation, within the `with` of `repository`. A failure is only a warning.
        """
        if not self.runs:  # the database cannot be written, or there was nothing to do
            return
        from backyfs.metadata.records.runs import complete_run  # noqa: PLC0415 - see above
        from backyfs.work.ending import ending_of  # noqa: PLC0415 - see above

        database = repository.database
        has_written = database.has_written
        run_id = self.runs[-1]
        self.runs.clear()
        try:
            with database.write() as connection:
                ending = ending_of(errors[-1]) if errors else None
                complete_run(connection, run_id, report=json.dumps(to_json(report)), ending=ending)
        except BackyfsError as failed:  # also if another command has rotated the key in the meantime
            _log.warning("the report of this command is not recorded: %s", failed)
        finally:
            database.has_written = has_written  # the catalog has no runs

    def note_odd_rows(self, database: Database) -> None:
        """Note the damaged rows that a command came across."""
        self.odd_rows.update(database.odd_rows.messages)

    def _report_requests(self, repository: Repository) -> None:
        if repository.requests:
            self.requested(repository.requests)

    def _upgrade(self) -> None:
        from backyfs.engine.setup.upgrade import upgrade  # noqa: PLC0415 - see above

        with self.control() as control:
            report = upgrade(self.config, control=control)
        if report is not None:
            self.upgraded(report)

    def _keep_catalog(self, repository: Repository) -> None:
        """Write to the catalog what opening the repository has changed, unless the command was interrupted.

        Library functions do so themselves, after which there is nothing left to do.
        """
        if repository.database.has_written and not self.stop():
            from backyfs.engine.catalog.publish import keep_catalog  # noqa: PLC0415 - see above
            from backyfs.work.run import Control  # noqa: PLC0415 - see above

            keep_catalog(repository, Control(stop=self.stop))

    def publish(self) -> None:
        """Write to the catalog what was changed while the storage was not open. A failure is only a warning."""
        from backyfs.engine.catalog.publish import warn_of_failure  # noqa: PLC0415 - see above

        try:
            with self.open_as_it_is() as repository:
                repository.database.has_written = True
                self._keep_catalog(repository)
        except BackyfsError as error:
            warn_of_failure(error)
