"""Do something over and over, and be killed, or have a statement fail, at each step once."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from backyfs.errors import DatabaseError
from backyfs.storage.directory import DirectoryStorage
from tests.upgrade.test_faults import Statements, fail, kill, watched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_STORAGE_CALLS = ("put", "flush", "delete")

FEWEST = 5  # steps: with fewer it was not what was meant that ran


class Subject(Protocol):
    """What it is done to."""

    def act(self) -> None:
        """Do it."""
        ...

    def renew(self) -> None:
        """Make everything as it was before."""
        ...

    def check(self, *, done: bool) -> None:
        """Make sure that nothing is lost; `done`: and that it was done."""
        ...


class Stored:
    """A directory that can be made again as it was."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._original = directory.with_name(f"{directory.name}.original")
        shutil.copytree(directory, self._original)

    def renew(self) -> None:
        """Make it as it was."""
        shutil.rmtree(self._directory)
        shutil.copytree(self._original, self._directory)


def killed_at(number: int, act: Callable[[], object], *, changes_only: bool = True, storage: bool = False) -> bool:
    """Do something in a process that is killed at a statement; return whether it came that far.

    With `storage` calls of a storage in a directory are counted as well.
    """
    pid = os.fork()
    if pid == 0:
        try:
            with watched(kill, number, changes_only=changes_only) as steps:
                if storage:
                    _watch_storage(steps)
                act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def _watch_storage(steps: Statements) -> None:
    """Count each call that changes something, from now on and in all of this process."""
    for name in _STORAGE_CALLS:
        _count_calls(steps, name)


def _count_calls(steps: Statements, name: str) -> None:
    real = getattr(DirectoryStorage, name)

    def counted(*arguments: object) -> object:
        steps.note("INSERT")
        return real(*arguments)

    setattr(DirectoryStorage, name, counted)


def kill_at_every_statement(subject: Subject) -> None:
    """Kill it at each statement that changes something; the same command, once more, makes good for it."""
    number = 1
    while killed_at(number, subject.act):
        subject.check(done=False)
        subject.act()
        subject.check(done=True)
        subject.renew()
        number += 1
    subject.check(done=True)
    assert number > FEWEST


def fail_at_every_statement(subject: Subject) -> None:
    """Let each statement that changes something fail; the same command, once more, makes good for it."""
    number = 1
    while True:
        with watched(fail, number, changes_only=True) as statements, suppress(DatabaseError):
            subject.act()
        subject.check(done=statements.count < number)
        if statements.count < number:
            break
        subject.act()
        subject.check(done=True)
        subject.renew()
        number += 1
    assert number > FEWEST
