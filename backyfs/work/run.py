"""Run an operation: its job, its progress, and whether it must stop."""

from __future__ import annotations

from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backyfs.errors import InterruptedByUser
from backyfs.model import NoProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backyfs.model import Progress, RunId
    from backyfs.remedies import Remedy
    from backyfs.work.job import Job


def never() -> bool:
    """Return False: do not stop."""
    return False


def ignore(_run_id: RunId) -> None:
    """Do nothing, because the caller adds nothing to the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """How the caller of a long operation follows and stops it."""

    progress: Progress = field(default_factory=NoProgress)
    stop: Callable[[], bool] = never  # called often, from several threads; after it returns True, the operation ends
    recorded: Callable[[RunId], None] = ignore  # called with the run when the job of the operation has ended

    def quietly(self) -> Control:
        """Return a control that stops in the same way but shows no progress."""
        return Control(stop=self.stop)


UNATTENDED = Control()


class Run:
    """One running operation. One thread reports its progress; any thread may check whether to stop."""

    def __init__(
        self, control: Control, *, interrupted: str, remedy: Remedy | None = None, job: Job | None = None
    ) -> None:
        """Begin an operation, with or without a job. If it is stopped, the error has `interrupted` and `remedy`."""
        self._job = job
        self.interrupted = interrupted
        self.remedy = remedy
        self._progress = control.progress if job is None else job.track(control.progress, control.recorded)
        self._is_shown = False
        self.stops = control.stop

    @property
    def job(self) -> Job:
        """The job of the command."""
        assert self._job is not None, "this operation runs without a job"
        return self._job

    def saying(self, interrupted: str) -> Run:
        """Return the same run with another message if it is stopped, and no remedy; for a later phase."""
        other = copy(self)
        other.interrupted = interrupted
        other.remedy = None
        return other

    def check(self) -> None:
        """Make sure that the operation may continue. Call this between long steps.

        Raises:
            JobLostError: another command considered the job dead.
            InterruptedByUser: the caller asked to stop.
        """
        if self._job is not None:
            self._job.check()
        if self.stops():
            raise InterruptedByUser(self.interrupted, remedy=self.remedy)

    @contextmanager
    def step(self, label: str, total_bytes: int) -> Iterator[None]:
        """Show progress during the `with`. `advance` counts towards the total."""
        self._progress.start(label, total_bytes)
        self._is_shown = True
        try:
            yield
        finally:
            self._is_shown = False
            self._progress.stop()

    def advance(self, amount_bytes: int) -> None:
        """Count bytes as done. Outside of a step, nothing is shown, and this does nothing."""
        if self._is_shown:
            self._progress.advance(amount_bytes)
