"""Report the progress of a command on SIGUSR1, like dd."""

from __future__ import annotations

import signal

import click

from backyfs.cli.invocation import Invocation
from backyfs.cli.logs import log_answer


def report_on_signal() -> None:
    """Answer SIGUSR1 on stderr from now on, for any command. Unhandled, the signal would end the process.

    If it is ignored, it stays ignored.
    """
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, _Reporter().answer)


class _Reporter:
    """Answers one signal at a time. Otherwise, signals during an answer could nest without limit."""

    def __init__(self) -> None:
        self._waiting = 0

    def answer(self, _number: int, _frame: object) -> None:
        """Handle a signal."""
        self._waiting += 1
        if self._waiting > 1:
            return
        while self._waiting:
            context = click.get_current_context(silent=True)
            invocation = None if context is None else context.find_object(Invocation)
            log_answer("the command is starting" if invocation is None else invocation.how_far())
            self._waiting -= 1
