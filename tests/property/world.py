"""A repository, used by its commands, and beside it what it should have: a dict of bytes.

Commands run in this process, or in one that is killed at a step: a statement, a commit, a call of the storage.
"""

from __future__ import annotations

import io
import json
import re
import secrets
import shutil
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Protocol

from backyfs.cli.main import run
from backyfs.engine.restore.restore import restore
from backyfs.metadata.maps.blockmap import HOLE, list_pages, page_entries
from backyfs.metadata.records.blobs import load_blobs
from backyfs.metadata.records.versions import list_versions
from backyfs.model import BlobId, VersionStatus
from tests.fault.everystep import killed_at
from tests.support.audit import audit
from tests.support.repositories import make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository

BLOCK = 512
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda _content: None,
    "short": lambda content: content[:-1],
    "flipped": lambda content: bytes((content[0] ^ 0xFF,)) + content[1:],
}
_DAMAGE_FOUND = 20
_STALE = "is of nothing that the database has"


class Place(Protocol):
    """Where a world keeps its repository."""

    @property
    def config(self) -> Path:
        """The configuration of the repository."""
        ...

    def command(self, arguments: Sequence[str], kill_at: int) -> bool:
        """Run a command that is killed, or cut off from its storage, at a step; return False if it was."""
        ...

    def blobs(self) -> list[str]:
        """Return the uids of all objects of blobs, the oldest first."""
        ...

    def read(self, uid: str) -> bytes | None:
        """Return an object; None: there is none."""
        ...

    def write(self, uid: str, content: bytes | None) -> None:
        """Replace an object behind the back of the repository, or delete it."""
        ...


class DirectoryPlace:
    """A repository in a directory, whose commands are killed."""

    def __init__(self, directory: Path, database: str) -> None:
        """Make it."""
        self.config = make_repository(directory / "repository", block_size=BLOCK, database=database)
        self._data = directory / "repository" / "data"

    def command(self, arguments: Sequence[str], kill_at: int) -> bool:
        """Run a command that is killed at a step: a statement, a commit, a call of the storage."""
        return not killed_at(kill_at, lambda: run_quietly(arguments), changes_only=False, storage=True)

    def blobs(self) -> list[str]:
        """Return the uids of all objects."""
        files = self._data.glob("[0-9a-f][0-9a-f]/*/*.blob")
        return [file.stem for file in sorted(files, key=lambda file: file.stat().st_mtime_ns)]

    def read(self, uid: str) -> bytes | None:
        """Return an object."""
        file = self._file(uid)
        return file.read_bytes() if file.exists() else None

    def write(self, uid: str, content: bytes | None) -> None:
        """Replace an object, or delete it."""
        self._file(uid).unlink(missing_ok=True)
        if content is not None:
            self._file(uid).write_bytes(content)

    def _file(self, uid: str) -> Path:
        return self._data / uid[:2] / uid[2:4] / f"{uid}.blob"


