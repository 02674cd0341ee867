"""Run commands in processes that are forked, not started: what a process inherits, without the time of its imports.

As a program it is given the number of a socket: each line it reads there is a command, as JSON, and each line it
writes back the exit status. What the program was started with, such as closed descriptors, its commands inherit.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile

# When their first process is killed, all processes and mounts in these namespaces are gone.
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# Copies of the mounts of other tests would keep those busy.
_LET_GO = (
    f"awk -v below={tempfile.gettempdir()}/ 'index($2, below) == 1 {{ print $2 }}' /proc/mounts | sort -r | "
    "xargs -r umount -l; "
)


class ForkServer:
    """A process that forks commands. It and all that they leave behind end with the `with`."""

    def __init__(self, prepare, environ):
        """`prepare` is a line of shell that is run first, and ends in `"$@"`."""
        self._channel, there = socket.socketpair()
        with there:
            program = [sys.executable, "-P", __file__, str(there.fileno())]
            self._process = subprocess.Popen(
                [*_NAMESPACES, "sh", "-c", _LET_GO + prepare, "sh", *program],
                pass_fds=[there.fileno()],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._answers = self._channel.makefile("r")

    def run(self, words, *, out=None, err=None, limit_s=0):
        """Run a command and return its exit status; `out` and `err` are files for what it prints.

        After `limit_s` seconds, if there is a limit, SIGALRM ends it, and the status is -14.
        """
        order = {"words": words, "files": {1: out and str(out), 2: err and str(err)}, "limit_s": limit_s}
        self._channel.sendall(json.dumps(order).encode() + b"\n")
        return json.loads(self._answers.readline())

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
    with channel.makefile("r") as orders:
        for line in orders:
            order = json.loads(line)
            pid = os.fork()
            if not pid:
                _run(channel, order)
            answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            channel.sendall(json.dumps(answer).encode() + b"\n")


def _run(channel, order):
    from backyfs.cli.main import main

    channel.close()
    signal.alarm(order["limit_s"])
    for number, file in order["files"].items():
        if file is not None:
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(fd, int(number))
            os.close(fd)
    with contextlib.suppress(BaseException):
        main(order["words"])
    os._exit(250)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as served:
        _serve(served)
