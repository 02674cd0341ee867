"""Run hooks: commands of the administrator that run before and after commands of this program.

A hook gets the same facts twice: as environment variables and as one JSON object on stdin. Hooks run through the
shell exactly as they are configured, because only the owner can write the configuration.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

from backyfs.errors import HookError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import BinaryIO

Fact: TypeAlias = "str | int | float | bool | datetime | Sequence[str] | None"

VARIABLE_PREFIX = "BACKYFS_"
RUNNING_HOOK = "BACKYFS_HOOK"  # the name of the hook; a command that finds it set does not run hooks

_SHELL = "/bin/sh"
_END_S = 10.0  # time that an interrupted hook gets to end
_LOGGED_BYTES = 64 << 10  # the last bytes of the output

_log = logging.getLogger(__name__)


def run_hook(
    name: str,
    command: str,
    facts: Mapping[str, Fact],
    *,
    timeout_s: float,
    begun: Callable[[], None] = lambda: None,
) -> None:
    """Run a hook and log its output.

    `begun` is called once the hook runs. From then on, an exception raised by a signal handler ends the hook: it gets
    SIGTERM, and later SIGKILL. Before that, such an exception would leave it running.

    Raises:
        HookError: the hook failed, was ended by a signal, or took longer than `timeout_s` seconds. In the last case
            its whole process group is killed.
    """
    _log.info("hook %s begins", name)
    facts = {"hook": name, **facts}
    # Files, not pipes: a process that the hook leaves behind would keep a pipe open and make us wait.
    with tempfile.TemporaryFile() as facts_file, tempfile.TemporaryFile() as output:
        facts_file.write(json.dumps({fact: _json_value(value) for fact, value in facts.items()}).encode())
        facts_file.seek(0)
        try:
            process = subprocess.Popen(
                [_SHELL, "-c", command],
                stdin=facts_file,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_variables(facts)},
                start_new_session=True,
            )
        except OSError as error:
            raise HookError(
                f"cannot be started: {error.strerror}", subject=f"hook {name}", remedy="see [hooks]"
            ) from error
        status = None
        try:
            begun()
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(timeout_s)
        except BaseException:  # interrupted: let the hook undo what it has begun
            _ask_to_end(process)
            raise
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        last_line = _log_output(name, output)
    if status != 0:
        fact = f"{_ending(status, timeout_s)}{last_line and f': {last_line}'}"
        raise HookError(fact, subject=f"hook {name}", remedy="see [hooks]")


def _ask_to_end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)


def _ending(status: int | None, timeout_s: float) -> str:
    if status is None:
        return f"was killed because it took more than {timeout_s:g} s"
    return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"


def _log_output(name: str, output: BinaryIO) -> str:
    """Log what a hook printed and return the last line of it."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _LOGGED_BYTES))
    lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    for line in lines:
        _log.info("hook %s: %s", name, line)
    return lines[-1].strip() if lines else ""


def _variables(facts: Mapping[str, Fact]) -> dict[str, str]:
    return {f"{VARIABLE_PREFIX}{fact.upper()}": _text(value) for fact, value in facts.items() if value is not None}


def _text(value: Fact) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, datetime):
        return _moment(value)
    if value is None or isinstance(value, (str, int, float)):
        return str(value).replace("\0", "")  # an environment variable cannot contain NUL
    return ",".join(value)


def _json_value(value: Fact) -> object:
    if isinstance(value, datetime):
        return _moment(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return list(value)


def _moment(value: datetime) -> str:
    return value.isoformat().replace("+00:00", "Z")
