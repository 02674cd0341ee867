"""Every order in which the transactions of several commands can follow each other.

Commands run in threads of their own, one of them at a time: each stops before every transaction until the explorer
lets it go. Transactions are atomic, and what a command does to the storage between two of them is as if it were part
of the first. Two orders that come to the same state, with the database having told each command the same, go on alike
from there, so only one of them is followed. A transaction that neither asked nor changed anything is the same whenever
it comes, so what the others could do before it is followed after it only.
"""

from __future__ import annotations

import random
import sys
import threading
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from backyfs.work import job
from tests.support.repositories import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from sqlalchemy import Engine

    from backyfs.metadata.db.database import Database

_OF_NO_INTEREST = ("jobs", "runs", "SAVEPOINT", "catalog_notes")
_RANDOM = 1 << 32  # numbers from here on are tokens, as long as all others are ids, counts and small sizes


class Witness:
    """What an SQLite database tells those who ask: rows, without what is random, and how many rows were changed."""

    def __init__(self, engine: Engine) -> None:
        """Watch an engine, for as long as it is there."""
        self.told: list[Hashable] = []
        self._is_of_interest = False
        event.listen(engine, "checkout", self._prepare)
        event.listen(engine, "before_cursor_execute", self._begin)
        event.listen(engine, "after_cursor_execute", self._end)

    def _prepare(self, connection: Any, _record: object, _proxy: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")  # nobody cuts the power here
        connection.row_factory = self._note

    def _begin(self, _connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        # Jobs come and go and leave runs, within savepoints; what keeps versions from being removed is in
        # job_versions. The notes say what is to be published, and nothing is.
        self._is_of_interest = not any(word in statement for word in _OF_NO_INTEREST)

    def _end(self, _connection: object, cursor: Any, *_rest: object) -> None:
        if self._is_of_interest:
            self.told.append(cursor.rowcount)

    def _note(self, _cursor: object, row: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._is_of_interest:
            # Text is uids, names and times.
            known = tuple(value for value in row if not isinstance(value, str) and not _is_random(value))
            self.told.append(known)
        return row


def _is_registration() -> bool:
    caller = sys._getframe(3)  # of `read` or `write`, which contextlib runs
    return caller.f_code.co_name == "__enter__" and caller.f_globals["__name__"] == job.__name__


def _is_random(value: object) -> bool:
    return isinstance(value, int) and value >= _RANDOM


class AbandonedError(BaseException):
    """What a command gets that is not followed any more. Nothing but its own end is to catch it."""


class Command:
    """A command, stopped before each of its transactions."""

    def __init__(self, name: str, database: Database, witness: Witness, work: Callable[[Database], object]) -> None:
        """Prepare to do `work` with a database that stops it."""
        self.name = name
        self.has_ended = False
        self.error: BaseException | None = None
        self._work = work
        self._witness = witness
        self._is_abandoned = False
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._database = copy(database)
        for method in ("read", "write"):
            setattr(self._database, method, self._stopping(getattr(database, method)))
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def seen(self) -> tuple[Hashable, ...]:
        """Return all that the database has told it."""
        return (self.has_ended, *self._witness.told)

    def start(self) -> None:
        """Run to the first transaction."""
        self._witness.told.clear()
        self._thread.start()
        self._wait()

    def step(self) -> bool:
        """Run through one transaction, to the next one or to the end; return whether the database told it anything."""
        self._witness.told.append("a transaction")
        told = len(self._witness.told)
        self._go.release()
        self._wait()
        return len(self._witness.told) > told

    def abandon(self) -> None:
        """Let it end without another transaction."""
        self._is_abandoned = True
        while not self.has_ended:
            self.step()
        self._thread.join(PATIENCE_S)

    def _stopping(self, real: Callable[[], Any]) -> Callable[[], Any]:
        @contextmanager
        def transaction() -> Iterator[Any]:
            # Not its heartbeat, and not its registration: nobody looks at a job that holds nothing.
            if threading.current_thread() is self._thread and not _is_registration():
                self._stopped.release()
                self._go.acquire()
                if self._is_abandoned:
                    raise AbandonedError
            with real() as connection:
                yield connection

        return transaction

    def _wait(self) -> None:
        assert self._stopped.acquire(timeout=PATIENCE_S), f"{self.name} comes to no transaction and no end"

    def _run(self) -> None:
        try:
            self._work(self._database)
        except BaseException as error:  # noqa: BLE001 - the explorer's to judge
            self.error = error
        self.has_ended = True
        self._stopped.release()


class Explorer:
    """Follows all orders of the commands that `begin` makes anew each time, from the same state."""

    def __init__(
        self,
        begin: Callable[[], Sequence[Command]],
        state: Callable[[], Hashable],
        check: Callable[[Sequence[Command]], None],
    ) -> None:
        """`state` is all that commands can see, without what is random; `check` is called in each new final one."""
        self._begin = begin
        self._state = state
        self._check = check
        self._known: set[Hashable] = set()
        self._to_follow: list[tuple[int, ...]] = [()]
        self.orders = 0  # that were followed to their end
        self.ends: set[Hashable] = set()

    def run(self, most: int | None = None) -> None:
        """Follow them all, or so many that are spread over all: always the same ones."""
        chance = random.Random(0)
        followed = 0
        while self._to_follow and (most is None or followed < most):
            last = len(self._to_follow) - 1
            self._follow(self._to_follow.pop(last if most is None else chance.randint(0, last)))
            followed += 1

    def _follow(self, forced: tuple[int, ...]) -> None:
        commands = self._begin()
        try:
            path = self._let_go(commands, forced)
            if path is not None:
                self.orders += 1
                self._check_end(commands, [commands[number].name for number in path])
        finally:
            for command in commands:
                command.abandon()

    def _let_go(self, commands: Sequence[Command], forced: tuple[int, ...]) -> tuple[int, ...] | None:
        """Let commands go in a new order that begins so; return it, None if it comes to what is known."""
        path: tuple[int, ...] = ()
        for command in commands:
            command.start()
        while running := [number for number, command in enumerate(commands) if not command.has_ended]:
            if len(path) < len(forced):
                number = forced[len(path)]
                commands[number].step()
            else:
                state = self._state()
                key = (state, *(command.seen for command in commands))
                if key in self._known:
                    return None
                self._known.add(key)
                number = running[0]
                if commands[number].step() or self._state() != state:
                    self._to_follow += [(*path, other) for other in running[1:]]
            path += (number,)
        return path

    def _check_end(self, commands: Sequence[Command], names: Sequence[str]) -> None:
        end = self._state()
        if end in self.ends:
            return
        self.ends.add(end)
        try:
            self._check(commands)
        except AssertionError as error:
            raise AssertionError(f"after {' '.join(names)}: {error}") from error
