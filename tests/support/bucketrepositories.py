"""Repositories in the buckets of tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backyfs.engine.setup.initialize import initialize
from backyfs.engine.setup.places import BucketPlace, Places
from tests.support.repositories import BLOCK

if TYPE_CHECKING:
    from tests.support.buckets import Bucket


def places_in(
    bucket: Bucket,
    directory: Path,
    *,
    prefix: str = "",
    user: str = "admin",
    endpoint: str | None = None,
    database: str | None = None,
) -> Places:
    """Return places with a storage in a bucket, reached directly or by an endpoint, and files with the keys of a user.

    Called again for the same directory, it replaces the keys.
    """
    directory.mkdir(exist_ok=True)
    credentials = getattr(bucket.server, user)
    for name, text in (("id", credentials.access_key), ("secret", credentials.secret_key)):
        (directory / name).write_text(text)
        (directory / name).chmod(0o600)
    return Places(
        config_file=str(directory / "backyfs.cfg"),
        key_file=str(directory / "backyfs.key"),
        storage=BucketPlace(
            bucket=bucket.name,
            prefix=prefix,
            endpoint=endpoint or bucket.server.endpoint,
            access_key_file=str(directory / "id"),
            secret_key_file=str(directory / "secret"),
        ),
        database=database or str(directory / "metadata.sqlite"),
        logfile=str(directory / "backyfs.log"),
    )


def made(bucket: Bucket, directory: Path, *, block_size: int = BLOCK, **options: str) -> Path:
    """Create an encrypted repository in a bucket; return its configuration."""
    places = places_in(bucket, directory, **options)
    return Path(initialize(places, block_size=block_size, encrypted=True).places.config_file)
