"""Identify processes across hosts, and find out whether a process of the same scope has ended.

`kill(pid, 0)` decides, because it works without /proc. If /proc is available, it also reveals zombies and processes
that reuse a pid. If /proc is missing, or hides processes of other users (hidepid, ProtectProc), a missing entry means
nothing.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

_ENDED = frozenset("ZX")  # states of a process that has ended but was not waited for yet, proc(5)
_SCOPE_LENGTH = 128
_MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_NO_MACHINE = frozenset({"", "uninitialized"})  # machine-id(5)
_UNKNOWN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """The identity of a process across hosts."""

    host: str         # for people
    scope: str        # machine, boot and pid namespace, within which the pid is valid
    pid: int
    pid_started: int  # clock ticks after boot, because pids are reused; 0: unknown


def this_process() -> Process:
    """Return the identity of the calling process.

    A part that cannot be read is replaced by the same value in all processes of this host. If two processes of one
    scope still get different scopes, only a minute is lost: then the heartbeat decides, as it does between hosts.
    """
    host = os.fsencode(socket.gethostname()).decode(errors="backslashreplace")
    machine = next((text for text in map(_first_line, _MACHINE_IDS) if text not in _NO_MACHINE), host)
    boot = _first_line("/proc/sys/kernel/random/boot_id") or _UNKNOWN
    pid = os.getpid()
    state = _read_state(pid)
    return Process(
        host=host,
        scope=f"{machine} {boot} {_pid_namespace()}"[:_SCOPE_LENGTH],
        pid=pid,
        pid_started=0 if state is None else state.started,
    )


def has_ended(pid: int, pid_started: int) -> bool:
    """Return whether a process of this scope is known to have ended; also False if that cannot be determined."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # it exists, and belongs to another user
    state = _read_state(pid)
    if state is None:
        return False
    return state.letter in _ENDED or pid_started not in {0, state.started}


@dataclass(frozen=True, slots=True)
class _State:
    letter: str
    started: int  # clock ticks after boot


def _read_state(pid: int) -> _State | None:
    """Return the state of a process from /proc; None if it has no entry."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            # The name in parentheses can contain anything; field 22 is the 20th after it, proc(5).
            fields = file.read().rpartition(")")[2].split()
        return _State(fields[0], int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return _UNKNOWN


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""
