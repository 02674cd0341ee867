"""Start a process in the background, exchange messages with it, and leave the terminal.

The process is forked without exec, because loading the interpreter, its modules and the configuration again took half a
second. Forking is only possible while the process has a single thread, so it happens before a repository is opened.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, Self

from backyfs.cli.logs import log_end
from backyfs.cli.remedies import render_error
from backyfs.errors import BackyfsError, InterruptedByUser, MountError

if TYPE_CHECKING:
    from types import TracebackType

_SYSLOG = "/dev/log"
_READY = b"ready"
_CHUNK = 4096


class Child:
    """The background process, for its starter. At the end of a `with`, it is ready or has ended."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        """Take a process that was just forked, and the channel to it."""
        self._pid = pid
        self._channel = channel
        self._is_ready = False

    def order(self, **facts: Any) -> None:
        """Send orders, as JSON values, to `Starter.receive`."""
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended; `wait_until_ready` will find out why
            self._channel.sendall(json.dumps(facts).encode() + b"\n")

    def wait_until_ready(self) -> int:
        """Return 0 once it is ready, or its exit status if it ends first. It has logged the reason.

        Raises:
            MountError: a signal ended it.
        """
        with suppress(ConnectionResetError):
            self._is_ready = _receive(self._channel) == _READY
        if self._is_ready:
            return 0
        status = os.waitstatus_to_exitcode(self._reap())
        if status < 0:
            raise MountError(
                f"was ended by signal {-status} before it was ready",
                subject="the process of the mount",
                remedy="try again",
            )
        return status

    def _reap(self) -> int:
        status = os.waitpid(self._pid, 0)[1]
        self._pid = 0
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()
        if not self._is_ready and self._pid:
            os.kill(self._pid, signal.SIGTERM)
            self._reap()


class Starter:
    """The process that started this one and waits until it is ready.

    This process ends at the end of a `with`. The callers of `start` continue in the other process.
    """

    def __init__(self, channel: socket.socket) -> None:
        """Take the channel to it."""
        self._channel = channel

    def receive(self) -> dict[str, Any] | None:
        """Return what `Child.order` sent; None if there is nothing to do."""
        line = _receive(self._channel, end=b"\n")
        order: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return order

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> NoReturn:
        status = 0
        if isinstance(error, BackyfsError):
            status = error.exit_status
            log_end(render_error(error), status, error=error)
        elif isinstance(error, KeyboardInterrupt):  # from the terminal; the starter gets it too and reports it
            status = InterruptedByUser.exit_status
        elif error is not None:
            status = BackyfsError.exit_status
            log_end(f"unexpected {type(error).__name__}: {error}; report it, with the log", status, error=error)
        logging.shutdown()
        os._exit(status)

    def report_ready(self) -> None:
        """Leave the terminal and release the starter. If it has ended early, end too, as after SIGTERM."""
        _detach()
        try:
            self._channel.sendall(_READY)
        except (BrokenPipeError, ConnectionResetError):
            os.kill(os.getpid(), signal.SIGTERM)
        self._channel.close()


def start() -> Child | Starter:
    """Fork. Return the child in this process, and the starter in the child, which must use it in a `with`."""
    assert threading.active_count() == 1, "a process with several threads cannot fork"
    here, there = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        there.close()
        return Child(pid, here)
    here.close()
    return Starter(there)


def log_errors_only() -> None:
    """Log only errors to stderr."""
    for handler in logging.getLogger("backyfs").handlers:
        if type(handler) is logging.StreamHandler:
            handler.setLevel(logging.ERROR)


def ending_signals(*, in_background: bool) -> frozenset[signal.Signals]:
    """Return the signals that unmount: SIGINT and SIGTERM always, those of a terminal only in the foreground.

    Except for the first two, signals that were ignored when this process started, as by nohup(1), stay ignored.
    """
    always = frozenset({signal.SIGINT, signal.SIGTERM})
    if in_background:
        return always
    of_terminal = (signal.SIGHUP, signal.SIGQUIT)
    return always | {number for number in of_terminal if signal.getsignal(number) is not signal.SIG_IGN}


def _receive(channel: socket.socket, end: bytes = b"") -> bytes:
    """Return all data until `end`, or until the other side closes the channel."""
    received = b""
    while (chunk := channel.recv(_CHUNK)) != b"":
        received += chunk
        if end and received.endswith(end):
            break
    return received


def _detach() -> None:
    """Become a new session without a terminal and working directory, and log only to file or syslog."""
    os.setsid()
    os.chdir("/")
    root = logging.getLogger("backyfs")
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    if not root.handlers and os.path.exists(_SYSLOG):
        root.addHandler(logging.handlers.SysLogHandler(_SYSLOG))
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
