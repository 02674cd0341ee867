"""Processes: finding out whether one has ended, even without /proc or with a /proc that hides processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backyfs.metadata.records.processes import has_ended, this_process

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
NOBODY = "65534"
# Root without the power to see and signal the processes of others. Not in group 0, which proc(5) lets see everything.
WITHOUT_POWERS = (
    "setpriv", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-sys_ptrace,-kill", "--inh-caps=-all",
)  # fmt: skip
ASK = """
import sys
from backyfs.metadata.records.processes import has_ended, this_process
own = this_process()
assert own == this_process()
print(own.pid_started > 0, has_ended(int(sys.argv[1]), int(sys.argv[2])), has_ended(own.pid, own.pid_started))
print(own.scope)
"""


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])


def ask(prepare: str, child: subprocess.Popen[bytes], *, through: tuple[str, ...] = ()) -> tuple[list[bool], str]:
    """Ask in a mount namespace whether our start is known, whether the child and we have ended, and for our scope."""
    script = f'{prepare} && exec "$@"'
    program = [*through, sys.executable, "-c", ASK, str(child.pid), str(started(child.pid))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *program],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
        cwd=ROOT,
    )
    answers, scope = done.stdout.splitlines()
    return [word == "True" for word in answers.split()], scope


@contextmanager
def waited_for(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Wait for a process in the background."""
    waiting = threading.Thread(target=child.wait)
    waiting.start()
    try:
        yield
    finally:
        child.kill()
        waiting.join()


@pytest.fixture
def child_of_nobody() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process of another user."""
    command = ["setpriv", f"--reuid={NOBODY}", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdout.read(1)  # it now belongs to that user
        yield process
        process.kill()


def test_a_live_process_that_proc_hides_has_not_ended(child_of_nobody: subprocess.Popen[bytes]) -> None:
    hide = "mount -t proc -o hidepid=invisible proc /proc"
    hidden = (*WITHOUT_POWERS, "sh", "-c", f'[ ! -e /proc/{child_of_nobody.pid} ] && exec "$@"', "sh")
    assert ask(hide, child_of_nobody, through=hidden)[0] == [True, False, False]


def test_without_proc_a_live_process_has_not_ended(child: subprocess.Popen[bytes]) -> None:
    assert ask("mount -t tmpfs none /proc", child)[0] == [False, False, False]


def test_without_proc_a_missing_process_has_ended(child: subprocess.Popen[bytes]) -> None:
    gone = "mount -t tmpfs none /proc && kill -KILL {pid} && while kill -0 {pid} 2>&-; do sleep 0.05; done"
    # Its parent waits for it in a thread, so its id becomes free.
    with waited_for(child):
        assert ask(gone.format(pid=child.pid), child)[0] == [False, True, False]


def test_without_proc_and_machine_id_the_scope_is_the_same_each_time(child: subprocess.Popen[bytes]) -> None:
    nothing = "mount -t tmpfs none /proc && for f in /etc/machine-id /var/lib/dbus/machine-id; do "
    nothing += "[ ! -e $f ] || mount --bind /dev/null $f; done"
    scopes = {ask(nothing, child)[1] for _ in range(2)}
    assert scopes == {f"{os.uname().nodename} - -"}


def test_a_process_of_another_user_has_not_ended() -> None:
    assert not has_ended(1, 0)


def test_an_impossible_process_id_counts_as_ended() -> None:
    assert has_ended(1 << 40, 0)


def test_this_process_has_not_ended() -> None:
    own = this_process()
    assert not has_ended(own.pid, own.pid_started)
