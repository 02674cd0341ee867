"""Plain blocks of an export: each needs a fingerprint that this repository can check.

Nothing else authenticates a plain block. If the fingerprints of this repository have no key, one of another hash
function is kept, because it is as good. If they have one, the block is read, compared with the fingerprint of the
export, and gets a new fingerprint. That happens before the transaction that imports, and takes as long as reading
these blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backyfs.blocks import BLAKE3, OTHER_DIGEST_BYTES, digest_bytes, hash_of
from backyfs.engine.transfer.export_format import ExportHeader
from backyfs.errors import ExportFormatError, ObjectMissingError, UsageError
from backyfs.model import BlobRecord

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import BinaryIO

    from backyfs.engine.transfer.export_format import Record
    from backyfs.metadata.records.identity import Identity
    from backyfs.repository import Repository


_MAX_BYTES = 64  # of a fingerprint and of a wrapped key, see metadata.db.tables


@dataclass(frozen=True, slots=True, kw_only=True)
class FingerprintRule:
    """Which fingerprints of an export the importing repository can check."""

    is_ours: bool  # their hash function
    is_keyed: bool  # our fingerprints
    digest_bytes: int

    def needs_ours(self, blob: BlobRecord) -> bool:
        """Return whether a block must be read to compute a fingerprint of this repository."""
        return self.is_keyed and _is_plain(blob) and blob.valid and not self._is_comparable(blob)

    def without_foreign(self, blob: BlobRecord) -> BlobRecord:
        """Remove a fingerprint that this repository cannot compare with anything."""
        keeps = self._is_comparable(blob) or (_is_plain(blob) and not self.is_keyed)
        return blob if keeps else replace(blob, fingerprint=None)

    def _is_comparable(self, blob: BlobRecord) -> bool:
        return blob.fingerprint is not None and self.is_ours and len(blob.fingerprint) == self.digest_bytes


def rule_of(header: ExportHeader, identity: Identity) -> FingerprintRule:
    """Return the rule for an export and the repository that it is imported into."""
    return FingerprintRule(
        is_ours=header.hash_function == identity.hash_function
        or (header.hash_function is None and identity.hash_function != BLAKE3),
        is_keyed=identity.hash_function == BLAKE3 and identity.wrapped_fingerprint_key is not None,
        digest_bytes=digest_bytes(identity.hash_function),
    )


def checked_hash_function(header: ExportHeader) -> str:
    """Return the hash function of an export.

    Raises:
        UsageError: it is not known.
    """
    name = header.hash_function or ""
    try:
        if 0 < digest_bytes(name) <= _MAX_BYTES:
            return name
    except ValueError:
        pass
    raise UsageError(
        f"has fingerprints of {name!r}, which this program does not know",
        subject="the export",
        remedy="use a newer release",
    )


def check_blob(blob: BlobRecord) -> None:
    """Refuse a plain block that nothing authenticates, unless it is known to be damaged.

    Raises:
        ExportFormatError: it has no fingerprint of a known hash function.
    """
    if not _is_plain(blob) or not blob.valid:
        return
    if blob.fingerprint is None:
        raise ExportFormatError(
            "is stored plain and has no fingerprint to check it by; nothing was imported",
            subject=f"blob {blob.uid} of the export",
            remedy="if this is your own export, export again without the versions that use this block",
        )
    if len(blob.fingerprint) not in OTHER_DIGEST_BYTES:
        raise ExportFormatError(
            f"is stored plain, and its fingerprint of {len(blob.fingerprint)} bytes is of no hash function that this "
            "program knows; nothing was imported",
            subject=f"blob {blob.uid} of the export",
        )


class PlainFingerprints:
    """Fingerprints of this repository for the plain blocks of one export, in the order of the export."""

    def __init__(self, file: BinaryIO) -> None:
        """Keep them in `file`, which is empty, because there may be millions."""
        self._file = file

    def compute(self, repository: Repository, identity: Identity, records: Iterable[Record]) -> None:
        """Read the plain blocks that need a new fingerprint, and check each by the one in the export.

        Raises:
            ExportFormatError: a block is missing, or differs from the export.
            StorageError: the storage fails.
        """
        rule: FingerprintRule | None = None
        for record in records:
            if isinstance(record, ExportHeader):
                rule = rule_of(record, identity)
            elif isinstance(record, BlobRecord) and rule is not None and rule.needs_ours(record):
                self._file.write(_read_fingerprint(repository, record))
        self._file.seek(0)

    def take(self, rule: FingerprintRule) -> bytes:
        """Return the next one.

        Raises:
            ExportFormatError: there are no more.
        """
        found = self._file.read(rule.digest_bytes)
        if len(found) != rule.digest_bytes:
            raise ExportFormatError(
                "has plain blocks that were not compared with their fingerprints: the file or the repository changed "
                "in the meantime, or these are not blocks of the repository it names",
                subject="the export",
            )
        return found


def _read_fingerprint(repository: Repository, blob: BlobRecord) -> bytes:
    assert blob.fingerprint is not None, "checked before"
    try:
        block = repository.blocks.storage.get(blob.uid)
    except ObjectMissingError as error:
        raise ExportFormatError(
            "is stored plain and missing from the storage, so it cannot get a fingerprint of this repository",
            subject=f"blob {blob.uid} of the export",
            remedy="make the whole storage available, and import again",
        ) from error
    if len(block) != blob.size or hash_of(block, blob.fingerprint) is None:
        raise ExportFormatError(
            "is stored plain, but the storage holds other bytes than its fingerprint says; nothing was imported",
            subject=f"blob {blob.uid} of the export",
        )
    return repository.blocks.fingerprint(block)


def _is_plain(blob: BlobRecord) -> bool:
    return blob.encryption_version == 0
