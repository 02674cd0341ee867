"""A change of the repository key that is killed at any statement, or whose statement fails: the old key or the new."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from backyfs.engine.secrets.rotation import rotate_repository_key
from backyfs.metadata.records.blobs import load_blobs
from backyfs.metadata.records.wrapped_keys import wrapped_keys
from backyfs.model import BlobId
from backyfs.repository.keyring import configured_secret
from tests.fault.everystep import fail_at_every_statement, kill_at_every_statement
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up, make_repository, opened
from tests.support.states import Stored

if TYPE_CHECKING:
    from pathlib import Path


class Rotation:
    """An encrypted repository; it can be made again and again."""

    def __init__(self, directory: Path) -> None:
        self._config = make_repository(directory / "repository")
        with opened(self._config) as repository:
            back_up(repository, random_image(directory / "image", 7 * BLOCK))
        self.stored = Stored(directory / "repository")
        self._key, self._data_keys, self._fingerprint_key = self.keys()

    def act(self) -> None:
        """Give it a new key."""
        with opened(self._config) as repository:
            secret = configured_secret(repository.config)
            assert secret is not None
            now = datetime.now(UTC)
            report = rotate_repository_key(repository.database, secret, older_than=now, keys_at_once=3)
            assert report is not None

    def keys(self) -> tuple[bytes | None, str, bytes | None]:
        """Return the repository key, a digest of all data keys, and the fingerprint key."""
        digest = hashlib.sha256()
        with opened(self._config) as repository, repository.database.read() as connection:
            keyring = repository.blocks.keyring
            for batch in wrapped_keys(connection):
                for blob in load_blobs(connection, [BlobId(row.blob_id) for row in batch]).values():
                    digest.update(keyring.unwrap(blob.wrapped_key))
            return keyring.repository_key, digest.hexdigest(), keyring.fingerprint_key

    def check(self, *, done: bool) -> None:
        """Make sure that whatever key there is opens everything, and that it is the new one or the old one."""
        key, data_keys, fingerprint_key = self.keys()
        assert (data_keys, fingerprint_key) == (self._data_keys, self._fingerprint_key)
        assert (key != self._key) is done


@pytest.fixture
def subject(tmp_path: Path) -> Rotation:
    return Rotation(tmp_path)


def test_a_kill_at_any_statement(subject: Rotation) -> None:
    kill_at_every_statement(subject)


def test_a_statement_that_fails(subject: Rotation) -> None:
    fail_at_every_statement(subject)