class World:
    """One repository with what it should have."""

    def __init__(
        self,
        directory: Path,
        new_database: Callable[[], str],
        make_place: Callable[[Path, str], Place] = DirectoryPlace,
    ) -> None:
        """Make one, with a version that is left alone: a storage that gives no object at all is not there."""
        self._directory = directory
        self._new_database = new_database
        self._place = make_place(directory, new_database())
        self._config = self._place.config
        self._key_file = directory / "repository" / "backyfs.key"
        self.versions: dict[str, bytes] = {}     # that were backed up to their end, by their uids
        self.incomplete: dict[str, bytes] = {}   # what those were of that were not
        self.damaged: set[str] = set()           # uids of objects that were damaged
        self.may_be_damaged: set[str] = set()    # that were swapped: equal bytes may be in both
        self.was_resealed = False
        self.back_up("kept", b"kept", kill_at=None)
        [self._kept] = self.versions

    # Commands

    def command(self, *words: str, kill_at: int | None = None, found: bool = False) -> bool:
        """Run a command, killed at a step where one is named; return whether it came to its end.

        `found`: it may report damage.
        """
        arguments = ["-c", str(self._config), "-q", *words]
        if kill_at is not None:
            return self._place.command(arguments, kill_at)
        status, output = run_quietly(arguments)
        assert status == 0 or (found and status == _DAMAGE_FOUND), f"{words}: {status}\n{output}"
        return True

    def back_up(self, name: str, content: bytes, *options: str, kill_at: int | None) -> None:
        """Back up; if it is killed, there is no new version, or an incomplete one, or all of it."""
        ended = self.command("backup", *options, self._write(name, content), name, kill_at=kill_at)
        new = self._changed()
        if ended:
            assert [version.status for version in new] == [VersionStatus.VALID]
        assert len(new) <= 1
        for version in new:
            known = self.versions if version.status is VersionStatus.VALID else self.incomplete
            known[version.uid] = content

    def back_up_from(self, base: str, name: str, content: bytes, *, kill_at: int | None) -> None:
        """Back up what differs from a version, with hints."""
        before = self.versions[base].ljust(len(content), b"\0")
        hints = [
            {"offset": start, "length": min(BLOCK, len(content) - start), "exists": "true"}
            for start in range(0, len(content), BLOCK)
            if before[start : start + BLOCK] != content[start : start + BLOCK]
        ]
        file = self._directory / "hints.json"
        file.write_text(json.dumps(hints), encoding="ascii")
        self.back_up(name, content, "--hints", str(file), "--from-version", base, kill_at=kill_at)

    def continue_backup(self, uid: str, *, kill_at: int | None) -> None:
        """Go on with a backup that was killed."""
        content = self.incomplete[uid]
        name = next(version.name for version in self._listed() if version.uid == uid)
        self.command("backup", "--continue-version", uid, self._write(name, content), name, kill_at=kill_at)
        [version] = [version for version in self._listed() if version.uid == uid]
        if version.status is VersionStatus.VALID:
            self.versions[uid] = self.incomplete.pop(uid)
        else:
            assert kill_at is not None

    def remove(self, uid: str, *, kill_at: int | None) -> None:
        """Remove a version."""
        ended = self.command("rm", "--force", uid, kill_at=kill_at)
        there = {version.uid for version in self._listed()}
        assert uid not in there or not ended
        if uid not in there:
            self.versions.pop(uid, None)
            self.incomplete.pop(uid, None)

    def rekey(self, *, kill_at: int | None) -> None:
        """Let another key open it; if that is killed, one of the two does."""
        old_file = self._key_file.with_suffix(".old")
        shutil.copy(self._key_file, old_file)
        self._key_file.write_text(secrets.token_hex(32), encoding="ascii")
        if not self.command("rekey", "--old-key-file", str(old_file), kill_at=kill_at):
            status, _ = run_quietly(["-c", str(self._config), "-q", "key", "check"])
            if status != 0:
                shutil.copy(old_file, self._key_file)
                self.command("key", "check")

    def scrub(self, *, kill_at: int | None) -> None:
        """Read all blobs back: then versions are invalid that have damaged ones, and no others."""
        if not self.command("scrub", "--all", kill_at=kill_at, found=True):
            return
        with opened(self._config) as repository:
            for version in self._listed():
                has = set(_blob_uids(repository, version))
                if version.status is VersionStatus.VALID:
                    assert not has & self.damaged
                elif version.status is VersionStatus.INVALID:
                    assert has & (self.damaged | self.may_be_damaged)

    def repair(self, uid: str, *, kill_at: int | None) -> None:
        """Repair from the bytes of a version, and make sure that this version is whole."""
        source = self._write("source", self.versions[uid])
        self.command("scrub", "--all", found=True)
        if self.command("repair", "--from", source, "--search", kill_at=kill_at, found=True) and kill_at is None:
            [version] = [version for version in self._listed() if version.uid == uid]
            assert version.status is VersionStatus.VALID
            assert self._restored(version)[1] == []

    def recover(self) -> None:
        """Lose the database, and rebuild it."""
        self.command("catalog", "push")
        before = [(version.uid, version.status) for version in self._listed()]
        url = self._new_database()
        self.command("recover", "--to", url)
        text = self._config.read_text(encoding="utf-8")
        self._config.write_text(re.sub(r"(?m)^engine: .*", f"engine: {url}", text), encoding="utf-8")
        assert sorted((version.uid, version.status) for version in self._listed()) == sorted(before)

    # What happens to it

    def objects(self) -> list[str]:
        """Return the uids of all objects that may be damaged, the oldest first."""
        with opened(self._config) as repository:
            [kept] = _blob_uids(repository, next(version for version in self._listed() if version.uid == self._kept))
        return [uid for uid in self._place.blobs() if uid != kept]

    def choose_version(self, place: int) -> str | None:
        """Return one of the versions that may be removed, if there is any."""
        uids = [uid for uid in self.versions if uid != self._kept]
        return uids[place % len(uids)] if uids else None

    def damage(self, number: int, how: str) -> None:
        """Damage an object."""
        uids = self.objects()
        uid = uids[number % len(uids)]
        content = self._place.read(uid)
        self._place.write(uid, DAMAGES[how](content) if content else None)
        # What is damaged twice may be whole again.
        known = self.may_be_damaged if uid in self.damaged | self.may_be_damaged else self.damaged
        self.damaged.discard(uid)
        known.add(uid)

    def swap(self, one: int, other: int) -> None:
        """Let two objects have each other's content."""
        uids = self.objects()
        first, second = uids[one % len(uids)], uids[other % len(uids)]
        contents = self._place.read(first), self._place.read(second)
        for uid, content in zip((second, first), contents, strict=True):
            self._place.write(uid, content)
        self.damaged -= {first, second}
        self.may_be_damaged |= {first, second}

    # What must be true

    def check(self) -> None:
        """Check that all versions exist, and restore exactly except for blocks whose objects were damaged."""
        there = self._listed()
        assert {version.uid for version in there} == self.versions.keys() | self.incomplete.keys()
        for version in there:
            if version.uid in self.incomplete:
                assert version.status is not VersionStatus.VALID
                continue
            assert version.status is not VersionStatus.INCOMPLETE
            content, lost = self._restored(version)
            expected = self.versions[version.uid]
            assert len(content) == len(expected)
            for start in range(0, len(expected), BLOCK):
                if start // BLOCK not in lost:
                    assert content[start : start + BLOCK] == expected[start : start + BLOCK], (version.uid, start)
        if not self.damaged | self.may_be_damaged:
            with opened(self._config) as repository:
                audit(repository)
            assert all(version.status is not VersionStatus.INVALID for version in there)

    def check_and_end(self) -> None:
        """Make sure that, whatever has happened, the usual commands put everything right."""
        self.check()
        for uid in list(self.incomplete):
            self.remove(uid, kill_at=None)
        self.command("scrub", "--all", found=True)
        self.command("cleanup", "--full", "--dangerous-force", found=True)
        for uid, content in list(self.versions.items()):
            self.command("repair", "--from", self._write("source", content), "--search", uid, found=True)
            [version] = [version for version in self._listed() if version.uid == uid]
            assert version.status is VersionStatus.VALID
        self.damaged.clear()
        self.may_be_damaged.clear()
        self.check()
        self._check_catalog()
        self.recover()
        self.check()

    def _check_catalog(self) -> None:
        """Make sure that the catalog is what the database says; what an older key has sealed is left alone."""
        status, output = run_quietly(["-c", str(self._config), "-q", "-m", "-s", "catalog", "check"])
        facts = [line.partition("|")[2] for line in output.splitlines() if "|" in line]
        assert status == (_DAMAGE_FOUND if facts else 0), output
        assert set(facts) <= ({_STALE} if self.was_resealed else set()), output

    def _restored(self, version: Version) -> tuple[bytes, list[int]]:
        """Return the bytes of a version, and the blocks that could not be had."""
        target = self._directory / "restored"
        with opened(self._config) as repository:
            uids = _blob_uids(repository, version)
            report = restore(repository, version, str(target), replace=True)
            ranges = [range(damage.start // BLOCK, -(-damage.stop // BLOCK)) for damage in report.damaged]
            lost = [block for blocks in ranges for block in blocks]
            for block in lost:
                assert uids[block] in self.damaged | self.may_be_damaged, report.damaged
        return target.read_bytes(), lost

    def _listed(self) -> list[Version]:
        with opened(self._config) as repository, repository.database.read() as connection:
            return list_versions(connection)

    def _changed(self) -> list[Version]:
        """Return the versions that are new, and check that all others still exist."""
        there = self._listed()
        known = self.versions.keys() | self.incomplete.keys()
        assert known <= {version.uid for version in there}
        return [version for version in there if version.uid not in known]

    def _write(self, name: str, content: bytes) -> str:
        path = self._directory / f"{name}.img"
        path.write_bytes(content)
        return str(path)


def run_quietly(arguments: Sequence[str]) -> tuple[int, str]:
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        status = run(list(arguments))
    return status, output.getvalue()


def _blob_uids(repository: Repository, version: Version) -> list[str]:
    """Return the uid of the object of each block; '' for holes and what was never backed up."""
    uids: list[str] = []
    blocks = -(-version.size_bytes // BLOCK)
    with repository.database.read() as connection:
        for page_no, _ in list_pages(connection, version.id):
            entries = page_entries(connection, version, page_no, blocks)
            known = load_blobs(connection, [BlobId(entry) for entry in entries if entry > HOLE])
            uids += [known[BlobId(entry)].uid if entry > HOLE else "" for entry in entries]
    return uids + [""] * (blocks - len(uids))
