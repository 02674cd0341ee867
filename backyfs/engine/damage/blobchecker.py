"""Read blobs back and check them in worker threads, and record the results in batches.

A missing blob alone means little, because all are missing if the storage is not mounted. So no missing blob is marked
as damaged until the storage has returned another one.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs.blocks import load_block
from backyfs.errors import (
    BackyfsError,
    IntegrityError,
    ObjectMissingError,
    ObjectUnreadableError,
    StorageError,
)
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.idarray import highest_blob_id
from backyfs.metadata.records.blobs import load_blobs
from backyfs.metadata.upkeep.checks import record_checks, sample_blobs
from backyfs.work.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backyfs.model import Blob, BlobId, BlobUid
    from backyfs.repository import Repository
    from backyfs.work.run import Run

_OTHER_BLOBS = 32      # that are tried if all blobs of a batch are missing


@dataclass(frozen=True, slots=True)
class _Result:
    """The result for a blob."""

    blob: Blob
    fact: str | None = None  # what is wrong with it; None: it is whole
    is_there: bool = True    # the storage returned the object
    was_refused: bool = False  # the storage has something there that cannot be read


@dataclass(frozen=True, slots=True)
class _Done:
    """The results for some blobs."""

    results: list[_Result]
    error: BackyfsError | None = None  # that ended it early


@dataclass(slots=True)
class CheckedBlobs:
    """The results so far. About 100 bytes for each damaged blob."""

    blobs: int = 0     # checked
    bytes: int = 0     # plain bytes of them
    damaged: dict[BlobId, str] = field(default_factory=dict)  # and what is wrong with them
    repaired: int = 0  # marked as damaged, but whole


class BlobChecker:
    """Checks blobs. Owned by the thread that calls `run`."""

    def __init__(self, repository: Repository, run: Run) -> None:
        self._repository = repository
        self._run = run
        self._results: list[_Result] = []  # not recorded yet
        self._recorded_s = time.monotonic()
        self._facts: dict[str, str] = {}
        self._witness: BlobUid | None = None  # the last one that the storage returned
        self.found = CheckedBlobs()

    def run(self, blob_ids: Iterable[BlobId]) -> None:
        """Check these blobs in this order. Results are recorded even if this raises.

        Raises:
            StorageError: the storage is not available or refuses; blobs it did not return are not marked.
            InterruptedByUser: the run was asked to stop.
            MissingKeyError: a blob is encrypted, and no key is configured.
            DatabaseError, JobLostError: nothing more can be recorded.
        """
        workers = self._repository.width.workers
        with Window[_Done](workers) as window:
            try:
                for done in window.map(self._read_blobs, self._chunks(blob_ids), most=2 * workers):
                    self._settle(done)
                    self._run.check()
            except BackyfsError:
                with suppress(BackyfsError):  # the first error is the one to report
                    self._salvage(window)
                raise
        self._record()

    def _chunks(self, blob_ids: Iterable[BlobId]) -> Iterator[list[Blob]]:
        limit = self._repository.width.blocks
        for batch in batches(blob_ids):
            with self._repository.database.read() as connection:
                known = load_blobs(connection, batch)
            for blob_id in batch:
                if blob_id not in known:
                    # It is damaged if a version uses it, or a cleanup has removed it: the block maps will show.
                    self.found.damaged[blob_id] = "has no row in the database"
            blobs = [known[blob_id] for blob_id in batch if blob_id in known]
            for start in range(0, len(blobs), limit):
                self._run.check()
                yield blobs[start : start + limit]

    def _settle(self, done: _Done) -> None:
        self._results += done.results
        if done.error is not None:
            raise done.error
        for result in done.results:
            self._run.advance(result.blob.size)
        limits = self._repository.limits
        if len(self._results) >= limits.checks_at_once or time.monotonic() - self._recorded_s >= limits.checks_s:
            self._record()

    def _salvage(self, window: Window[_Done]) -> None:
        """Record what was read before the scrub ended early."""
        for done in window.drain():
            self._results += done.results
        self._record()

    # In worker threads.

    def _read_blobs(self, blobs: Sequence[Blob]) -> _Done:
        results: list[_Result] = []
        try:
            for blob in blobs:
                if self._run.stops():
                    break
                results.append(self._read(blob))
        except BackyfsError as error:
            return _Done(results, error)
        return _Done(results)

    def _read(self, blob: Blob) -> _Result:
        try:
            load_block(self._repository.blocks, blob)
        except IntegrityError as error:
            return _Result(blob, _fact(blob, error))
        except ObjectMissingError as error:
            return _Result(blob, _fact(blob, error), is_there=False)
        except ObjectUnreadableError as error:
            return _Result(blob, f"cannot be read: {error}", is_there=False, was_refused=True)
        return _Result(blob)

    # In the thread of the owner.

    def _record(self) -> None:
        results, self._results = self._results, []
        self._recorded_s = time.monotonic()
        given = [result for result in results if result.is_there]
        if given:
            self._witness = given[-1].blob.uid
        self._write(given)
        # Try missing blobs again, because the storage may have been away for a moment. But not unreadable ones: a disk
        # takes half a minute to fail on a bad sector.
        again = []
        for result in results:
            if not result.is_there:
                self._run.check()
                again.append(result if result.was_refused else self._read(result.blob))
        missing = [result for result in again if not result.is_there]
        if missing:
            self._require_storage(missing)
        self._write(again)

    def _require_storage(self, missing: Sequence[_Result]) -> None:
        """Make sure that the storage returns other blobs than the missing ones.

        Raises:
            StorageError: it returns none.
        """
        looked_for = len(missing)
        for uid in self._other_blobs(missing):
            with suppress(ObjectMissingError, ObjectUnreadableError):
                with suppress(IntegrityError):  # it is damaged, but there
                    self._repository.blocks.storage.get(uid)
                return
            looked_for += 1
        if looked_for == 1:  # the only blob of the repository
            return
        first = missing[0]
        raise StorageError(
            f"returns none of {looked_for} blobs, for example blob {first.blob.uid} {first.fact}; none of them was "
            "marked as damaged",
            subject="the storage",
            remedy="is its file system mounted?",
        )

    def _other_blobs(self, missing: Sequence[_Result]) -> Iterator[BlobUid]:
        """Yield the blob that the storage returned last, and some random ones."""
        if self._witness is not None:
            yield self._witness
        with self._repository.database.read() as connection:
            highest = highest_blob_id(connection)
            starts = [random.randint(1, max(1, highest)) for _ in range(_OTHER_BLOBS)]  # noqa: S311 - no secret
            others = sample_blobs(connection, starts)
        yield from {*others} - {result.blob.uid for result in missing} - {self._witness}

    def _write(self, results: Sequence[_Result]) -> None:
        if not results:
            return
        facts = {result.blob.id: result.fact for result in results if result.fact is not None}
        damaged = [result.blob for result in results if result.fact is not None]
        whole = [result.blob.id for result in results if result.fact is None]
        with self._repository.database.write() as connection:
            recorded = record_checks(connection, whole, damaged, datetime.now(UTC))
        for blob_id in recorded.damaged:
            fact = facts[blob_id]
            self.found.damaged[blob_id] = self._facts.setdefault(fact, fact)
        self.found.repaired += recorded.repaired
        self.found.blobs += len(results)
        self.found.bytes += sum(result.blob.size for result in results)


def _fact(blob: Blob, error: BackyfsError) -> str:
    # Without the uid many blobs share one text, which saves memory.
    return error.without(f"blob {blob.uid}")
