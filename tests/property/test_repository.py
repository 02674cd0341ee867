"""A repository in the hands of chance: whatever is done to it, and killed, all versions are what was backed up."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.property.bucketplace import BucketPlace
from tests.property.world import BLOCK, DAMAGES, DirectoryPlace, Place, World
from tests.support.buckets import Bucket
from tests.support.faultproxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.services.database import DatabaseServer
    from tests.support.services.objectstore import S3Server

pytestmark = pytest.mark.slow

# For a long run by chance: BACKYFS_EXAMPLES=1000 .venv/bin/python -m pytest tests/property/test_repository.py
MANY = int(os.environ.get("BACKYFS_EXAMPLES", "0"))
EXAMPLES = {"sqlite": 12, "postgresql": 3, "mariadb": 3}
EXAMPLES_IN_A_BUCKET = 3
STEPS = 16
MOST_BLOCKS = 6
MOST_STEPS_OF_A_COMMAND = 90

KILL = st.none() | st.integers(1, MOST_STEPS_OF_A_COMMAND)
NAMES = st.sampled_from(["a", "b"])
BLOCKS = st.lists(st.integers(0, 4), max_size=MOST_BLOCKS)  # each block is of one byte; 0 is a block of zeros
TAILS = st.integers(0, BLOCK - 1)
CLEANUPS = st.sampled_from([(), ("--dangerous-force",), ("--full",), ("--full", "--dangerous-force")])
PLACES = st.integers(0, 1 << 16)


def image(blocks: list[int], tail: int) -> bytes:
    return b"".join(bytes([number]) * BLOCK for number in blocks) + b"t" * tail


class Machine(RuleBasedStateMachine):
    """Rules: what people and accidents do."""

    new_database: Callable[[Path], str]
    make_place: Callable[[Path, str], Place] = DirectoryPlace

    @initialize()
    def begin(self) -> None:
        self._place = TemporaryDirectory(prefix="backyfs-tests-world-")
        directory = Path(self._place.name)
        self.world = World(directory, partial(type(self).new_database, directory), type(self).make_place)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.check_and_end()
            finally:
                self._place.cleanup()

    @rule(name=NAMES, blocks=BLOCKS, tail=TAILS, kill_at=KILL)
    def back_up(self, name: str, blocks: list[int], tail: int, kill_at: int | None) -> None:
        self.world.back_up(name, image(blocks, tail), kill_at=kill_at)

    @precondition(lambda self: not self.world.damaged and not self.world.may_be_damaged)
    @rule(place=PLACES, blocks=BLOCKS, tail=TAILS, kill_at=KILL)
    def back_up_from(self, place: int, blocks: list[int], tail: int, kill_at: int | None) -> None:
        if uid := self.world.choose_version(place):
            self.world.back_up_from(uid, "c", image(blocks, tail), kill_at=kill_at)

    @precondition(lambda self: self.world.incomplete)
    @rule(place=PLACES, kill_at=KILL)
    def continue_backup(self, place: int, kill_at: int | None) -> None:
        uids = sorted(self.world.incomplete)
        self.world.continue_backup(uids[place % len(uids)], kill_at=kill_at)

    @rule(place=PLACES, kill_at=KILL)
    def remove(self, place: int, kill_at: int | None) -> None:
        if uid := self.world.choose_version(place):
            self.world.remove(uid, kill_at=kill_at)

    @rule(options=CLEANUPS, kill_at=KILL)
    def clean_up(self, options: tuple[str, ...], kill_at: int | None) -> None:
        self.world.command("cleanup", *options, kill_at=kill_at, found="--full" in options)

    @rule(number=st.integers(0, 2), kill_at=KILL)
    def migrate(self, number: int, kill_at: int | None) -> None:
        self.world.command("migrate-encryption", "--all", "--to", str(number), kill_at=kill_at, found=True)

    @rule(kill_at=KILL)
    def reseal(self, kill_at: int | None) -> None:
        self.world.was_resealed = True
        self.world.command("migrate-encryption", "--all", "--reseal", kill_at=kill_at, found=True)

    @rule(kill_at=KILL)
    def rekey(self, kill_at: int | None) -> None:
        self.world.rekey(kill_at=kill_at)

    @rule(kill_at=KILL)
    def scrub(self, kill_at: int | None) -> None:
        self.world.scrub(kill_at=kill_at)

    @precondition(lambda self: self.world.objects())
    @rule(place=PLACES, how=st.sampled_from(sorted(DAMAGES)))
    def damage(self, place: int, how: str) -> None:
        self.world.damage(place, how)

    @precondition(lambda self: self.world.objects())
    @rule(one=PLACES, other=PLACES)
    def swap(self, one: int, other: int) -> None:
        self.world.swap(one, other)

    @rule(place=PLACES, kill_at=KILL)
    def repair(self, place: int, kill_at: int | None) -> None:
        if uid := self.world.choose_version(place):
            self.world.repair(uid, kill_at=kill_at)

    @rule()
    def recover(self) -> None:
        self.world.recover()

    @rule()
    def check(self) -> None:
        self.world.check()


@pytest.mark.parametrize("engine", sorted(EXAMPLES))
def test_whatever_is_done_all_versions_are_what_was_backed_up(engine: str, request: pytest.FixtureRequest) -> None:
    if engine == "sqlite":
        try_at_random(new_file, EXAMPLES[engine])
    else:
        server: DatabaseServer = request.getfixturevalue(f"{engine}_server")
        try_at_random(lambda _directory: server.new_database(), EXAMPLES[engine])


def test_whatever_is_done_in_a_bucket_all_versions_are_what_was_backed_up(seaweedfs_server: S3Server) -> None:
    bucket = Bucket.make(seaweedfs_server)
    proxy = FaultProxy(seaweedfs_server.endpoint)
    try:
        try_at_random(new_file, EXAMPLES_IN_A_BUCKET, partial(BucketPlace, bucket, proxy))
    finally:
        proxy.close()
        bucket.remove()


def new_file(directory: Path) -> str:
    return f"sqlite:///{directory}/{len(list(directory.glob('*.sqlite')))}.sqlite"


def try_at_random(
    new_database: Callable[[Path], str], examples: int, make_place: Callable[[Path, str], Place] = DirectoryPlace
) -> None:
    places = {"new_database": staticmethod(new_database), "make_place": staticmethod(make_place)}
    machine: Any = type("Machine", (Machine,), places)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=MANY or examples,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=not MANY,
            database=None,
            phases=(Phase.generate,),  # uids are random, and where a kill hits: what failed is seldom found smaller
            suppress_health_check=list(HealthCheck),
        ),
    )
