"""Directories that nobody but their owner may look into."""

from __future__ import annotations

import os
from contextlib import suppress


def make_directories(path: str) -> None:
    """Make a directory and those above it that are missing, each with mode 0700; what exists stays as it is.

    Not by `os.makedirs`: it gives the mode to the last one alone, and leaves the others to the umask.

    Raises:
        OSError: one of them cannot be made.
    """
    path = os.path.abspath(path)
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        with suppress(FileExistsError):  # another command has made it since
            os.mkdir(directory, 0o700)
