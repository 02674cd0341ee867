"""Import an export of backyfs or backy2: only the metadata, while stored blocks stay where they are.

The whole file is checked before anything is changed. Then it is read again and imported in one transaction.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO, cast

from backyfs import keys
from backyfs.engine.catalog.publish import catalog_kept
from backyfs.engine.transfer.backy2_format import MAGIC as BACKY2_MAGIC
from backyfs.engine.transfer.backy2_format import read_backy2_export
from backyfs.engine.transfer.export_format import ZSTD_MAGIC, ExportHeader, PageRecord, SharedPageRecord, read_export
from backyfs.engine.transfer.plainblobs import PlainFingerprints, check_blob, checked_hash_function, rule_of
from backyfs.errors import (
    ExportFormatError,
    IntegrityError,
    JobsRunningError,
    KeyMaterialError,
    MissingKeyError,
    UsageError,
    VersionExistsError,
    WrongKeyError,
)
from backyfs.geometry import PAGE_ENTRIES, block_count, block_length, page_count, page_length
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, commit_page, new_entries, share_pages
from backyfs.metadata.records.blobs import contradict, find_by_uid, insert_blobs, newest_wrapped_key
from backyfs.metadata.records.identity import list_key_slots, load_identity, replace_identity, save_identity_tag
from backyfs.metadata.records.jobs import list_live_jobs
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.stats import insert_statistics_records, list_statistics
from backyfs.metadata.records.versions import has_contents, insert_version, version_with_uid
from backyfs.model import BlobRecord, BlockIndex, StatisticsRecord, VersionRecord, VersionStatus
from backyfs.repository.claim import hand_over
from backyfs.repository.keyring import tag_of
from backyfs.work.silence import remove_silent_jobs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.engine.transfer.export_format import Record, RepositoryRecord
    from backyfs.engine.transfer.plainblobs import FingerprintRule
    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.maps.blockmap import Entries
    from backyfs.metadata.records.identity import Identity
    from backyfs.model import BlobUid, PageId, Version
    from backyfs.repository import Repository

_SPOOL_BYTES = 16 << 20  # of an import from a pipe kept in memory
_MAX_PENDING = 1024      # blobs that wait for their page


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What was imported."""

    versions: tuple[VersionRecord, ...]
    unverifiable: int  # blobs whose fingerprint was removed, because its hash function is not that of the repository


def import_export(repository: Repository, file: BinaryIO) -> ImportReport:
    """Store all versions of an export; its blobs may be wrapped by the configured key.

    Raises:
        MissingKeyError: the configured key cannot be read.
        What `import_versions` raises.
    """
    key = repository.config.key
    with catalog_kept(repository):
        return import_versions(repository, file, configured_key=None if key is None else keys.read_key(key))


def import_versions(repository: Repository, file: BinaryIO, *, configured_key: bytes | None) -> ImportReport:
    """Store all versions of an export.

    An export of another repository can only be imported into an empty repository, which becomes that repository.
    `configured_key` must be its key.

    Raises:
        ExportFormatError: the file is truncated or not an export.
        VersionExistsError: one of its versions exists already.
        UsageError: it belongs to another repository, or has another block size.
        MissingKeyError: its blobs are encrypted, and there is no key.
        WrongKeyError: its data keys are wrapped neither by the key of this repository nor by the configured key.
        JobsRunningError: this repository would become another one, but commands are using it.
    """
    with spooled(file) as whole, tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as fingerprints:
        plain = PlainFingerprints(cast("BinaryIO", fingerprints))
        with repository.database.read() as connection:
            identity = load_identity(connection)
            versions = tuple(_check(connection, _records(whole, identity.block_size), identity))
        plain.compute(repository, identity, _records(whole, identity.block_size))
        remove_silent_jobs(repository.database)
        with repository.database.write() as connection:
            records = _records(whole, identity.block_size)
            importer = _Importer(repository, connection, configured_key, plain)
            report = importer.run(records, versions)
        if importer.becomes is not None:
            hand_over(repository.blocks.storage, importer.becomes)
        return report


