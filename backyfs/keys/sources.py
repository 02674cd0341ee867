"""Read keys and passphrases, unparsed, from files, systemd credentials and commands.

Time and length are limited: a command may hang or print without end, and a file may be a FIFO without a writer.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import stat
import subprocess
import time

from backyfs.errors import MissingKeyError
from backyfs.text import shell_word

PATIENCE_S = 60.0
_MOST_BYTES = 4096

_log = logging.getLogger(__name__)


def read_credential(name: str) -> str:
    """Return a credential that systemd passed to this unit (LoadCredential in systemd.exec(5)).

    Raises:
        MissingKeyError: it does not exist or cannot be read.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise MissingKeyError(
            f"names {name} and CREDENTIALS_DIRECTORY is not set",
            subject="encryption_key_credential",
            remedy=f"run the command in a unit of systemd that has LoadCredential={name}:FILE or "
            f"LoadCredentialEncrypted={name}:FILE",
        )
    path = os.path.join(directory, name)
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # systemd has set its mode
            return file.read(_MOST_BYTES)
    except OSError as error:
        raise MissingKeyError(
            f"cannot be read: {path}: {error.strerror}",
            subject=f"the credential {name}",
            remedy=f"does the unit have LoadCredential={name}?",
        ) from error


def read_key_file(path: str, *, encoding: str = "ascii", timeout_s: float = PATIENCE_S) -> str:
    """Return the content of a file; warn if others can read it.

    Raises:
        MissingKeyError: it cannot be read, or is a FIFO without data in time.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            text = _read(fd, time.monotonic() + timeout_s).decode(encoding, errors="replace")
            is_private = not stat.S_IMODE(os.fstat(fd).st_mode) & 0o077
        finally:
            os.close(fd)
    except TimeoutError:
        raise MissingKeyError(f"gave no key within {timeout_s:g} s", subject=f"key file {path}") from None
    except OSError as error:
        raise MissingKeyError(f"cannot be read: {error.strerror}", subject=f"key file {path}") from error
    if not is_private:
        _log.warning("users other than its owner can read key file %s; run `chmod 600 %s`", path, shell_word(path))
    return text


def run_key_command(command: str, name: str, *, encoding: str = "ascii", timeout_s: float = PATIENCE_S) -> str:
    """Return the output of a command; `name` is its key in the configuration.

    Raises:
        MissingKeyError: it fails, prints too much, or takes too long, in which case it is killed.
    """
    end = time.monotonic() + timeout_s
    # A new session can be killed with all its processes, but a command that asks the user needs our terminal.
    is_alone = not _has_terminal()
    # Run by the shell, as the administrator wrote it. It comes from the configuration, which only the owner can write,
    # and never from a repository.
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=is_alone) as process:  # noqa: S602
        assert process.stdout is not None
        try:
            output = _read_of_process(process.stdout.fileno(), process.pid, end)
            if len(output) == _MOST_BYTES:
                raise MissingKeyError(f"prints {_MOST_BYTES} bytes or more, which cannot be a key", subject=name)
            status = process.wait(max(0.0, end - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            raise MissingKeyError(
                f"gave no key within {timeout_s:g} s", subject=name, remedy="run it by hand to see why"
            ) from None
        finally:
            if process.poll() is None:
                if is_alone:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
    if status != 0:
        raise MissingKeyError(f"ended with status {status}", subject=name, remedy="run it by hand to see why")
    return output.decode(encoding, errors="replace")


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _read_of_process(fd: int, pid: int, end: float) -> bytes:
    """Read until a process has ended. Processes that it leaves behind may keep its pipe open."""
    ended = os.pidfd_open(pid)
    try:
        return _read(fd, end, ended)
    finally:
        os.close(ended)


def _read(fd: int, end: float, ended: int | None = None) -> bytes:
    """Read until the end of a file, or until the descriptor `ended` is readable and no data is left.

    Raises:
        TimeoutError: `end`, on the monotonic clock, is reached first.
    """
    output = b""
    poll = select.poll()
    for each in (fd, ended):
        if each is not None:
            poll.register(each, select.POLLIN)
    while len(output) < _MOST_BYTES:
        ready = [each for each, _ in poll.poll(max(0.0, end - time.monotonic()) * 1000)]
        if not ready:
            raise TimeoutError
        piece = os.read(fd, _MOST_BYTES - len(output)) if fd in ready else b""
        if not piece:
            break
        output += piece
    return output
