"""Export versions: write their metadata to a file; stored blocks stay where they are."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from backyfs import files, keys
from backyfs.blocks import BLAKE3, load_block
from backyfs.engine.transfer.backy2_format import ExportedBlock, write_backy2_export
from backyfs.engine.transfer.export_format import (
    ExportHeader,
    ExportWriter,
    PageRecord,
    RepositoryRecord,
    SharedPageRecord,
)
from backyfs.errors import UsageError, VersionNotFoundError
from backyfs.geometry import PAGE_ENTRIES, block_count, block_length, page_count
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, list_pages, page_entries
from backyfs.metadata.records.blobs import require_blob_records, require_blobs
from backyfs.metadata.records.identity import list_key_slots, load_identity
from backyfs.metadata.records.stats import list_statistics
from backyfs.metadata.records.versions import find_version, list_versions, version_with_uid
from backyfs.model import BlobId, BlockIndex, PageNumber
from backyfs.ownfiles import find_own
from backyfs.remedies import Advice
from backyfs.work.blobset import BlobSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from backyfs.metadata.db.database import Connection
    from backyfs.model import BlobRecord, Version
    from backyfs.repository import Repository

_BACKY2_ENCRYPTION = (0, 1)


class Format(StrEnum):
    """What an export is written as."""

    BACKYFS = "backyfs"
    BACKY2 = "backy2"  # its CSV of releases from 2.12.1 on, a file for each version


def export(
    repository: Repository,
    wanted: str | None,
    path: str | None,
    form: Format,
    stdout: Callable[[], AbstractContextManager[BinaryIO]],
) -> None:
    """Write the version that a person names, or for None every version, to a new file.

    Several versions for backy2 become files in a new directory. Without a path the export goes to what `stdout` opens.

    Raises:
        VersionNotFoundError: no version matches, or several do, or it was removed in the meantime.
        UsageError: `path` exists or cannot be written, or the versions cannot be exported in this format.
        DatabaseError: the metadata cannot be read.
        MissingKeyError, IntegrityError, StorageError: a block cannot be read, where backy2 needs its hash.
    """

    def opened(path: str | None) -> AbstractContextManager[BinaryIO]:
        return stdout() if path is None else new_file(path, repository.own_paths)

    with repository.database.read() as connection:
        chosen = list_versions(connection) if wanted is None else [find_version(connection, wanted)]
    if form is Format.BACKYFS:
        with opened(path) as file:
            export_versions(repository, chosen, file)
        return
    key = repository.config.key
    configured_key = None if key is None else keys.read_key(key)
    paths = [path]
    if wanted is None:
        if path is None:
            raise UsageError("an export for backy2 has a file for each version", remedy="name a directory")
        new_directory(path, repository.own_paths)
        paths = [os.path.join(path, f"{version.uid}.csv") for version in chosen]
    for version, each in zip(chosen, paths, strict=True):
        with opened(each) as file:
            export_for_backy2(repository, version, file, configured_key=configured_key)


def export_versions(repository: Repository, chosen: Sequence[Version], file: BinaryIO) -> None:
    """Write versions to `file` in the format of `backyfs.engine.transfer.export_format`, in their current state.

    Raises:
        VersionNotFoundError: one of them was removed in the meantime.
        DatabaseError: their metadata cannot be read.
    """
    with repository.database.read() as connection:
        write_export(connection, chosen, file)


def write_export(connection: Connection, chosen: Sequence[Version], file: BinaryIO) -> None:
    """Write versions of an open database to `file`; its schema may be older than that of this program.

    Raises:
        VersionNotFoundError: one of them was removed in the meantime.
        DatabaseError: their metadata cannot be read.
    """
    block_size = load_identity(connection).block_size
    writer = ExportWriter(file, _header(connection))
    pages_written: set[int] = set()  # one number per 1,024 blocks
    blobs_written = BlobSet()
    for version in (_as_it_is_now(connection, one) for one in chosen):
        writer.write(version.record)
        for statistics in list_statistics(connection, version.uid):
            writer.write(statistics)
        for page_no, page_id in list_pages(connection, version.id):
            if page_id in pages_written:
                writer.write(SharedPageRecord(page_no, page_id))
                continue
            pages_written.add(page_id)
            blocks = block_count(version.size_bytes, block_size)
            entries = page_entries(connection, version, page_no, blocks)
            records = require_blob_records(connection, {BlobId(entry) for entry in entries if entry > HOLE})
            for blob_id, blob in records.items():
                if blobs_written.add(blob_id):
                    writer.write(blob)
            uids = tuple(records[BlobId(entry)].uid if entry > HOLE else entry for entry in entries)
            writer.write(PageRecord(page_no, page_id, uids))
    writer.end()


def export_for_backy2(
    repository: Repository, version: Version, file: BinaryIO, *, configured_key: bytes | None
) -> None:
    """Write a version to `file` in backy2's format 2.12, so that backy2 can read it with the same configuration.

    If fingerprints differ from what backy2 computes, every block is read to compute its SHA-512. If data keys are
    wrapped by the repository key, they are wrapped by the configured key instead.

    Raises:
        VersionNotFoundError: it was removed in the meantime.
        UsageError: a block has an encryption version that backy2 does not know.
        MissingKeyError, IntegrityError, StorageError: a block that must be read cannot be.
    """
    size = block_count(version.size_bytes, repository.block_size)
    with repository.database.read() as connection:
        version = _as_it_is_now(connection, version)
        hash_function = load_identity(connection).hash_function
        rewraps = bool(list_key_slots(connection))
        translation = _Translation(repository, hash_function, configured_key if rewraps else None)
        blocks = _backy2_blocks(connection, repository, version, translation)
        write_backy2_export(file, version.record, size, blocks)


@dataclass(frozen=True, slots=True)
class _Translation:
    """Translates blobs into what backy2 stores about them."""

    repository: Repository
    hash_function: str
    wrapping_key: bytes | None  # None: data keys stay as they are

    def translate(self, connection: Connection, blob_id: BlobId, blob: BlobRecord) -> BlobRecord:
        """Return the blob with a checksum and a wrapped key that backy2 understands."""
        if blob.encryption_version not in _BACKY2_ENCRYPTION:
            raise UsageError(
                f"has encryption version {blob.encryption_version}, which backy2 does not know",
                subject=f"blob {blob.uid}",
                remedy=Advice.MIGRATE_ENCRYPTION_TO_BACKY2(),
            )
        if self.hash_function == BLAKE3:
            block = load_block(self.repository.blocks, require_blobs(connection, [blob_id])[blob_id])
            blob = replace(blob, fingerprint=hashlib.sha512(block).digest())
        if blob.wrapped_key is not None and self.wrapping_key is not None:
            data_key = self.repository.blocks.keyring.unwrap(blob.wrapped_key)
            blob = replace(blob, wrapped_key=keys.wrap_key(self.wrapping_key, data_key))
        return blob


def _backy2_blocks(
    connection: Connection, repository: Repository, version: Version, translation: _Translation
) -> Iterator[ExportedBlock]:
    blocks = block_count(version.size_bytes, repository.block_size)
    for page in range(page_count(blocks)):
        entries = page_entries(connection, version, PageNumber(page), blocks)
        records = {
            blob_id: translation.translate(connection, blob_id, blob)
            for blob_id, blob in require_blob_records(
                connection, {BlobId(entry) for entry in entries if entry > HOLE}
            ).items()
        }
        for index, entry in enumerate(entries, page * PAGE_ENTRIES):
            if entry != ABSENT:
                length = block_length(BlockIndex(index), version.size_bytes, repository.block_size)
                yield ExportedBlock(index, length, None if entry == HOLE else records[BlobId(entry)])


@contextmanager
def new_file(path: str, own_paths: Sequence[str] = ()) -> Iterator[BinaryIO]:
    """Open a file that gets its name once everything is written; an existing file is not replaced.

    Raises:
        UsageError: the file exists, it cannot be written, or it would be within `own_paths` of a repository.
    """
    refuse_own(path, own_paths)
    try:
        with files.new_file(path) as file:
            yield file
    except FileExistsError as error:
        raise UsageError("exists already", subject=path, remedy="name another file") from error
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror}", subject=path, remedy="name another file"
        ) from error


def new_directory(path: str, own_paths: Sequence[str]) -> None:
    """Create a directory for files, durably.

    Raises:
        UsageError: the directory exists, it cannot be created, or it would be within `own_paths` of a repository.
    """
    refuse_own(path, own_paths)
    try:
        files.require_no_device_directory(path)
        files.make_directory(path)
        files.sync_directory(os.path.dirname(path))
    except OSError as error:
        raise UsageError(
            f"cannot be created: {error.strerror}", subject=f"directory {path}", remedy="name another one"
        ) from error


def refuse_own(path: str, own_paths: Sequence[str]) -> None:
    """Refuse a place that belongs to a repository.

    Raises:
        UsageError: it does.
    """
    own = find_own(path, own_paths)
    if own is not None:
        raise UsageError(f"belongs to the repository ({own})", subject=path, remedy="name a file outside it")


def _header(connection: Connection) -> ExportHeader:
    identity = load_identity(connection)
    return ExportHeader(
        created_at=datetime.now(UTC),
        block_size=identity.block_size,
        hash_function=identity.hash_function,
        repository=RepositoryRecord(
            uid=identity.uid,
            wrapped_fingerprint_key=identity.wrapped_fingerprint_key,
            key_slots=tuple(list_key_slots(connection)),
        ),
    )


def _as_it_is_now(connection: Connection, version: Version) -> Version:
    """Look up a version in the transaction that reads its pages; without pages it would seem to be all holes."""
    found = version_with_uid(connection, version.uid)
    if found is None:
        raise VersionNotFoundError(
            "was removed in the meantime", subject=f"version {version.uid} ({version.name})", remedy="export again"
        )
    return found
