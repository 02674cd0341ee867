"""Several processes back up, remove, clean up, migrate, scrub and mount, and are killed; then everything is compared.

    python -m tests.soak [--minutes 20] [--seed N] [--processes 4]

The database is a private PostgreSQL, the storage a directory below the temporary one. The exit status is 1 if a version
that was reported as complete is not what it was, or if the usual commands cannot put everything right.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from tests.support.audit import audit
from tests.support.program import BACKYFS
from tests.support.repositories import make_repository, opened
from tests.support.services.postgresql import PostgresqlServer
from tests.support.stored import blob_uids

BLOCK = 64 << 10
BLOCKS = 48
KILLED = 0.25        # of all commands
PATIENCE_S = 300     # for one command: what takes longer hangs
ALLOWED = {0, 4, 20, 130}  # done; a version was removed or is held by another command; damage; interrupted


class SoakError(Exception):
    """Something is not as it was promised."""


@dataclass
class Soak:
    """All that the processes share."""

    directory: Path
    config: Path
    end_s: float
    images: dict[str, bytes] = field(default_factory=dict)  # of versions that were reported, by their uids
    counts: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    failures: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def has_ended(self) -> bool:
        """Return whether to stop."""
        return time.monotonic() > self.end_s or bool(self.failures) or self.stopped.is_set()

    def fail(self, text: str) -> None:
        """Remember what went wrong; everybody stops."""
        with self.lock:
            self.failures.append(text)

    def count(self, what: str) -> None:
        """Count something."""
        with self.lock:
            self.counts[what] += 1


class Worker(threading.Thread):
    """Runs one command after the other, each in a separate process, and kills some."""

    def __init__(self, soak: Soak, number: int, seed: int) -> None:
        super().__init__(name=f"worker-{number}")
        self._soak = soak
        self._random = random.Random(f"{seed}/{number}")
        self._name = f"disk{number}"
        self._image = soak.directory / f"{self._name}.img"
        self._mountpoint = soak.directory / f"mnt{number}"
        self._content = bytearray(self._random.randbytes(BLOCKS * BLOCK))

    def run(self) -> None:
        """Go on until the end."""
        actions = [self._back_up] * 4 + [self._remove] * 2 + [self._clean_up, self._migrate, self._scrub, self._mount]
        try:
            while not self._soak.has_ended():
                self._random.choice(actions)()
        except Exception as error:  # noqa: BLE001 - it is reported at the end, with the seed
            self._soak.fail(f"{self.name}: {error!r}")

    def _call(self, *words: str, can_be_killed: bool = True) -> tuple[int, str]:
        """Run a command; return its status, negative where it was killed, and what it printed."""
        argv = [BACKYFS, "-c", str(self._soak.config), *words]
        kill_after_s = self._random.uniform(0.05, 1.5) if can_be_killed and self._random.random() < KILLED else None
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                out, err = process.communicate(timeout=kill_after_s or PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                if kill_after_s is None:
                    raise SoakError(f"{words} hangs") from None
        command = next(word for word in words if not word.startswith("-"))
        self._soak.count("killed" if process.returncode < 0 else command)
        if process.returncode >= 0 and process.returncode not in ALLOWED:
            raise SoakError(f"{words}: status {process.returncode}: {err.strip()[-1000:]}")
        return process.returncode, out

    def _change(self) -> None:
        for _ in range(self._random.randrange(8)):
            at = self._random.randrange(BLOCKS) * BLOCK
            kind = self._random.randrange(3)
            new = bytes(BLOCK) if kind == 0 else self._random.randbytes(BLOCK)
            if kind == 1:  # what is elsewhere already
                other = self._random.randrange(BLOCKS) * BLOCK
                new = bytes(self._content[other : other + BLOCK])
            self._content[at : at + BLOCK] = new

    def _back_up(self) -> None:
        self._change()
        self._image.write_bytes(self._content)
        status, out = self._call("--json", "backup", str(self._image), self._name)
        if status == 0:
            with self._soak.lock:
                self._soak.images[json.loads(out)["uid"]] = bytes(self._content)

    def _versions(self) -> list[dict[str, str]]:
        status, out = self._call("--json", "ls", self._name, can_be_killed=False)
        return json.loads(out) if status == 0 else []

    def _remove(self) -> None:
        versions = self._versions()
        if len(versions) > 3:
            uid = self._random.choice(versions)["uid"]
            with self._soak.lock:
                self._soak.images.pop(uid, None)  # from now on it may be gone
            self._call("-q", "rm", "--force", uid)

    def _clean_up(self) -> None:
        options = self._random.choice([(), ("--dangerous-force",), ("--full",), ("--full", "--dangerous-force")])
        if self._call("-q", "cleanup", *options)[0] == 20:
            raise SoakError("a cleanup found damage, and nobody did any")

    def _migrate(self) -> None:
        number = str(self._random.randrange(3))
        if self._call("-q", "migrate-encryption", "--all", "--to", number)[0] == 20:
            raise SoakError("a migration found damage, and nobody did any")

    def _scrub(self) -> None:
        if self._call("-q", "scrub", "--all")[0] == 20:
            raise SoakError("a scrub found damage, and nobody did any")

    def _mount(self) -> None:
        self._mountpoint.mkdir(exist_ok=True)
        try:
            if self._call("-q", "mount", str(self._mountpoint), can_be_killed=False)[0] == 0:
                self._read()
        finally:
            self._call("-q", "umount", str(self._mountpoint), can_be_killed=False)

    def _read(self) -> None:
        """Compare what a mount shows with what was backed up."""
        with self._soak.lock:
            known = dict(self._soak.images)
        for uid in self._random.sample(sorted(known), min(4, len(known))):
            try:
                content = (self._mountpoint / "by_version_uid" / uid / "data").read_bytes()
            except FileNotFoundError:  # it was removed in the meantime
                continue
            if content != known[uid]:
                raise SoakError(f"version {uid} is read as something else")
            self._soak.count("read")


def settle(soak: Soak) -> None:
    """Make sure that every version is what it was, and that the usual commands put everything right."""

    def call(*words: str) -> None:
        argv = [BACKYFS, "-c", str(soak.config), "-q", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SoakError(f"{words}: status {done.returncode}: {done.stderr.strip()[-1000:]}")

    call("scrub", "--all")
    call("cleanup", "--full", "--dangerous-force")
    target = soak.directory / "restored"
    for uid, content in soak.images.items():
        call("restore", "--force", uid, str(target))
        if target.read_bytes() != content:
            raise SoakError(f"version {uid} is restored as something else")
        soak.count("compared")
    call("catalog", "push")
    with opened(soak.config) as repository:
        audit(repository)
        soak.counts["objects"] = len(blob_uids(repository.blocks.storage))


def main() -> int:
    """Soak; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", "20")))
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    print(f"soak: {options.minutes:g} minutes, {options.processes} processes, seed {options.seed}", flush=True)
    directory = Path(mkdtemp(prefix="backyfs-soak-"))
    soak = Soak(directory, directory, time.monotonic() + options.minutes * 60)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: soak.stopped.set())
    try:
        with PostgresqlServer() as server:
            soak.config = make_repository(directory / "repository", block_size=BLOCK, database=server.new_database())
            workers = [Worker(soak, number, options.seed) for number in range(options.processes)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            if not soak.failures and not soak.stopped.is_set():
                settle(soak)
    except SoakError as error:
        soak.fail(str(error))
    finally:
        for mountpoint in directory.glob("mnt*"):
            with suppress(subprocess.CalledProcessError):
                subprocess.run([BACKYFS, "-q", "umount", str(mountpoint)], check=True, capture_output=True)
        shutil.rmtree(directory, ignore_errors=True)
    print("soak: " + ", ".join(f"{what} {many}" for what, many in sorted(soak.counts.items())))
    for failure in soak.failures:
        print(f"soak: FAILED: {failure}")
    return 1 if soak.failures else 130 if soak.stopped.is_set() else 0


if __name__ == "__main__":
    sys.exit(main())
