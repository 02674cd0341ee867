"""Changes to a repository behind the back of a mount: damage, removal, backups that never ended."""

from __future__ import annotations

import os
from array import array
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import delete

from backyfs.geometry import block_count
from backyfs.images.image import Image
from backyfs.metadata.db.tables import version_pages, versions
from backyfs.metadata.maps.blockmap import ABSENT, commit_page, page_entries
from backyfs.metadata.records.versions import create_version, set_status
from backyfs.model import BlockIndex, PageNumber, VersionStatus, VersionUid
from backyfs.storage.keys import is_blob

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.metadata.db.database import Connection
    from backyfs.model import Blob, BlobUid, Version
    from backyfs.repository import Repository
    from backyfs.storage.protocol import Storage


def blob_of(repository: Repository, version: Version, index: int) -> Blob:
    """Return the blob that contains a block."""
    blob = Image(repository, version).blob(BlockIndex(index))
    assert blob is not None, "the block is a hole"
    return blob


def file_of(repository: Repository, blob: Blob) -> Path:
    """Return the file of a blob in the storage."""
    storage, *_ = repository.own_paths
    return Path(storage) / blob.uid[:2] / blob.uid[2:4] / f"{blob.uid}.blob"


def blob_uids(storage: Storage) -> list[BlobUid]:
    """Return the uids of all blobs that have objects."""
    return [found.key for found in storage.list() if is_blob(found.key)]


def object_names(storage: Storage, prefix: str = "catalog/") -> list[str]:
    """Return the names of the named objects that begin with a prefix."""
    return [str(found.key) for found in storage.list(prefix) if not is_blob(found.key)]


def flip_a_byte(file: Path) -> None:
    """Change one byte in the middle."""
    with file.open("r+b") as stored:
        stored.seek(file.stat().st_size // 2)
        byte = stored.read(1)
        stored.seek(-1, os.SEEK_CUR)
        stored.write(bytes((byte[0] ^ 0xFF,)))


def truncate(file: Path) -> None:
    """Remove the last byte."""
    os.truncate(file, file.stat().st_size - 1)


def incomplete_copy(repository: Repository, version: Version, absent: Iterable[int]) -> Version:
    """Make an incomplete version of one page that has all blocks of `version` but some."""
    with repository.database.write() as connection:
        blocks = block_count(version.size_bytes, repository.block_size)
        entries = page_entries(connection, version, PageNumber(0), blocks)
        for index in absent:
            entries[index] = ABSENT
        copy = create_version(
            connection,
            name=version.name,
            snapshot_name="",
            size_bytes=version.size_bytes,
            created_at=datetime.now(UTC),
        )
        commit_page(connection, copy.id, PageNumber(0), entries)
    return copy


def finish(repository: Repository, incomplete: Version, whole: Version) -> None:
    """Give an incomplete version the blocks of another one and make it valid, as the end of its backup would."""
    with repository.database.write() as connection:
        blocks = block_count(whole.size_bytes, repository.block_size)
        entries = page_entries(connection, whole, PageNumber(0), blocks)
        commit_page(connection, incomplete.id, PageNumber(0), entries)
        set_status(connection, incomplete.id, VersionStatus.VALID)


def remove_version(repository: Repository, uid: VersionUid) -> None:
    """Delete the rows of a version, as `backyfs rm` would."""
    with repository.database.write() as connection:
        chosen = versions.c.uid == uid
        here = version_pages.c.version_id.in_(versions.select().with_only_columns(versions.c.id).where(chosen))
        connection.execute(delete(version_pages).where(here))
        connection.execute(delete(versions).where(chosen))


def version_with(connection: Connection, *entries: int, block_size: int = 4096) -> Version:
    """Insert a version of one page with these entries."""
    version = create_version(
        connection, name="disk", snapshot_name="", size_bytes=len(entries) * block_size, created_at=datetime.now(UTC)
    )
    commit_page(connection, version.id, PageNumber(0), array("q", entries))
    return version
