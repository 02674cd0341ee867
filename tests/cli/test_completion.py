"""Completion, as the shells do it: a line is typed into a real one, then TAB, then it is looked at."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.images import random_image
from tests.repositories import BLOCK, back_up, make_repository, opened

BIN = Path(sys.executable).parent
BACKYFS = str(BIN / "backyfs")
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
START = {
    "bash": "bind 'set show-all-if-ambiguous on'; eval \"$(backyfs completion bash)\"",
    "zsh": "autoload -U compinit; compinit -D -u; zstyle ':completion:*' insert-tab false; "
    'eval "$(backyfs completion zsh)"',
    "fish": "backyfs completion fish | source",
}
LINE_START = "\x01"
DEADLINE_S = 8


class Typist:
    """A shell on a terminal of its own, and somebody who types into it."""

    def __init__(self, shell, directory):
        self._master, self._slave = pty.openpty()
        environ = {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "HOME": str(directory),
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
            "INPUTRC": "/dev/null",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        }
        terminal = os.ttyname(self._slave)  # controls the shell that opens it: the leader of a session
        self.process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" <{terminal} >{terminal} 2>&1', "sh", *SHELLS[shell]],
            start_new_session=True,
            env=environ,
            cwd=directory,
        )
        self._numbers = iter(range(1000))

    def enter(self, line):
        """Enter a line and wait for its end."""
        mark = f"done-{next(self._numbers)}"
        self._write(f"{line}; echo {mark[:2]}''{mark[2:]}\n")
        return self._read_to(mark)

    def completed(self, line):
        """Return the words on the line after TAB."""
        self._write(f"{line}\t")
        time.sleep(0.05)
        answer = self.enter(f"{LINE_START}printf '<%s>\\n' \x05")
        return re.findall(r"^<(.*)>\r?$", answer, re.MULTILINE)

    def _write(self, text):
        os.write(self._master, text.encode())

    def _read_to(self, mark):
        shown = ""
        end = time.monotonic() + DEADLINE_S
        while f"{mark}\r\n" not in shown:
            ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            assert ready, shown
            shown += os.read(self._master, 65536).decode(errors="replace")
        return shown

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Give a directory with a configuration, `my.cfg`, and versions of three names."""
    directory = tmp_path_factory.mktemp("home")
    config = make_repository(directory / "repository")
    image = random_image(directory / "image", BLOCK)
    with opened(config) as repository:
        for name in ("disk", "disk", "wörld", "my disk's"):
            back_up(repository, image, name)
    (directory / "my.cfg").symlink_to(config)
    return directory


@pytest.fixture(scope="module", params=SHELLS)
def shell(request):
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture(scope="module")
def typist(shell, place):
    typist = Typist(shell, place)
    try:
        typist.enter(START[shell])
        yield typist
    finally:
        typist.close()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("backyfs unpro", ["backyfs", "unprotect"]),
        ("backyfs --confi", ["backyfs", "--configfile"]),
        ("backyfs -c my", ["backyfs", "-c", "my.cfg"]),
        ("backyfs --configfile=my", ["backyfs", "--configfile=my.cfg"]),
        ("backyfs -c my.cfg restore --for", ["backyfs", "-c", "my.cfg", "restore", "--force"]),
        ("backyfs -c my.cfg restore dis", ["backyfs", "-c", "my.cfg", "restore", "disk@latest"]),
        ("backyfs -c my.cfg restore disk@la", ["backyfs", "-c", "my.cfg", "restore", "disk@latest"]),
        ("backyfs -c ~/my.cfg restore wö", ["backyfs", "-c", "{home}/my.cfg", "restore", "wörld@latest"]),
        ("backyfs -c my.cfg restore my", ["backyfs", "-c", "my.cfg", "restore", "my disk's@latest"]),
        ('backyfs -c my.cfg restore "my di', ["backyfs", "-c", "my.cfg", "restore", "my disk's@latest"]),
        ("backyfs -c my.cfg restore disk@latest im", ["backyfs", "-c", "my.cfg", "restore", "disk@latest", "image"]),
        ("backyfs -c my.cfg ls wö", ["backyfs", "-c", "my.cfg", "ls", "wörld"]),
        ("backyfs completion fi", ["backyfs", "completion", "fish"]),
        ("backyfs -c missing.cfg restore dis", ["backyfs", "-c", "missing.cfg", "restore", "dis"]),
    ],
)  # fmt: skip
def test_a_shell_completes(typist, place, line, words):
    assert typist.completed(line) == [word.format(home=place) for word in words]


def test_a_shell_completes_a_uid(typist, place):
    with opened(place / "my.cfg") as repository, repository.database.read() as connection:
        from backyfs.metadata.versions import list_versions

        uid = list_versions(connection)[0].uid
    assert typist.completed(f"backyfs -c my.cfg restore {uid[:13]}")[-1] == uid
