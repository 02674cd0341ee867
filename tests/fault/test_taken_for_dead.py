"""A command that others take for dead at any moment: it makes nothing valid and names nothing that they deleted.

Others do so when they have not heard of it for too long, as of a host that was suspended. From then on a cleanup spares
neither the objects that it has stored nor the blobs that it has looked up.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete

from backyfs.engine.backup.backup import BackupRequest, backup
from backyfs.engine.damage.repair import RepairRequest, repair
from backyfs.engine.damage.scrub import ScrubRequest, scrub
from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.space.fullcleanup import full_cleanup
from backyfs.engine.versions.remove import remove_versions
from backyfs.errors import JobLostError, VersionNotFoundError
from backyfs.hints import parse_hints
from backyfs.metadata.db.tables import jobs
from backyfs.metadata.records.versions import list_versions, set_status
from backyfs.metadata.upkeep.migration import Outdated
from backyfs.model import VersionStatus
from backyfs.sources.registry import open_source
from tests.support.audit import audit, content_of
from tests.support.images import random_bytes
from tests.support.repositories import BLOCK, back_up, make_repository, opened
from tests.support.storages import with_watched_storage, with_watched_writes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository

BLOCKS = 6
FIRST = random_bytes(BLOCKS * BLOCK, 1)
SECOND = random_bytes(BLOCK, 2) + FIRST[BLOCK:]
HINTS = b'[{"offset": 0, "length": 4096, "exists": "true"}]'


class Scene:
    """A repository, and the images of its versions, by name."""

    def __init__(self, repository: Repository, place: Path) -> None:
        self.repository = repository
        self.place = place
        self.images: dict[str, bytes] = {}
        self.prepared: Version | None = None

    def image(self, name: str, content: bytes) -> Path:
        """Make an image."""
        self.images[name] = content
        path = self.place / name
        path.write_bytes(content)
        return path

    def bury(self, *, removing: str | None = None) -> None:
        """Take all jobs for dead, and delete whatever only they needed."""
        with self.repository.database.write() as connection:
            connection.execute(delete(jobs))
            gone = [] if removing is None else list_versions(connection, name=removing)
        remove_versions(self.repository, gone, now=datetime.now(UTC))
        cleanup(self.repository, grace_s=0)
        full_cleanup(self.repository, grace_s=0)

    def check(self) -> None:
        """Make sure that whatever is valid is exact."""
        audit(self.repository)
        with self.repository.database.read() as connection:
            valid = [found for found in list_versions(connection) if found.status is VersionStatus.VALID]
        for version in valid:
            assert content_of(self.repository, version) == self.images[version.name]


def back_up_new(scene: Scene, repository: Repository) -> None:
    """Back up an image of which nothing is known."""
    back_up(repository, scene.place / "new", "new")


def back_up_known(scene: Scene, repository: Repository) -> None:
    """Back up an image of which all is known, and needed by nobody else."""
    back_up(repository, scene.place / "known", "known")


def back_up_with_hints(scene: Scene, repository: Repository) -> None:
    """Back up what has changed since another version, which is removed once nobody is thought to hold it."""
    source = open_source(str(scene.place / "new"))
    try:
        backup(repository, source, BackupRequest(name="new", hints=parse_hints(HINTS, "hints"), base=scene.prepared))
    finally:
        source.close()


def go_on(scene: Scene, repository: Repository) -> None:
    """Go on with a backup that was interrupted."""
    back_up(repository, scene.place / "begun", "begun", continued=scene.prepared)


def seal_again(_scene: Scene, repository: Repository) -> None:
    """Seal all blobs in the other encryption version."""
    migrate(repository, MigrationRequest(versions=None, outdated=Outdated(to=1), workers=1))


def repair_it(scene: Scene, repository: Repository) -> None:
    """Repair a damaged blob from its image."""
    source = open_source(str(scene.place / "base"))
    try:
        repair(repository, RepairRequest(source=source))
    finally:
        source.close()


def scrub_it(_scene: Scene, repository: Repository) -> None:
    """Find that what was damaged is whole."""
    scrub(repository, ScrubRequest(versions=None))


def nothing(scene: Scene) -> None:
    scene.image("new", FIRST)


def garbage(scene: Scene) -> None:
    version = back_up(scene.repository, scene.image("known", FIRST), "known").version
    remove_versions(scene.repository, [version], now=datetime.now(UTC))


def base(scene: Scene) -> None:
    scene.prepared = back_up(scene.repository, scene.image("base", FIRST), "base").version
    scene.image("new", SECOND)


def begun(scene: Scene) -> None:
    scene.prepared = back_up(scene.repository, scene.image("begun", FIRST), "begun").version
    with scene.repository.database.write() as connection:
        set_status(connection, scene.prepared.id, VersionStatus.INCOMPLETE)


def damaged(scene: Scene) -> None:
    base(scene)
    path = next((scene.place / "repository" / "data").glob("*/*/*.blob"))
    path.write_bytes(path.read_bytes()[:-1])
    scrub(scene.repository, ScrubRequest(versions=None))


def healed(scene: Scene) -> None:
    base(scene)
    path = next((scene.place / "repository" / "data").glob("*/*/*.blob"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    scrub(scene.repository, ScrubRequest(versions=None))
    path.write_bytes(whole)


COMMANDS = [
    pytest.param(nothing, back_up_new, None, id="a backup of new data"),
    pytest.param(garbage, back_up_known, None, id="a backup of data that is known"),
    pytest.param(base, back_up_with_hints, "base", id="a backup with hints whose base is removed"),
    pytest.param(begun, go_on, None, id="a continued backup"),
    pytest.param(base, seal_again, None, id="a migration"),
    pytest.param(damaged, repair_it, None, id="a repair"),
    pytest.param(healed, scrub_it, None, id="a scrub"),
]


class AtCall:
    """Acts at one of several calls, in whichever thread; what it does calls nothing back."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self._number = number
        self._act = act
        self._lock = threading.Lock()
        self.calls = 0

    def __call__(self) -> None:
        with self._lock:
            self.calls += 1
            is_now = self.calls == self._number
        if is_now:
            self._act()