def spooled(file: BinaryIO) -> BinaryIO:
    """Return a file that can be read twice: the file itself, or a copy of what a pipe delivers."""
    if file.seekable():
        return file
    spool = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 - the caller closes it
    shutil.copyfileobj(file, spool)
    return cast("BinaryIO", spool)


def _records(file: BinaryIO, block_size: int) -> Iterator[Record]:
    """Yield the records of an export in either format, from the start of a seekable file."""
    file.seek(0)
    start = file.read(len(BACKY2_MAGIC))
    file.seek(0)
    if start.startswith(ZSTD_MAGIC):
        return read_export(file)
    if start == BACKY2_MAGIC:
        return read_backy2_export(file, block_size)
    raise ExportFormatError(
        "is not an export of backyfs or backy2", subject="the file", remedy="name a file that one of them wrote"
    )


def _check(connection: Connection, records: Iterator[Record], identity: Identity) -> Iterator[VersionRecord]:
    """Read an export to its end and yield its versions; raise if it cannot be imported."""
    version: VersionRecord | None = None
    seen: set[str] = set()
    pages: dict[int, tuple[int, bool]] = {}  # by id: the length, and whether blocks are absent
    last_page = -1
    for record in records:
        match record:
            case ExportHeader():
                _check_header(record, identity)
            case VersionRecord():
                if record.uid in seen:
                    raise ExportFormatError(f"has version {record.uid} twice", subject="the export")
                seen.add(record.uid)
                _check_version(connection, record)
                version, last_page = record, -1
                yield record
            case StatisticsRecord():
                if version is None or record.version_uid != version.uid:
                    raise ExportFormatError("has statistics in a wrong place", subject="the export")
            case BlobRecord():
                check_blob(record)
            case PageRecord() | SharedPageRecord():
                if version is None or record.number <= last_page:
                    raise ExportFormatError(
                        f"has page {record.number} of a block map in a wrong place", subject="the export"
                    )
                _check_page(record, version, identity.block_size, pages)
                last_page = record.number


def _check_page(
    record: PageRecord | SharedPageRecord,
    version: VersionRecord,
    block_size: int,
    pages: dict[int, tuple[int, bool]],
) -> None:
    """Check a page, and note it for versions that share it."""
    if isinstance(record, SharedPageRecord):
        length, lacks_blocks = pages.get(record.same_as, (-1, False))
    else:
        length, lacks_blocks = len(record.entries), ABSENT in record.entries
        if record.id is not None:
            pages[record.id] = (length, lacks_blocks)
    blocks = block_count(version.size_bytes, block_size)
    if record.number >= page_count(blocks) or length != page_length(record.number, blocks):
        raise ExportFormatError(
            f"has {length} entries, which does not fit an image of {version.size_bytes} bytes in blocks of "
            f"{block_size}",
            subject=f"page {record.number} of version {version.uid}",
        )
    if lacks_blocks and version.status is VersionStatus.VALID:
        raise ExportFormatError(
            "lacks blocks, but the version is valid", subject=f"page {record.number} of version {version.uid}"
        )


def _check_header(header: ExportHeader, identity: Identity) -> None:
    if header.block_size is not None and header.block_size != identity.block_size:
        raise UsageError(
            f"has blocks of {header.block_size} bytes, but this repository has blocks of {identity.block_size}",
            subject="the export",
            remedy="import it into a repository with the same block size",
        )


def _check_version(connection: Connection, record: VersionRecord) -> None:
    if version_with_uid(connection, record.uid) is not None:
        raise VersionExistsError(
            "exists already; nothing was imported", subject=f"version {record.uid} ({record.name})"
        )
    if len(set(record.tags)) != len(record.tags):
        raise ExportFormatError("has a tag twice", subject=f"version {record.uid}")


