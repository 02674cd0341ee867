"""Running the program as a user without privileges, from tests that run as root.

The interpreter and its libraries may lie in a directory that only root can read, as in a checkout below /root. So
everything is imported first, and then the process becomes the user, for good.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

USER = 12_345
PATIENCE_S = 120
_PROGRAM = """
import contextlib, encodings, importlib, os, pkgutil, sys
from tests.unit.test_layers import MODULES, imports_of
for name, file in MODULES.items():
    if not name.startswith("backyfs.migrations") and not name.endswith("__main__"):
        for imported in (name, *imports_of(file.read_text(encoding="utf-8"))):
            with contextlib.suppress(ImportError):  # the name of something in a module
                importlib.import_module(imported)
for module in pkgutil.iter_modules(encodings.__path__, "encodings."):
    with contextlib.suppress(ImportError):  # of Windows
        importlib.import_module(module.name)
import sqlalchemy.dialects.sqlite
from backyfs.cli.main import run
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
os.environ["HOME"] = "/nonexistent"
for line in sys.stdin:
    words = ["-c", sys.argv[2], *line.split()]
    status = run(words)
    if status != 0:
        print(*words, "ended with", status, file=sys.stderr)
        sys.exit(status)
"""


def run_as_user(config: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands on the repository of a configuration as a user with no other rights, until one fails."""
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(USER), str(config)],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def give_to_user(directory: Path) -> None:
    """Make the user the owner of a directory and of everything in it."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)
