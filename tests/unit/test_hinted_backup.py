"""Backups with hints read the hinted ranges, keep the rest of the base, and detect wrong hints."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from backyfs.engine.backup.backup import BackupRequest, backup
from backyfs.errors import HintsError, InterruptedByUser, UsageError, VersionError
from backyfs.geometry import PAGE_ENTRIES
from backyfs.hints import Hints
from backyfs.metadata.db.tables import blobs, versions
from backyfs.metadata.maps.blockmap import ABSENT, list_pages, load_page
from backyfs.metadata.maps.usage import encryption_versions
from backyfs.metadata.records.versions import list_versions
from backyfs.model import PageNumber, VersionStatus
from backyfs.ranges import ranges
from backyfs.sources.file import FileSource
from backyfs.work.flushbatch import FlushLimits
from backyfs.work.run import Control
from tests.support.audit import audit, count_jobs
from tests.support.images import overwrite, random_bytes, random_image, sparse_image
from tests.support.repositories import BLOCK, back_up, configure, expect_restored, make_repository, opened, with_limits
from tests.support.stored import blob_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backyfs.engine.backup.backup import BackupReport
    from backyfs.model import Version
    from backyfs.ranges import Range
    from backyfs.repository import Repository

pytestmark = pytest.mark.slow

PAGE_BYTES = PAGE_ENTRIES * BLOCK


class RecordingSource(FileSource):
    """A file that records which of its blocks are read, and can end the backup after a number of them."""

    def __init__(self, path: Path, stop_after: int | None = None, *, read_holes: bool = False) -> None:
        super().__init__(str(path), read_holes=read_holes)
        self.blocks: list[int] = []
        self._stop_after = stop_after

    def read_into(self, offset: int, buffer: memoryview) -> None:
        super().read_into(offset, buffer)
        self.blocks += range(offset // BLOCK, -(-(offset + len(buffer)) // BLOCK))

    def has_enough(self) -> bool:
        return self._stop_after is not None and len(self.blocks) >= self._stop_after


def hints(data: list[Range] | None = None, zeros: list[Range] | None = None) -> Hints:
    return Hints(data=ranges(data or []), zeros=ranges(zeros or []))


def blocks(*numbers: int) -> list[Range]:
    return [(number * BLOCK, number * BLOCK + BLOCK) for number in numbers]


@contextmanager
def recorded(image: Path, stop_after: int | None = None, *, read_holes: bool = False) -> Iterator[RecordingSource]:
    source = RecordingSource(image, stop_after, read_holes=read_holes)
    try:
        yield source
    finally:
        source.close()


def back_up_recorded(repository: Repository, image: Path, **request: object) -> tuple[BackupReport, list[int]]:
    """Back up an image; return the report and the blocks read after the comparison of samples with the base."""
    with recorded(image) as source:
        report = backup(
            repository,
            source,
            BackupRequest(name="disk", **request),  # type: ignore[arg-type]  # fields of a request
            announce=lambda _: source.blocks.clear(),
        )
        return report, sorted(source.blocks)


def uids(repository: Repository) -> list[str]:
    with repository.database.read() as connection:
        return [version.uid for version in list_versions(connection)]


def test_only_hinted_blocks_are_read_and_the_rest_is_kept(repository, tmp_path):
    image = random_image(tmp_path / "image", 100 * BLOCK + 10)
    base = back_up(repository, image).version
    overwrite(image, 7 * BLOCK + 5, b"new")
    overwrite(image, 50 * BLOCK, bytes(3 * BLOCK))
    report, read = back_up_recorded(
        repository,
        image,
        base=base,
        hints=hints([(7 * BLOCK + 5, 7 * BLOCK + 8), (100 * BLOCK, 100 * BLOCK + 10)], blocks(50, 51, 52)),
    )
    assert read == [7, 100]
    assert report.version.status is VersionStatus.VALID
    expect_restored(repository, report.version, image)
    counts = report.statistics
    assert (counts.blocks_read, counts.blocks_written, counts.blocks_deduplicated) == (2, 1, 1)
    assert (counts.blocks_sparse, counts.bytes_sparse) == (3, 3 * BLOCK)
    audit(repository)
    assert count_jobs(repository) == 0


def test_blocks_of_the_base_keep_their_encryption_version(tmp_path):
    config = make_repository(tmp_path / "repository")
    configure(config, encryption_version=0)
    image = random_image(tmp_path / "image", 3 * BLOCK)
    with opened(config) as repository:
        base = back_up(repository, image).version
    configure(config, encryption_version=2, deduplication="same-version")
    overwrite(image, BLOCK, b"new")
    with opened(config) as repository:
        version = back_up_recorded(repository, image, base=base, hints=hints(blocks(1)))[0].version
        expect_restored(repository, version, image)
        with repository.database.read() as connection:
            assert encryption_versions(connection, version) == [0, 2]


def test_a_partly_zeroed_block_is_read(repository, tmp_path):
    image = random_image(tmp_path / "image", 20 * BLOCK)
    base = back_up(repository, image).version
    overwrite(image, 3 * BLOCK, bytes(100))
    report, read = back_up_recorded(repository, image, base=base, hints=hints(zeros=[(3 * BLOCK, 3 * BLOCK + 100)]))
    assert read == [3]
    expect_restored(repository, report.version, image)


def test_pages_in_which_nothing_changed_are_shared_with_the_base(repository, tmp_path):
    image = random_image(tmp_path / "image", 2 * PAGE_BYTES + 3 * BLOCK)
    base = back_up(repository, image).version
    overwrite(image, PAGE_BYTES, b"new")
    version = back_up_recorded(repository, image, base=base, hints=hints(blocks(PAGE_ENTRIES)))[0].version
    with repository.database.read() as connection:
        before, after = (dict(list_pages(connection, each.id)) for each in (base, version))
    assert [before[number] == after[number] for number in map(PageNumber, range(3))] == [True, False, True]
    expect_restored(repository, version, image)
    audit(repository)


def test_without_a_base_everything_not_hinted_is_zeros(repository, tmp_path):
    image = sparse_image(tmp_path / "image", 3 * PAGE_BYTES, {PAGE_BYTES: random_bytes(2 * BLOCK, 1)})
    report, read = back_up_recorded(repository, image, hints=hints([(PAGE_BYTES, PAGE_BYTES + 2 * BLOCK)]))
    assert read == [PAGE_ENTRIES, PAGE_ENTRIES + 1]
    assert report.statistics.blocks_sparse == 3 * PAGE_ENTRIES - 2
    expect_restored(repository, report.version, image)
    audit(repository)


@pytest.mark.parametrize("with_base", [True, False])
def test_a_difference_outside_the_hints_stops_the_backup_and_leaves_no_version(repository, tmp_path, with_base):
    image = random_image(tmp_path / "image", 5 * BLOCK)
    base = back_up(repository, image).version if with_base else None
    before = uids(repository)
    overwrite(image, 0, random_bytes(5 * BLOCK, 9))
    with pytest.raises(HintsError, match=r"bytes 0 to 4096 of the source are in no hint"):
        back_up(repository, image, base=base, hints=hints(blocks(4)))
    assert uids(repository) == before
    assert count_jobs(repository) == 0
    audit(repository)


def test_in_a_large_sparse_image_a_difference_from_data_of_the_base_is_found(repository, tmp_path):
    size = 50 * PAGE_BYTES
    image = sparse_image(tmp_path / "image", size, {40 * PAGE_BYTES: random_bytes(BLOCK, 1)})
    base = back_up(repository, image).version
    overwrite(image, 40 * PAGE_BYTES, b"something else")
    with pytest.raises(HintsError, match=f"bytes {40 * PAGE_BYTES} to {40 * PAGE_BYTES + BLOCK} "):
        back_up(repository, image, base=base, hints=hints(blocks(0)))


def test_in_a_large_image_data_in_a_hole_of_the_base_are_found(repository, tmp_path):
    size = 50 * PAGE_BYTES
    image = sparse_image(tmp_path / "image", size, {})
    base = back_up(repository, image).version
    overwrite(image, 40 * PAGE_BYTES, b"something new")
    with pytest.raises(HintsError, match=f"bytes {40 * PAGE_BYTES} to .* are in no hint, but differ"):
        back_up(repository, image, base=base, hints=hints(blocks(0)))


_CALLED_ZEROS = "hold data, but the hints say that they are zeros"
_NOT_LISTED = "are in no hint, but hold data"


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize(
    ("zeros", "first"),
    [
        pytest.param([(0, 10 * BLOCK)], 0, id="all of it"),
        pytest.param([(0, 10 * BLOCK + 7)], 0, id="with a short last block"),
        pytest.param([(9 * BLOCK, 10 * BLOCK)], 9, id="one block"),
        pytest.param([(2 * BLOCK + 5, 4 * BLOCK)], 3, id="from the middle of a block"),
        pytest.param([(10 * BLOCK, 10 * BLOCK + 7)], 10, id="the short last block"),
    ],
)
def test_data_hinted_as_zeros_stop_the_backup_and_leave_no_version(
    repository, tmp_path, zeros, first, with_base
):
    image = random_image(tmp_path / "image", 10 * BLOCK + 7)
    base = back_up(repository, image).version if with_base else None
    before = uids(repository)
    # Without a base, everything else is listed too, so only this can be wrong.
    data = [] if with_base else list(ranges([(0, 10 * BLOCK + 7)]) - ranges(zeros))
    with pytest.raises(HintsError, match=f"bytes {first * BLOCK} to .* {_CALLED_ZEROS}") as caught:
        back_up(repository, image, base=base, hints=hints(data, zeros))
    assert caught.value.exit_status == 5
    assert uids(repository) == before
    assert count_jobs(repository) == 0
    audit(repository)


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("listed", [True, False])
def test_a_lone_block_of_data_in_a_large_range_of_zeros_is_found(repository, tmp_path, with_base, listed):
    size = 50 * PAGE_BYTES
    place = 40 * PAGE_BYTES
    image = sparse_image(tmp_path / "image", size, {place: random_bytes(BLOCK, 1)})
    base = back_up(repository, image).version if with_base and listed else None
    fact = _CALLED_ZEROS if listed else _NOT_LISTED
    with pytest.raises(HintsError, match=f"bytes {place} to {place + BLOCK} of the source {fact}"):
        back_up(repository, image, base=base, hints=hints(zeros=[(0, size)] if listed else []))


@pytest.mark.parametrize("with_base", [True, False])
def test_a_small_range_of_data_among_large_ranges_of_zeros_is_found(repository, tmp_path, with_base):
    size = 50 * PAGE_BYTES
    place = 40 * PAGE_BYTES
    image = sparse_image(tmp_path / "image", size, {place: random_bytes(2 * BLOCK, 1)})
    base = back_up(repository, image).version if with_base else None
    # The block after it is listed, so data there mean nothing.
    zeros = [(0, place - BLOCK), (place, place + BLOCK), (place + 2 * BLOCK, size)]
    with pytest.raises(HintsError, match=f"bytes {place} to {place + BLOCK} of the source {_CALLED_ZEROS}"):
        back_up(repository, image, base=base, hints=hints([(place + BLOCK, place + 2 * BLOCK)], zeros))


@pytest.mark.parametrize("with_base", [True, False])
def test_ranges_hinted_as_zeros_need_not_be_holes(repository, tmp_path, with_base):
    image = random_image(tmp_path / "image", 30 * BLOCK)
    base = back_up(repository, image).version if with_base else None
    overwrite(image, 10 * BLOCK, bytes(15 * BLOCK))
    data = [] if with_base else [(0, 10 * BLOCK), (25 * BLOCK, 30 * BLOCK)]
    version = back_up(repository, image, base=base, hints=hints(data, [(10 * BLOCK, 25 * BLOCK)])).version
    expect_restored(repository, version, image)
    audit(repository)


@pytest.mark.parametrize("zeros", [[], [(0, 50 * PAGE_BYTES)]])
def test_holes_are_read_for_comparison_only_if_the_file_system_is_not_trusted(
    repository, tmp_path, zeros
):
    image = sparse_image(tmp_path / "image", 50 * PAGE_BYTES, {})
    for read_holes in (False, True):
        with recorded(image, read_holes=read_holes) as source:
            backup(repository, source, BackupRequest(name="disk", hints=hints(zeros=zeros)))
        assert bool(source.blocks) is read_holes


def test_the_number_of_samples_and_not_the_image_decides_how_much_is_compared(repository, tmp_path):
    image = random_image(tmp_path / "image", 4 * PAGE_BYTES)
    base = back_up(repository, image).version
    half = 2 * PAGE_BYTES
    overwrite(image, half, bytes(half))
    # Alternating, for the largest possible number of ranges.
    zeros = [(start, start + BLOCK) for start in range(half, 2 * half, 2 * BLOCK)]
    data = [(start + BLOCK, start + 2 * BLOCK) for start, _ in zeros]
    with recorded(image) as source:
        read: list[int] = []
        request = BackupRequest(name="disk", base=base, hints=hints(data, zeros))
        backup(repository, source, request, announce=lambda _: read.extend(source.blocks))
    assert 0 < len(read) <= 50


def test_hints_beyond_the_end_create_no_version(repository, tmp_path):
    image = random_image(tmp_path / "image", 5 * BLOCK)
    with pytest.raises(HintsError, match="reach to byte 24576, but the source ends at byte 20480"):
        back_up(repository, image, hints=hints(blocks(5)))
    assert uids(repository) == []


@pytest.mark.parametrize("status", [VersionStatus.INVALID, VersionStatus.INCOMPLETE])
def test_an_invalid_base_is_refused(repository, tmp_path, status):
    image = random_image(tmp_path / "image", 5 * BLOCK)
    base = back_up(repository, image).version
    with repository.database.write() as connection:
        connection.execute(update(versions).values(status=status.value))
    with pytest.raises(VersionError, match=f"is {status.value} and cannot be the base"):
        back_up(repository, image, base=base, hints=hints())
    assert len(uids(repository)) == 1


def test_known_damaged_blocks_of_the_base_are_read_again(repository, tmp_path):
    image = random_image(tmp_path / "image", 20 * BLOCK)
    base = back_up(repository, image).version
    damaged = blob_of(repository, base, 11)
    with repository.database.write() as connection:
        connection.execute(update(blobs).where(blobs.c.id == damaged.id).values(valid=False))
    report, read = back_up_recorded(repository, image, base=base, hints=hints(blocks(2)))
    assert read == [2, 11]
    assert blob_of(repository, report.version, 11).uid != damaged.uid  # stored again in its place
    expect_restored(repository, report.version, image)


@pytest.mark.parametrize("tail", [0, 100])
def test_a_grown_image_is_read_beyond_the_end_of_its_base(repository, tmp_path, tail):
    image = random_image(tmp_path / "image", 10 * BLOCK + tail)
    base = back_up(repository, image).version
    with image.open("ab") as file:
        file.write(random_bytes(2 * BLOCK, 5))
    report, read = back_up_recorded(repository, image, base=base, hints=hints())
    assert read == ([10, 11, 12] if tail else [10, 11])
    expect_restored(repository, report.version, image)
    audit(repository)


@pytest.mark.parametrize("size", [0, 1, 5 * BLOCK, 5 * BLOCK + 100, PAGE_BYTES, PAGE_BYTES + 1])
def test_an_image_may_have_shrunk(repository, tmp_path, size):
    image = random_image(tmp_path / "image", PAGE_BYTES + 9 * BLOCK)
    base = back_up(repository, image).version
    with image.open("r+b") as file:
        file.truncate(size)
    report, read = back_up_recorded(repository, image, base=base, hints=hints())
    assert read == ([size // BLOCK] if size % BLOCK else [])
    expect_restored(repository, report.version, image)
    audit(repository)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30), old=st.integers(0, 3000), new=st.integers(0, 3000), tail=st.integers(0, BLOCK - 1))
def test_all_hinted_changes_are_restored(repository, tmp_path, seed, old, new, tail):
    chance = random.Random(seed)
    image = tmp_path / "image"
    image.write_bytes(random_bytes(old * 16 + tail, seed))
    repository_size = old * 16 + tail
    base = back_up(repository, image).version
    size = new * 16 + chance.choice([0, tail])
    with image.open("r+b") as file:
        file.truncate(size)
    data: list[Range] = []
    zeros: list[Range] = []
    for _ in range(chance.randrange(5)):
        start = chance.randrange(size + 1)
        stop = chance.randrange(start, size + 1)
        became_zeros = chance.random() < 0.5
        overwrite(image, start, bytes(stop - start) if became_zeros else random_bytes(stop - start, chance.random()))
        (zeros if became_zeros else data).append((start, stop))
    zeros_now = ranges(zeros) - ranges(data)
    content = image.read_bytes()
    really_zeros = [part for part in zeros_now if not any(content[part[0] : part[1]])]
    others = [part for part in zeros_now if any(content[part[0] : part[1]])]
    assert repository_size >= 0
    version = back_up(repository, image, base=base, hints=hints([*data, *others], really_zeros)).version
    expect_restored(repository, version, image)
    audit(repository)


def interrupt(repository: Repository, image: Path, after: int, **request: object) -> tuple[Version, set[int]]:
    """Begin a backup and interrupt it after a number of blocks; return its version and the blocks read."""
    announced: list[Version] = []
    with recorded(image, after) as source, pytest.raises(InterruptedByUser, match="continue the version where"):
        backup(
            repository,
            source,
            BackupRequest(name="disk", **request),  # type: ignore[arg-type]  # fields of a request
            control=Control(stop=source.has_enough),
            announce=announced.append,
        )
    return announced[0], set(source.blocks)


def committed_blocks(repository: Repository, version: Version, count: int) -> set[int]:
    with repository.database.read() as connection:
        numbers = range(-(-count // PAGE_ENTRIES))
        numbered = [(number, load_page(connection, version.id, PageNumber(number))) for number in numbers]
    return {
        number * PAGE_ENTRIES + position
        for number, entries in numbered
        for position, entry in enumerate(entries or ())
        if entry != ABSENT
    }


def test_a_continued_backup_reads_only_uncommitted_blocks(repository, tmp_path):
    count = 3 * PAGE_ENTRIES + 5
    image = random_image(tmp_path / "image", count * BLOCK)
    version, first = interrupt(repository, image, 2500)
    audit(repository)
    committed = committed_blocks(repository, version, count)
    assert committed
    assert committed <= first
    report, second = back_up_recorded(repository, image, continued=version)
    assert second == sorted(set(range(count)) - committed)
    assert report.version.uid == version.uid
    assert uids(repository) == [version.uid]
    expect_restored(repository, report.version, image)
    audit(repository)


def test_blocks_committed_before_a_crash_are_not_read_again(repository, tmp_path):
    eager = with_limits(repository, commit_s=0.0, flush=FlushLimits(items=256))
    count = PAGE_ENTRIES - 5  # no page is ever complete
    image = random_image(tmp_path / "image", count * BLOCK)
    announced: list[Version] = []

    def crash() -> bool:
        if announced and committed_blocks(repository, announced[0], count):
            raise RuntimeError("not an error that anybody tidies up after")
        return False

    with recorded(image) as source, pytest.raises(RuntimeError):
        backup(eager, source, BackupRequest(name="disk"), control=Control(stop=crash), announce=announced.append)
    committed = committed_blocks(repository, announced[0], count)
    assert 0 < len(committed) < count
    audit(repository)
    report, read = back_up_recorded(repository, image, continued=announced[0])
    assert read == sorted(set(range(count)) - committed)
    expect_restored(repository, report.version, image)
    audit(repository)


def test_a_backup_can_be_interrupted_and_continued_many_times(repository, tmp_path):
    image = sparse_image(
        tmp_path / "image",
        3 * PAGE_BYTES,
        {
            0: random_bytes(900 * BLOCK, 1),
            PAGE_BYTES: bytes(PAGE_BYTES // 2),
            2 * PAGE_BYTES: random_bytes(PAGE_BYTES, 2),
        },
    )
    version, _ = interrupt(repository, image, 300)
    for after in (300, 300, 1):
        version, _ = interrupt(repository, image, after, continued=version)
    report, _ = back_up_recorded(repository, image, continued=version)
    expect_restored(repository, report.version, image)
    audit(repository)
    assert report.version.status is VersionStatus.VALID


def test_a_backup_with_hints_can_be_continued_with_and_without_them(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * PAGE_BYTES)
    base = back_up(repository, image).version
    overwrite(image, PAGE_BYTES // 2, random_bytes(2 * PAGE_BYTES, 5))
    changed = hints([(PAGE_BYTES // 2, PAGE_BYTES // 2 + 2 * PAGE_BYTES)])
    with_hints, _ = interrupt(repository, image, 700, base=base, hints=changed)
    without, _ = interrupt(repository, image, 700, base=base, hints=changed)
    report, read = back_up_recorded(repository, image, base=base, hints=changed, continued=with_hints)
    assert min(read) >= PAGE_ENTRIES // 2
    expect_restored(repository, report.version, image)
    expect_restored(repository, back_up_recorded(repository, image, continued=without)[0].version, image)
    audit(repository)


def test_a_block_of_data_in_an_earlier_run_only_is_not_lost(repository, tmp_path):
    image = random_image(tmp_path / "image", 2 * PAGE_BYTES)
    version, _ = interrupt(repository, image, 600)
    with image.open("r+b") as file:
        file.truncate(0)
        file.truncate(2 * PAGE_BYTES)  # now one large hole, so nothing is read
    report, read = back_up_recorded(repository, image, continued=version)
    assert read == []
    assert report.version.status is VersionStatus.VALID
    audit(repository)


def test_a_backup_can_be_continued_only_from_the_same_image(repository, tmp_path):
    image = random_image(tmp_path / "image", PAGE_BYTES)
    version, _ = interrupt(repository, image, 300)
    other = random_image(tmp_path / "other", 5 * BLOCK)
    with pytest.raises(UsageError, match="the size of the source is 20480"):
        back_up(repository, other, continued=version)
    with pytest.raises(UsageError, match="the name is other"):
        back_up(repository, image, "other", continued=version)
    finished = back_up(repository, image, continued=version).version
    with pytest.raises(VersionError, match="is valid: there is nothing to continue"):
        back_up(repository, image, continued=finished)