@dataclass(slots=True)
class _Importer:
    repository: Repository
    connection: Connection
    configured_key: bytes | None
    plain: PlainFingerprints
    rule: FingerprintRule | None = None
    repository_key: bytes | None = None
    version: Version | None = None
    pending: dict[BlobUid, BlobRecord] = field(default_factory=dict)
    pages: dict[int, PageId | None] = field(default_factory=dict)  # by id in the file; None: only holes
    dropped: set[BlobUid] = field(default_factory=set)  # pending blobs whose fingerprint was removed
    unverifiable: int = 0
    becomes: str | None = None  # uid of the repository whose identity this one takes over

    def run(self, records: Iterator[Record], versions: tuple[VersionRecord, ...]) -> ImportReport:
        """Store the checked records."""
        for record in records:
            match record:
                case ExportHeader():
                    self._begin(record)
                case VersionRecord():
                    if version_with_uid(self.connection, record.uid) is not None:  # stored since the check
                        raise VersionExistsError("exists already", subject=f"version {record.uid} ({record.name})")
                    self.version = insert_version(self.connection, record)
                case StatisticsRecord():
                    if record not in list_statistics(self.connection, record.version_uid):  # they outlive versions
                        insert_statistics_records(self.connection, [record])
                case BlobRecord():
                    self.pending[record.uid] = self._comparable(record)
                    if len(self.pending) >= _MAX_PENDING:
                        self._store_pending()
                case PageRecord() | SharedPageRecord():
                    self._store_page(record)
        self._store_pending()
        if self.becomes is not None:
            self._require_encrypted()
        return ImportReport(versions=versions, unverifiable=self.unverifiable)

    def _begin(self, header: ExportHeader) -> None:
        identity = load_identity(self.connection)
        self.repository_key = self.repository.blocks.keyring.repository_key
        if self.repository_key is None and newest_wrapped_key(self.connection) is None:
            self.repository_key = self.configured_key  # as in a repository of backy2
        if header.repository is not None and header.repository.uid != identity.uid:
            identity = self._become(header, header.repository, identity)
        self.rule = rule_of(header, identity)

    def _become(self, header: ExportHeader, of: RepositoryRecord, identity: Identity) -> Identity:
        """Turn this empty repository into the one that was exported."""
        if has_contents(self.connection):
            raise UsageError(
                f"is of repository {of.uid}, but this is {identity.uid} and not empty",
                subject="the export",
                remedy="import it there, or into a new repository",
            )
        running = list_live_jobs(self.connection, this_process())
        if running:  # they would continue with the old keys
            raise JobsRunningError(
                f"would become {of.uid}, but is in use by {'; '.join(map(str, running))}",
                subject="this repository",
                remedy="try again when they have ended",
            )
        identity = replace(
            identity,
            uid=of.uid,
            hash_function=checked_hash_function(header),
            wrapped_fingerprint_key=of.wrapped_fingerprint_key,
        )
        self.repository_key = self._open(of)
        # Whether this is killed before or after the commit, the storage has the marker of the repository.
        hand_over(self.repository.blocks.storage, self.repository.uid, identity.uid)
        self.becomes = identity.uid
        replace_identity(self.connection, identity, of.key_slots)
        # Without slots nothing shows yet whether the configured key is right: see `keyring.confirm_identity`.
        key = self.repository_key if of.key_slots else None
        save_identity_tag(self.connection, None if key is None else tag_of(identity, key))
        return identity

    def _require_encrypted(self) -> None:
        """Refuse to become a repository without encryption if a key is configured: anyone can write such a file."""
        config = self.repository.config
        names_key = config.encryption_version != 0 and (config.key or config.passphrase) is not None
        if names_key and not list_key_slots(self.connection) and newest_wrapped_key(self.connection) is None:
            raise KeyMaterialError(
                f"is of repository {self.becomes}, which is not encrypted, but a key is configured; nothing was "
                "imported",
                subject="the export",
                remedy="if that repository was never encrypted, set `encryption_version: 0` to import it",
            )

    def _open(self, of: RepositoryRecord) -> bytes | None:
        """Return the key of the exported repository; without slots it is the configured key."""
        if not of.key_slots:
            if of.wrapped_fingerprint_key is not None:
                raise ExportFormatError(
                    "is of an encrypted repository, but has no key slot of it", subject="the export"
                )
            return self.configured_key
        if self.configured_key is None:
            raise MissingKeyError("is of an encrypted repository", subject="the export", remedy="configure its key")
        repository_key = keys.open_slots(list(of.key_slots), self.configured_key)
        if of.wrapped_fingerprint_key is not None:
            try:
                keys.unwrap_key(repository_key, of.wrapped_fingerprint_key)
            except IntegrityError as error:  # it would make the repository impossible to open
                raise ExportFormatError(
                    "has a fingerprint key that its own key does not open", subject="the export"
                ) from error
        return repository_key

    def _store_pending(self) -> None:
        """Insert blobs without a row; existing rows must agree."""
        known = find_by_uid(self.connection, self.pending)
        for uid, row in known.items():
            if row.doomed:
                raise UsageError(
                    "is being deleted by a cleanup; nothing was imported", subject=f"blob {uid} of the export"
                )
            other = self.pending[uid]
            if row.facts.size != other.size or contradict(row.facts.fingerprint, other.fingerprint):
                raise UsageError(
                    "holds another block here than the export says; nothing was imported, because one of them is "
                    "wrong",
                    subject=f"blob {uid}",
                )
        new = [blob for uid, blob in self.pending.items() if uid not in known]
        self.unverifiable += sum(blob.uid in self.dropped for blob in new)
        insert_blobs(self.connection, map(self._with_our_key, new), datetime.now(UTC))
        self.pending.clear()
        self.dropped.clear()

    def _comparable(self, blob: BlobRecord) -> BlobRecord:
        """Remove a fingerprint that this repository cannot compute; a plain block gets one that it can."""
        assert self.rule is not None, "the header comes first"
        if self.rule.needs_ours(blob):
            return replace(blob, fingerprint=self.plain.take(self.rule))
        kept = self.rule.without_foreign(blob)
        if kept.fingerprint != blob.fingerprint:
            self.dropped.add(blob.uid)
        return kept

    def _with_our_key(self, blob: BlobRecord) -> BlobRecord:
        """Return a blob whose data key is wrapped by the key of this repository.

        In exports for backy2, and in those older than the repository key, the configured key wraps it.
        """
        if blob.wrapped_key is None:
            return blob
        if self.repository_key is None:
            raise MissingKeyError(
                "is encrypted, but the configuration has no key for it",
                subject=f"blob {blob.uid} of the export",
                remedy="set encryption_key_file, encryption_key_command or encryption_key",
            )
        with suppress(IntegrityError):
            keys.unwrap_key(self.repository_key, blob.wrapped_key)
            return blob
        with suppress(IntegrityError):
            data_key = keys.unwrap_key(self.configured_key or b"", blob.wrapped_key)
            return replace(blob, wrapped_key=keys.wrap_key(self.repository_key, data_key))
        raise WrongKeyError(
            "has a data key that the key of this repository does not open; nothing was imported",
            subject=f"blob {blob.uid} of the export",
            remedy="was the export made with another key?",
        )

    def _store_page(self, record: PageRecord | SharedPageRecord) -> None:
        version = self.version
        assert version is not None, "checked before"
        keep_holes = version.status is VersionStatus.INCOMPLETE
        if isinstance(record, SharedPageRecord):
            shared = self.pages[record.same_as]
            if shared is not None:
                share_pages(self.connection, version.id, [(record.number, shared)])
                return
            entries = new_entries(page_length(record.number, self._blocks(version)), HOLE)
        else:
            entries = self._entries(record, version)
        page_id = commit_page(self.connection, version.id, record.number, entries, keep_holes=keep_holes)
        if isinstance(record, PageRecord) and record.id is not None:
            self.pages[record.id] = page_id

    def _entries(self, record: PageRecord, version: Version) -> Entries:
        self._store_pending()
        rows = find_by_uid(self.connection, {entry for entry in record.entries if isinstance(entry, str)})
        entries = new_entries(len(record.entries), HOLE)
        for position, entry in enumerate(record.entries):
            index = BlockIndex(record.number * PAGE_ENTRIES + position)
            if isinstance(entry, int):
                entries[position] = entry
                continue
            row = rows.get(entry)
            length = block_length(index, version.size_bytes, self.repository.block_size)
            if row is None or row.facts.size != length:
                raise ExportFormatError(
                    f"has no blob of {length} bytes", subject=f"block {index} of version {version.uid}"
                )
            entries[position] = row.id
        return entries

    def _blocks(self, version: Version) -> int:
        return block_count(version.size_bytes, self.repository.block_size)
