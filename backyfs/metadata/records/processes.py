"""Processes among all hosts: who is asking, and whether a process of the same scope has ended.

`kill(pid, 0)` decides, because it works without /proc. What /proc adds is a bonus: a process that has ended and was not
waited for, and one that got the number of another. Where /proc is missing, or hides the processes of other users
(hidepid, ProtectProc), its silence says nothing.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

_ENDED = frozenset("ZX")  # states of a process that has ended and was not waited for yet, proc(5)
_SCOPE_LENGTH = 128
_MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_NO_MACHINE = frozenset({"", "uninitialized"})  # machine-id(5)
_UNKNOWN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process among all hosts."""

    host: str         # for people
    scope: str        # machine, boot and pid namespace: where the pid means something
    pid: int
    pid_started: int  # clock ticks after boot, because pids are used again; 0: not known


def this_process() -> Process:
    """Return what names the calling process among all hosts.

    Whatever cannot be read is replaced by what all processes of this host would put there. Two scopes that differ
    although they are the same cost a minute: then the heartbeat decides, as it does between hosts.
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
    """Return whether a process of this scope is known to have ended; False also where that cannot be known."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # it is there, and somebody else's
    state = _read_state(pid)
    if state is None:
        return False
    return state.letter in _ENDED or pid_started not in {0, state.started}


@dataclass(frozen=True, slots=True)
class _State:
    letter: str
    started: int  # clock ticks after boot


def _read_state(pid: int) -> _State | None:
    """Return what /proc says of a process; None: nothing."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            # The name in parentheses may hold anything; field 22 is the 20th after it, proc(5).
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
