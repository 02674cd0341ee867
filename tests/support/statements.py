"""Statements and commits of this process, counted, and what happens at one of them."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHANGES = ("CREATE", "DROP", "ALTER", "RENAME", "INSERT", "UPDATE", "DELETE")


class Statements:
    """Counts statements, and does something at one of them, or at each."""

    def __init__(self, act: Callable[[], None], at: int | None, *, changes_only: bool) -> None:
        self.count = 0
        self._act = act
        self._at = at
        self._changes_only = changes_only

    def note(self, statement: str) -> None:
        """Count a statement, before it is executed."""
        if self._changes_only and not statement.lstrip().upper().startswith((*_CHANGES, "COMMIT")):
            return
        self.count += 1
        if self._at in (None, self.count):
            self._act()


@contextmanager
def watched(act: Callable[[], None], at: int | None, *, changes_only: bool) -> Iterator[Statements]:
    """Watch all statements and commits of this process."""
    statements = Statements(act, at, changes_only=changes_only)

    def before_execute(*arguments: Any) -> None:
        statements.note(arguments[2])

    def before_commit(_connection: object) -> None:
        statements.note("COMMIT")

    event.listen(Engine, "before_cursor_execute", before_execute)
    event.listen(Engine, "commit", before_commit)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", before_execute)
        event.remove(Engine, "commit", before_commit)


def fail() -> None:
    """Let a statement fail."""
    raise OperationalError("the statement", {}, Exception("injected"))


def kill() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)
