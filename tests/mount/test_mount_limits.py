"""A mount of a storage with limited bandwidth."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.images import random_image
from tests.support.program import ends, process_ending, process_of
from tests.support.repositories import back_up, make_repository, opened, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    Mounted = Callable[..., Path]

MIB = 1 << 20
LATEST = "by_name/disk/latest/data"


def limited(directory: Path, bytes_per_s: int) -> Path:
    """Return the configuration of a repository with a read limit and one version of `directory`/image."""
    config_file = make_repository(directory / "repository", block_size=MIB, encrypted=False)
    with opened(config_file) as repository:
        back_up(repository, random_image(directory / "image", 4 * MIB))
    text = config_file.read_text()
    config_file.write_text(text.replace("type: file", f"type: file\nbandwidth_read: {bytes_per_s}"))
    return config_file


def test_an_image_is_read_at_the_limit_of_the_storage(mounted: Mounted, tmp_path: Path) -> None:
    at = mounted(limited(tmp_path, 2 * MIB))
    started = time.monotonic()
    assert (at / LATEST).read_bytes() == (tmp_path / "image").read_bytes()
    assert time.monotonic() - started > 1.8


def has_open(pid: int, directory: Path) -> bool:
    """Return whether a process has an open file below a directory."""
    with suppress(FileNotFoundError):  # it opens and closes other files
        return any(os.readlink(link).startswith(f"{directory}/") for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_mount_whose_readers_wait_for_hours_ends_immediately(
    mounted: Mounted, tmp_path: Path, number: signal.Signals
) -> None:
    at = mounted(limited(tmp_path, 1024))
    with process_ending(process_of(at)):
        process = os.pidfd_open(process_of(at))
        reader = subprocess.Popen(["cat", str(at / LATEST)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: has_open(reader.pid, at), "the image is opened")
        assert reader.poll() is None
        signal.pidfd_send_signal(process, number)
        assert ends(process, 2)
        assert reader.wait(5) == 1
        os.close(process)
