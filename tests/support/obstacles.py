"""Obstacles that somebody with write access to a storage may put in the place of an object or directory."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_bytes(b"elsewhere")
    path.symlink_to(elsewhere)


def _socket(path: Path) -> None:
    # The path of a socket must be short.
    directory = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


OBSTACLES: dict[str, Callable[[Path], None]] = {
    "a directory": lambda path: path.mkdir(),
    "a symbolic link": _link,
    "a symbolic link to itself": _loop,
    "a FIFO": os.mkfifo,
    "a socket": _socket,
}
if os.geteuid() == 0:
    OBSTACLES["a device"] = lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


def put_in_place(path: Path, kind: str) -> None:
    """Replace a file with an obstacle of a kind."""
    path.unlink()
    OBSTACLES[kind](path)
