"""Count the statements and commits of this process, and do something at one of them."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from types import FrameType

_CHANGES = ("CREATE", "DROP", "ALTER", "RENAME", "INSERT", "UPDATE", "DELETE")
_ROOT = Path(__file__).parents[2]
_PROGRAM = tuple(f"{_ROOT}/{name}/" for name in ("backyfs", "cli", "migrations"))
_REVISIONS = "/migrations/versions/"


class Statements:
    """Counts statements, and does something at one of them, or at each."""

    def __init__(self, act: Callable[[], None], at: int | None, *, changes_only: bool) -> None:
        self.count = 0
        self.commits = 0
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
        self.commits += statement == "COMMIT"


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


def last_at_each_place(act: Callable[[], object], *, changes_only: bool, revisions: bool = True) -> list[int]:
    """Do something, and return the numbers of its statements, counted from 1, but only the last one at each place.

    Statements are at the same place if the same lines of the program run them, between the same commits. What handles
    the failure of one of them also handles that of the others, and has the most to undo at the last one. Without
    `revisions` their lines do not count: all revisions that run in one transaction are one place.
    """
    last: dict[Hashable, int] = {}

    def note() -> None:
        last[(statements.commits, *_lines_of_program(revisions=revisions))] = statements.count

    with watched(note, None, changes_only=changes_only) as statements:
        act()
    return sorted(last.values())


def _lines_of_program(*, revisions: bool) -> Iterator[tuple[str, int]]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_PROGRAM) and (revisions or _REVISIONS not in file):
            yield file, frame.f_lineno
        frame = frame.f_back


def fail() -> None:
    """Make a statement fail."""
    raise OperationalError("the statement", {}, Exception("injected"))


def kill() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)
