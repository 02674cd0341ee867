"""A change of the repository key that is killed at any statement, or whose statement fails: the old key or the new."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from backyfs.engine.rotation import rotate_repository_key
from backyfs.errors import DatabaseError
from backyfs.metadata import wrapped_keys
from backyfs.metadata.blobs import load_blobs
from backyfs.repository import configured_secret
from tests.images import random_image
from tests.repositories import BLOCK, back_up, make_repository, opened
from tests.upgrade.test_faults import fail, kill, watched

if TYPE_CHECKING:
    from pathlib import Path


class Subject:
    """An encrypted repository; it can be made again and again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.config = make_repository(directory / "repository")
        with opened(self.config) as repository:
            back_up(repository, random_image(directory / "image", 7 * BLOCK))
        shutil.copytree(directory / "repository", directory / "original")
        self._key, self._data_keys, self._fingerprint_key = self.keys()

    def renew(self) -> None:
        """Make the repository as it was."""
        shutil.rmtree(self._directory / "repository")
        shutil.copytree(self._directory / "original", self._directory / "repository")

    def rotate(self) -> None:
        """Give it a new key."""
        with opened(self.config) as repository:
            secret = configured_secret(repository.config)
            assert secret is not None
            assert rotate_repository_key(repository.database, secret, older_than=datetime.now(UTC)) is not None

    def keys(self) -> tuple[bytes | None, str, bytes | None]:
        """Return the repository key, a digest of all data keys, and the fingerprint key."""
        digest = hashlib.sha256()
        with opened(self.config) as repository, repository.database.read() as connection:
            keyring = repository.blocks.keyring
            for batch in wrapped_keys.wrapped_keys(connection):
                for blob in load_blobs(connection, [row.blob_id for row in batch]).values():
                    digest.update(keyring.unwrap(blob.wrapped_key))
            return keyring.repository_key, digest.hexdigest(), keyring.fingerprint_key

    def has_new_key(self) -> bool:
        """Make sure that whatever key there is opens everything; return whether it is a new one."""
        key, data_keys, fingerprint_key = self.keys()
        assert (data_keys, fingerprint_key) == (self._data_keys, self._fingerprint_key)
        return key != self._key


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(wrapped_keys, "_BATCH", 3)
    return Subject(tmp_path)


def test_a_kill_at_any_statement(subject: Subject) -> None:
    number = 0
    while True:
        number += 1
        pid = os.fork()
        if pid == 0:
            try:
                with watched(kill, number, changes_only=True):
                    subject.rotate()
            finally:
                os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert subject.has_new_key() is not killed, f"statement {number}"
        if not killed:
            break
        subject.rotate()  # the command, once more
        assert subject.has_new_key()
        subject.renew()
    assert number > 5


def test_a_statement_that_fails(subject: Subject) -> None:
    number = 0
    while True:
        number += 1
        with watched(fail, number, changes_only=True) as statements, suppress(DatabaseError):
            subject.rotate()
        if statements.count < number:
            break
        assert not subject.has_new_key(), f"statement {number}"
    assert number > 5
    assert subject.has_new_key()
