"""Every order in which the transactions of several commands can follow each other.

Each command has a thread, and one of them runs at a time: it stops before every transaction until the explorer releases
it. Transactions are atomic. What a command does to the storage between two of them counts as part of the first. Two
orders that reach the same state, in which the database gave each command the same answers, continue in the same way, so
only one of them is followed. A transaction that neither read nor changed anything is the same at any time, so what the
others could do before it is only followed after it.
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
    """Records what an SQLite database answers: rows, without random values, and how many rows were changed."""

    def __init__(self, engine: Engine) -> None:
        """Watch an engine, as long as it exists."""
        self.answers: list[Hashable] = []
        self._is_of_interest = False
        event.listen(engine, "checkout", self._prepare)
        event.listen(engine, "before_cursor_execute", self._begin)
        event.listen(engine, "after_cursor_execute", self._end)

    def _prepare(self, connection: Any, _record: object, _proxy: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")  # no power is cut here
        connection.row_factory = self._note

    def _begin(self, _connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        # Jobs come and go and leave runs, within savepoints. What protects versions from removal is in job_versions.
        # The notes list what must be published, and nothing is published.
        self._is_of_interest = not any(word in statement for word in _OF_NO_INTEREST)

    def _end(self, _connection: object, cursor: Any, *_rest: object) -> None:
        if self._is_of_interest:
            self.answers.append(cursor.rowcount)

    def _note(self, _cursor: object, row: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._is_of_interest:
            # Text is uids, names and times.
            known = tuple(value for value in row if not isinstance(value, str) and not _is_random(value))
            self.answers.append(known)
        return row


def _is_registration() -> bool:
    caller = sys._getframe(3)  # of `read` or `write`, which contextlib runs
    return caller.f_code.co_name == "__enter__" and caller.f_globals["__name__"] == job.__name__


def _is_random(value: object) -> bool:
    return isinstance(value, int) and value >= _RANDOM


class AbandonedError(BaseException):
    """Raised in a command that is no longer followed. Only the end of its thread catches it."""


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
        """Return everything the database has answered."""
        return (self.has_ended, *self._witness.answers)

    def start(self) -> None:
        """Run to the first transaction."""
        self._witness.answers.clear()
        self._thread.start()
        self._wait()

    def step(self) -> bool:
        """Run one transaction, up to the next one or the end; return whether the database answered anything."""
        self._witness.answers.append("a transaction")
        count = len(self._witness.answers)
        self._go.release()
        self._wait()
        return len(self._witness.answers) > count

    def abandon(self) -> None:
        """Let it end without another transaction."""
        self._is_abandoned = True
        while not self.has_ended:
            self.step()
        self._thread.join(PATIENCE_S)

    def _stopping(self, real: Callable[[], Any]) -> Callable[[], Any]:
        @contextmanager
        def transaction() -> Iterator[Any]:
            # Neither its heartbeat nor its registration: a job that holds nothing does not matter to others.
            if threading.current_thread() is self._thread and not _is_registration():
                self._stopped.release()
                self._go.acquire()
                if self._is_abandoned:
                    raise AbandonedError
            with real() as connection:
                yield connection

        return transaction

    def _wait(self) -> None:
        assert self._stopped.acquire(timeout=PATIENCE_S), f"{self.name} reaches neither a transaction nor its end"

    def _run(self) -> None:
        try:
            self._work(self._database)
        except BaseException as error:  # noqa: BLE001 - the explorer judges it
            self.error = error
        self.has_ended = True
        self._stopped.release()


class Explorer:
    """Follows all orders of the commands that `begin` makes for each order, from the same state."""

    def __init__(
        self,
        begin: Callable[[], Sequence[Command]],
        state: Callable[[], Hashable],
        check: Callable[[Sequence[Command]], None],
    ) -> None:
        """Return an explorer.

        `state` returns everything commands can see, without random values. `check` is called in each new final state.
        """
        self._begin = begin
        self._state = state
        self._check = check
        self._known: set[Hashable] = set()
        self._to_follow: list[tuple[int, ...]] = [()]
        self.orders = 0  # followed to their end
        self.ends: set[Hashable] = set()

    def run(self, most: int | None = None) -> None:
        """Follow all orders, or at most `most` of them, spread over all: always the same ones."""
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
        """Run the commands in a new order that begins with `forced`; return it, or None if it reaches a known state."""
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
