"""Do something over and over, and be killed, or have a statement fail, at each step once."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from backyfs.errors import DatabaseError
from tests.support.statements import fail, kill, watched
from tests.support.states import watch_storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.states import Stored

FEWEST = 5  # steps: with fewer it was not what was meant that ran


class Subject(Protocol):
    """What it is done to."""

    stored: Stored  # all that it changes

    def act(self) -> None:
        """Do it."""
        ...

    def check(self, *, done: bool) -> None:
        """Make sure that nothing is lost; `done`: and that it was done."""
        ...


def killed_at(number: int, act: Callable[[], object], *, changes_only: bool = True, storage: bool = False) -> bool:
    """Do something in a process that is killed at a statement; return whether it came that far.

    With `storage` calls of a storage in a directory are counted as well.
    """
    pid = os.fork()
    if pid == 0:
        try:
            with watched(kill, number, changes_only=changes_only) as steps:
                if storage:
                    watch_storage(steps)
                act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def kill_at_every_statement(subject: Subject) -> None:
    """Kill it at each statement that changes something; the same command, once more, makes good for it."""
    killed = subject.stored.killed(subject.act)
    subject.check(done=True)
    for copy in killed.copies.values():
        subject.stored.put(copy)
        subject.check(done=False)
        subject.act()
        subject.check(done=True)
    assert killed.steps >= FEWEST


def fail_at_every_statement(subject: Subject) -> None:
    """Let each statement that changes something fail; the same command, once more, makes good for it."""
    number = 0
    seen = set()
    has_failed = True
    while has_failed:
        number += 1
        subject.stored.renew()
        with watched(fail, number, changes_only=True) as statements, suppress(DatabaseError):
            subject.act()
        has_failed = statements.count >= number
        state = (subject.stored.state(), has_failed)
        if state in seen:  # and the rest is the same as it was then
            continue
        seen.add(state)
        subject.check(done=not has_failed)
        if has_failed:
            subject.act()
            subject.check(done=True)
    assert number > FEWEST
