"""Work on the catalog: run as `python -m benchmarks.catalog_tasks TASK ...`. Each task prints one number.

A separate program, so that it measures one backup and nothing else.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from backyfs.config import load_config
from backyfs.engine.backup.backup import BackupRequest, backup
from backyfs.engine.catalog import publish as publishing
from backyfs.engine.catalog.freshpages import FreshPages
from backyfs.repository import open_repository
from backyfs.sources.registry import open_source


class Stopwatch:
    """Adds up the waiting time of a backup's owner and the work of its workers, however they share the processors."""

    def __init__(self) -> None:
        self.taken_s = 0.0

    def watch(self, owner: type, name: str, clock: Callable[[], float]) -> None:
        """Count the time of a method."""
        real = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            started = clock()
            try:
                return real(*arguments)
            finally:
                self.taken_s += clock() - started

        setattr(owner, name, watched)


def share_of_backup(config_file: str, image: str) -> float:
    """Back up an image and return the share of the catalog in its time, in percent."""
    config, _ = load_config(config_file, {})
    watch = Stopwatch()
    for name in ("__init__", "remember", "note_committed", "settle"):
        watch.watch(FreshPages, name, time.perf_counter)
    watch.watch(FreshPages, "put", time.thread_time)  # in a worker, in parallel with the others
    with open_repository(config) as repository:
        started = time.perf_counter()
        source = open_source(image)
        backup(repository, source, BackupRequest(name="disk"))
        source.close()
        before = time.perf_counter()
        publishing.publish(repository)
        ended = time.perf_counter()
    return 100 * (watch.taken_s + ended - before) / (ended - started)


TASKS: dict[str, Callable[..., float]] = {"share-of-backup": share_of_backup}

if __name__ == "__main__":
    print(TASKS[sys.argv[1]](*sys.argv[2:]))
