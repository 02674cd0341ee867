"""Real mounts for tests, by the installed program."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.attaching import cleared
from tests.support.program import mounting, why_not_loop, why_not_mount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def fuse() -> None:
    """Skip the test if nothing can be mounted here."""
    reason = why_not_mount()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def loop_devices(fuse: None) -> None:
    """Skip the test if loop devices are not available."""
    reason = why_not_loop()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def mounted(fuse: None, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that mounts a repository and returns the mountpoint; all are unmounted at the end."""
    with ExitStack() as mounts:
        count = 0

        def mount(config_file: Path, *options: str, mountpoint: Path | None = None) -> Path:
            nonlocal count
            count += 1
            return mounts.enter_context(mounting(config_file, mountpoint or tmp_path / f"mount{count}", *options))

        yield mount


@pytest.fixture
def place(home: Path, tmp_path: Path) -> Iterator[Path]:
    """A directory to attach in; what is left of it and of the repository in `home` is removed."""
    with cleared(tmp_path), cleared(home):
        yield tmp_path / "place"
