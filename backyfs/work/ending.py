"""Describe for its run how a command ended, from the error that it raised. Pure."""

from __future__ import annotations

from backyfs.errors import BackyfsError, InterruptedByUser, ReaderGoneError
from backyfs.model import Ending, RunOutcome


def ending_of(error: BaseException | None) -> Ending:
    """Return how a command ended that raised this error, or None."""
    if error is None:
        return Ending(outcome=RunOutcome.SUCCEEDED, exit_status=0)
    if isinstance(error, ReaderGoneError):  # for example `| head`; the command ends with 0
        return _ending(RunOutcome.INTERRUPTED, 0, error)
    if isinstance(error, InterruptedByUser | KeyboardInterrupt):
        return _ending(RunOutcome.INTERRUPTED, InterruptedByUser.exit_status, error)
    status = error.exit_status if isinstance(error, BackyfsError) else BackyfsError.exit_status
    return _ending(RunOutcome.FAILED, status, error)


def _ending(outcome: RunOutcome, exit_status: int, error: BaseException) -> Ending:
    return Ending(outcome=outcome, exit_status=exit_status, error_class=type(error).__name__, error=str(error))
