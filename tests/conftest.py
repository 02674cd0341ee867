"""Hooks and fixtures for all tests.

In continuous integration (CI=true) everything can run, so a test skipped there would never run anywhere. It counts
as failed. Elsewhere, skips are allowed.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.support.buckets import Bucket
from tests.support.compiled import share_compiled_statements
from tests.support.faultproxy import FaultProxy
from tests.support.repositories import make_repository, opened, templates
from tests.support.services.database import DatabaseServer
from tests.support.services.mariadb import MariadbServer
from tests.support.services.postgresql import PostgresqlServer
from tests.support.services.radosgw import RadosgwServer
from tests.support.services.seaweedfs import SeaweedfsServer
from tests.support.services.server import ServerMissingError
from tests.support.services.sharing import shared

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from backyfs.metadata.db.database import Connection, Database
    from backyfs.repository import Repository
    from tests.support.services.objectstore import ObjectStoreServer, S3Server

_AnyServer = TypeVar("_AnyServer", bound=DatabaseServer)
_ENGINES = ["sqlite", "postgresql", "mariadb"]
_OBJECT_STORES = ["seaweedfs", "radosgw"]
_SERVERS = {*_ENGINES[1:], *_OBJECT_STORES}
# The program is started hundreds of times, and would be compiled each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# PyMySQL prepares TLS for each connection, also for one in plain text, and reading the certificates of this machine
# took longer than the test itself. No test trusts them.
os.environ["SSL_CERT_FILE"] = os.devnull
# Tests run in the background ignore signals, and the programs they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

share_compiled_statements()

_SLOW_PART = 0.8  # of all tests, the first ones: among these are the slow ones
_SLOW_DIRECTORIES = {"fault", "fuzz", "property", "upgrade"}
_IN_CI = os.environ.get("CI") == "true"


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `-n auto` uses: many tests wait for a disk, a server or a clock."""
    return 2 * len(os.sched_getaffinity(0))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server, and spread the slow modules, so that no process ends long after the others."""
    for item in items:
        if _needs_server(item):
            item.add_marker(pytest.mark.server)
    # The tests of a module stay together: they share fixtures, which would otherwise be made for each test.
    modules = [list(tests) for _, tests in itertools.groupby(items, key=lambda item: item.path)]
    slow = [tests for tests in modules if any(map(_is_slow, tests))]
    others = [tests for tests in modules if tests not in slow]
    # The last tests are short, so all processes end at about the same time.
    placed = [*_placed(slow, _SLOW_PART), *_placed(others, 1)]
    items[:] = [test for _, tests in sorted(placed, key=lambda one: one[0]) for test in tests]


def pytest_collection_finish() -> None:
    """Leave the tests and all modules out of every later search for garbage, which took a third of a second each.

    Hypothesis is loaded first: it would take random number generators that it cannot find for garbage.
    """
    importlib.import_module("hypothesis")
    gc.collect()
    gc.freeze()


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None or not _SLOW_DIRECTORIES.isdisjoint(item.path.parts)


def _placed(modules: list[list[pytest.Item]], part: float) -> Iterator[tuple[float, list[pytest.Item]]]:
    """Give each module its place, from 0 to `part`, by the number of tests before it."""
    count = sum(map(len, modules))
    before = 0
    for tests in modules:
        yield before / count * part, tests
        before += len(tests)


def _needs_server(item: pytest.Item) -> bool:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    values = [value for value in parameters if isinstance(value, str)]
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return any(name.endswith("_server") for name in fixtures) or any(
        value.removesuffix("_server") in _SERVERS for value in values
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need root."""
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        pytest.skip("only root can do this")


@pytest.fixture(scope="session", autouse=True)
def _templates(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make repositories for copying, before any test changes how they are made."""
    templates.make(tmp_path_factory.mktemp("templates"))


@pytest.fixture(autouse=True)
def _lent_templates(_templates: None) -> Generator[None, None, None]:
    with templates.lent():
        yield


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Generator[None, None, None]:
    """Undo the log setup of commands that ran in this process."""
    yield
    log = logging.getLogger("backyfs")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.setLevel(logging.NOTSET)
    log.propagate = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Refuse to skip a test. An expected failure, which pytest also calls skipped, is allowed."""
    report = yield
    if not hasattr(report, "wasxfail"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Refuse to skip a whole module."""
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _IN_CI and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped where everything has to run (CI=true): {reason}"


@pytest.fixture(scope="session")
def postgresql_server() -> Generator[PostgresqlServer, None, None]:
    """Return a private PostgreSQL, started by the first test that needs it."""
    yield from _run(PostgresqlServer)


@pytest.fixture(scope="session")
def mariadb_server() -> Generator[MariadbServer, None, None]:
    """Return a private MariaDB, started by the first test that needs it."""
    yield from _run(MariadbServer)


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server, None, None]:
    """Give SeaweedFS, which all processes of the tests share, and which is started by the first test that wants it."""
    yield from _share(SeaweedfsServer, tmp_path_factory)


@pytest.fixture(scope="session")
def radosgw_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server, None, None]:
    """Give the object store of Ceph in the same way."""
    yield from _share(RadosgwServer, tmp_path_factory)


@pytest.fixture(params=_OBJECT_STORES)
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Give each object store in turn."""
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture
def bucket(s3_server: S3Server) -> Generator[Bucket, None, None]:
    """Give an empty bucket, in each object store in turn."""
    bucket = Bucket.make(s3_server)
    yield bucket
    bucket.remove()


@pytest.fixture
def fault_proxy(s3_server: S3Server) -> Generator[FaultProxy, None, None]:
    """Give a proxy in front of the object store whose buckets the test has."""
    proxy = FaultProxy(s3_server.endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def repository(tmp_path: Path) -> Generator[Repository, None, None]:
    """Open an encrypted repository below the temporary directory; modules that need another one make it."""
    with opened(make_repository(tmp_path / "repository")) as repository:
        yield repository


@pytest.fixture(params=_ENGINES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[str, None, None]:
    """Yield the URL of an empty database on each engine in turn. An SQLite file does not exist yet."""
    yield from _empty_database(request, tmp_path)


@pytest.fixture(scope="module", params=_ENGINES)
def module_database_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[str, None, None]:
    """Yield the same URL to all tests of a module, which create the tables once and undo all other changes."""
    yield from _empty_database(request, tmp_path_factory.mktemp("database"))


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """Give a transaction of the module's fixture `database`, which is rolled back at the end."""
    with database.engine.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()


def _empty_database(request: pytest.FixtureRequest, directory: Path) -> Generator[str, None, None]:
    if request.param == "sqlite":
        yield f"sqlite:///{directory}/backyfs.sqlite"
        return
    server: DatabaseServer = request.getfixturevalue(f"{request.param}_server")
    url = server.new_database()
    yield url
    server.drop(url)


def _run(kind: type[_AnyServer]) -> Generator[_AnyServer, None, None]:
    try:
        server = kind()
    except ServerMissingError as error:
        pytest.skip(str(error))
    with server:
        yield server


def _share(kind: type[ObjectStoreServer], tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server, None, None]:
    own = tmp_path_factory.getbasetemp()
    try:
        with shared(kind, own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) as server:
            yield server
    except ServerMissingError as error:
        pytest.skip(str(error))
