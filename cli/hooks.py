"""Run the hooks of the configuration around a command.

    before_X fails   the command is not done; on_failure; HookError
    before_X is done the command; after_X, however the command ended; on_failure, if it failed

An after_ hook or on_failure that fails is a warning: what the command did is done.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from backyfs.cli.remedies import render
from backyfs.errors import BackyfsError, HookError, InterruptedByUser
from backyfs.hooks import RUNNING_HOOK, run_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from backyfs.config import Config
    from backyfs.hooks import Fact

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

_log = logging.getLogger("backyfs.cli")


class Facts:
    """The facts that the hooks of one command get. The command adds what it finds out."""

    def __init__(self, facts: dict[str, Fact]) -> None:
        self._facts = facts

    def add(self, **facts: Fact) -> None:
        """Add facts for the hooks that are still to run."""
        self._facts.update(facts)

    def all(self) -> dict[str, Fact]:
        """Return all facts."""
        return dict(self._facts)


@contextmanager
def around(config: Config, command: str, facts: dict[str, Fact]) -> Iterator[Facts]:
    """Run what is in the `with` between its hooks.

    Raises:
        HookError: before_COMMAND failed, and nothing was done.
    """
    known = Facts({"command": command, "status": "starting", "pid": os.getpid(), **facts})
    if len(config.files) == 1:
        known.add(config=config.files[0])  # with it, commands of a hook use the same repository
    run = _Runner(config, command, known)
    if not run.any:
        yield known
        return
    started = time.monotonic()
    with _taken_over_signals() as signals:
        try:
            try:
                run.before(signals.let_through)
                signals.let_through()
                yield known
            finally:
                signals.hold_back()
        except BaseException as error:
            known.add(**_failure(error))
            raise
        else:
            known.add(status="done", exit_status=0)
        finally:
            known.add(duration_s=round(time.monotonic() - started, 3))
            run.after()
            if known.all()["status"] != "done":
                run.failed()


class _Runner:
    """The hooks of one command."""

    def __init__(self, config: Config, command: str, facts: Facts) -> None:
        # A hook that runs our own commands does not run itself.
        self._hooks = {} if RUNNING_HOOK in os.environ else dict(config.hooks.commands)
        self._timeout_s = config.hooks.timeout_s
        self._command = command
        self._facts = facts
        self._is_refused = False

    @property
    def any(self) -> bool:
        """Whether there is anything to run."""
        return any(name in self._hooks for name in (f"before_{self._command}", f"after_{self._command}", "on_failure"))

    def before(self, begun: Callable[[], None]) -> None:
        """Run before_COMMAND; `begun` is called when it can be interrupted.

        Raises:
            HookError: it failed.
        """
        try:
            self._run(f"before_{self._command}", begun)
        except HookError:
            self._is_refused = True
            raise

    def after(self) -> None:
        """Run after_COMMAND, unless before_COMMAND failed; one that was interrupted may have done half of its work."""
        if not self._is_refused:
            self._run_and_go_on(f"after_{self._command}")

    def failed(self) -> None:
        """Run on_failure."""
        self._run_and_go_on("on_failure")

    def _run_and_go_on(self, name: str) -> None:
        try:
            self._run(name)
        except HookError as error:
            _log.warning("%s", error)

    def _run(self, name: str, begun: Callable[[], None] = lambda: None) -> None:
        if name in self._hooks:
            run_hook(name, self._hooks[name], self._facts.all(), timeout_s=self._timeout_s, begun=begun)


def _failure(error: BaseException) -> dict[str, Fact]:
    """Return what the end of a command by an exception means."""
    if isinstance(error, click.exceptions.Exit) and error.exit_code == 0:
        return {"status": "done", "exit_status": 0}
    if isinstance(error, (KeyboardInterrupt, InterruptedByUser, click.Abort)):
        return {"status": "interrupted", "exit_status": InterruptedByUser.exit_status, "error": "interrupted"}
    exit_status = error.exit_status if isinstance(error, BackyfsError) else BackyfsError.exit_status
    if isinstance(error, click.exceptions.Exit):
        exit_status = error.exit_code
    return {"status": "failed", "exit_status": exit_status, "error": str(render(error))}


class _Signals:
    """The signals that end the process: they raise in a command, and have no effect on the hooks after it.

    Nor do they raise at first: a hook whose start was interrupted would be nobody's child.
    """

    def __init__(self) -> None:
        self._raises = False
        self._has_ended = False
        self._waiting: int | None = None

    def handle(self, number: int, _frame: object) -> None:
        """Handle a signal.

        Raises:
            KeyboardInterrupt, InterruptedByUser: between `let_through` and `hold_back`.
        """
        if self._raises:
            _raise(number)
        self._waiting = number
        if self._has_ended:
            _log.info("%s does not interrupt the hooks that follow the command", signal.Signals(number).name)

    def let_through(self) -> None:
        """Have signals raise from now on, beginning with one that came before.

        Raises:
            KeyboardInterrupt, InterruptedByUser: one did.
        """
        self._raises = True
        if self._waiting is not None:
            number, self._waiting = self._waiting, None
            _raise(number)

    def hold_back(self) -> None:
        """Let hooks run undisturbed from now on: they have a separate timeout."""
        self._raises = False
        self._has_ended = True


def _raise(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise InterruptedByUser(f"ended by {signal.Signals(number).name}")


@contextmanager
def _taken_over_signals() -> Iterator[_Signals]:
    """Take over the signals that would end the process without its hooks, except for signals that are ignored."""
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.getsignal(number) for number in _ENDINGS}
    for number, handler in before.items():
        if handler in {signal.SIG_DFL, signal.default_int_handler}:  # not where it is ignored, as under nohup
            signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