def bury_at_every_call(
    place: Path,
    prepare: Callable[[Scene], None],
    work: Callable[[Scene, Repository], None],
    removing: str | None,
    watched: Callable[[Repository, Callable[[], object]], Repository],
) -> list[str]:
    """Let a command be taken for dead at each of its calls once; return how each time ended."""
    ends: list[str] = []
    has_come = True
    while has_come:
        here = place / f"{len(ends)}"
        here.mkdir()
        with opened(make_repository(here / "repository")) as repository:
            scene = Scene(repository, here)
            prepare(scene)
            at_call = AtCall(len(ends) + 1, lambda: scene.bury(removing=removing))  # noqa: B023 - called in this round
            end = "done"
            try:
                work(scene, watched(repository, at_call))
            except JobLostError:
                end = "lost"
            except VersionNotFoundError:  # what is named was removed before the command held it
                end = "lost"
            has_come = at_call.calls >= len(ends) + 1
            scene.check()
        ends.append(end)
    return ends


@pytest.mark.parametrize(("prepare", "work", "removing"), COMMANDS)
def test_a_command_that_is_taken_for_dead_before_any_transaction_leaves_nothing_that_is_not_exact(
    tmp_path: Path, prepare: Any, work: Any, removing: str | None
) -> None:
    ends = bury_at_every_call(tmp_path, prepare, work, removing, with_watched_writes)
    assert "lost" in ends
    assert ends[-1] == "done"
    assert set(ends) <= {"lost", "done"}


@pytest.mark.parametrize(
    ("prepare", "work", "removing"), [command for command in COMMANDS if command.values[1] is not scrub_it]
)
def test_a_command_that_is_taken_for_dead_before_any_call_of_the_storage_leaves_nothing_that_is_not_exact(
    tmp_path: Path, prepare: Any, work: Any, removing: str | None
) -> None:
    def watched(repository: Repository, act: Callable[[], object]) -> Repository:
        return with_watched_storage(repository, act, "put", "flush")

    ends = bury_at_every_call(tmp_path, prepare, work, removing, watched)
    assert ends[-1] == "done"
    assert set(ends) <= {"lost", "done"}
