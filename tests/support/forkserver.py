"""Run commands in forked processes: they inherit what a new process would, but skip the time of its imports.

The program gets the number of a socket. Each line it reads from the socket is a command, as JSON, and each line it
writes is an exit status. Its commands inherit how it was started, such as closed descriptors.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile

# When their first process is killed, all processes and mounts in these namespaces are gone.
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# For a shell in a new mount namespace: copies of the mounts of other tests would keep these mounts busy.
LET_GO = (
    f"awk -v below={tempfile.gettempdir()}/ 'index($2, below) == 1 {{ print $2 }}' /proc/mounts | sort -r | "
    "xargs -r umount -l; "
)


class ForkServer:
    """A process that forks commands. It ends with the `with`."""

    def __init__(self, prepare=None, environ=None, stdout=subprocess.DEVNULL):
        """Start the process, with a descriptor as its stdout, which its commands inherit.

        `prepare` is a line of shell that runs first and ends in `"$@"`. With it, the process has separate namespaces,
        and everything that its commands leave behind ends with it.
        """
        self._channel, there = socket.socketpair()
        with there:
            program = [sys.executable, "-P", __file__, str(there.fileno())]
            before = [] if prepare is None else [*_NAMESPACES, "sh", "-c", LET_GO + prepare, "sh"]
            self._process = subprocess.Popen(
                [*before, *program],
                pass_fds=[there.fileno()],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                start_new_session=prepare is None,
            )
        self._answers = self._channel.makefile("r")

    def run(self, words, *, out=None, err=None, limit_s=0):
        """Run a command and return its exit status; `out` and `err` are files for its output.

        If there is a limit, SIGALRM ends it after `limit_s` seconds, and the status is -14.
        """
        self.start(words, {1: out and str(out), 2: err and str(err)}, limit_s=limit_s)
        return self.end()

    def start(self, words, files, *, limit_s=0, environ=None, directory=None):
        """Start a command, one at a time; `files` are the paths of its descriptors."""
        files = {number: file for number, file in files.items() if file is not None}
        order = {"words": words, "files": files, "limit_s": limit_s, "environ": environ, "directory": directory}
        self._channel.sendall(json.dumps(order).encode() + b"\n")

    def end(self, timeout_s=None):
        """Wait for the end of the command; return its exit status, or None if it does not end in time."""
        ready, _, _ = select.select([self._channel], [], [], timeout_s)
        return json.loads(self._answers.readline()) if ready else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._answers.close()
        self._channel.close()


def _serve(channel):
    from backyfs.cli import commands

    for module in pkgutil.iter_modules(commands.__path__, f"{commands.__name__}."):
        importlib.import_module(module.name)
    for name in ("engine.setup.upgrade", "engine.setup.check", "engine.catalog.publish", "repository", "mount.session"):
        importlib.import_module(f"backyfs.{name}")
    importlib.import_module("sqlalchemy.dialects.sqlite")
    gc.collect()
    gc.freeze()  # a child would only copy it
    with channel.makefile("r") as orders:
        for line in orders:
            order = json.loads(line)
            pid = os.fork()
            if not pid:
                _run(channel, order)
            answer = _status_of(pid, channel)
            if answer is None:
                return
            channel.sendall(json.dumps(answer).encode() + b"\n")


def _status_of(pid, channel):
    """Wait for a child and return its status; if nobody is waiting for it any more, kill it and return None."""
    process = os.pidfd_open(pid)
    try:
        while True:
            ready, _, _ = select.select([process, channel], [], [])
            if process in ready:
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if not channel.recv(1, socket.MSG_PEEK):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return None
    finally:
        os.close(process)


def _run(channel, order):
    from backyfs.cli.main import main

    channel.close()
    signal.alarm(order["limit_s"])
    for number, file in order["files"].items():
        kind = os.O_RDONLY if number == "0" else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        fd = os.open(file, kind | os.O_NOCTTY)
        os.dup2(fd, int(number))  # so its children have it too
        if fd != int(number):
            os.close(fd)
    if order["directory"] is not None:
        os.chdir(order["directory"])
    if order["environ"] is not None:
        os.environ.clear()
        os.environ.update(order["environ"])
    sys.argv[1:] = order["words"]
    with contextlib.suppress(BaseException):
        main(order["words"])
    os._exit(250)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as served:
        _serve(served)
