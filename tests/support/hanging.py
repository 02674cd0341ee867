"""Files that do not answer, as on a missing disk or server: each is in a FUSE mount whose process is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.support.program import mounting, process_of
from tests.support.repositories import back_up, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


@contextmanager
def hanging(files: Sequence[Path], place: Path) -> Iterator[Callable[[], None]]:
    """Make opening any of these files block, until the end or until the yielded function is called. Needs root."""
    config_file = make_repository(place / "below", encrypted=False)
    with opened(config_file) as repository:
        uids = [back_up(repository, file, "file").version.uid for file in files]
    with mounting(config_file, place / "below" / "mount") as at, ExitStack() as undone:
        server = process_of(at)
        for file, uid in zip(files, uids, strict=True):
            subprocess.run(["mount", "--bind", at / "by_version_uid" / uid / "data", file], check=True)
            undone.callback(subprocess.run, ["umount", "-l", str(file)], check=True)
        undone.callback(os.kill, server, signal.SIGCONT)
        os.kill(server, signal.SIGSTOP)
        yield lambda: os.kill(server, signal.SIGCONT)
