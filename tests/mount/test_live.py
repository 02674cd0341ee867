"""The tree of a mount follows the repository, and is quick with many versions and if parts do not answer."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, insert

from backyfs.metadata.db.tables import tags, versions
from backyfs.metadata.records.versions import find_version, list_versions
from backyfs.model import VersionStatus
from tests.support.hanging import hanging
from tests.support.images import random_bytes, run_tool, sparse_image
from tests.support.program import backyfs, mount, mounting
from tests.support.repositories import BLOCK, PATIENCE_S, back_up, make_repository, opened
from tests.support.stored import blob_of, file_of, flip_a_byte, remove_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.model import Version

pytestmark = pytest.mark.usefixtures("fuse")

SIZE = 64 * BLOCK
MANY = 10_000
SOON_S = 2.0
IMAGE = random_bytes(SIZE, 1)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


def back_up_image(config_file: Path, name: str = "disk", *tag_names: str) -> Version:
    image = config_file.parent / "image"
    with opened(config_file) as repository:
        version = back_up(repository, sparse_image(image, SIZE, {0: IMAGE}), name).version
        with repository.database.write() as connection:
            for tag in tag_names:
                connection.execute(insert(tags).values(version_id=version.id, name=tag))
    return version


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# New and removed versions.


def test_new_and_removed_versions_and_a_new_latest_are_soon_visible(config_file: Path, tmp_path: Path) -> None:
    first = back_up_image(config_file)
    with mounting(config_file, tmp_path / "mount") as at:
        latest = at / "by_name" / "disk" / "latest"
        assert latest.resolve().name == first.uid
        second = back_up_image(config_file)
        assert within(SOON_S, lambda: sorted(os.listdir(at / "by_version_uid")) == sorted([first.uid, second.uid]))
        assert within(SOON_S, lambda: os.readlink(latest).endswith(second.uid))
        (at / "by_version_uid" / second.uid / "name").read_text()
        with opened(config_file) as repository:
            remove_version(repository, second.uid)
        began = time.monotonic()
        assert within(SOON_S, lambda: not (at / "by_version_uid" / second.uid / "name").exists())
        assert within(SOON_S - (time.monotonic() - began), lambda: os.readlink(latest).endswith(first.uid))
        assert os.listdir(at / "by_version_uid") == [first.uid]


def test_reading_continues_while_versions_are_added_and_removed(config_file: Path, tmp_path: Path) -> None:
    first = back_up_image(config_file)
    with (
        mounting(config_file, tmp_path / "mount", "--cache-size", "16K") as at,
        (at / "by_version_uid" / first.uid / "data").open("rb", buffering=0) as file,
    ):
        for _ in range(3):
            other = back_up_image(config_file, "other")
            file.seek(0)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read(SIZE) == IMAGE
            with opened(config_file) as repository:
                remove_version(repository, other.uid)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a repository with 10,000 versions of 100 names."""
    config_file = make_repository(tmp_path_factory.mktemp("many"))
    start = datetime(2020, 1, 1, tzinfo=UTC)
    rows = [
        {
            "uid": f"{number:08x}-0000-4000-8000-000000000000", "created_at": start + timedelta(hours=number),
            "name": f"vm{number % 100:02}", "snapshot_name": "", "size_bytes": 1 << 30, "status": "valid",
            "protected": False,
        }
        for number in range(MANY)
    ]  # fmt: skip
    with opened(config_file) as repository, repository.database.write() as connection:
        connection.execute(insert(versions), rows)
    return config_file


def test_ten_thousand_versions_can_be_listed(many: Path, tmp_path: Path) -> None:
    with mounting(many, tmp_path / "mount") as at:
        with os.scandir(at / "by_version_uid") as entries:
            listed = {entry.name: entry.stat().st_mtime for entry in entries}
        assert len(listed) == MANY
        assert listed["00000005-0000-4000-8000-000000000000"] == datetime(2020, 1, 1, 5, tzinfo=UTC).timestamp()
        assert len(os.listdir(at / "by_name" / "vm07")) == MANY // 100 + 1


def test_a_listing_does_not_query_once_per_entry(many: Path) -> None:
    with opened(many) as repository:
        queries: list[str] = []
        event.listen(
            repository.database.engine, "before_cursor_execute", lambda *given: queries.append(given[2])
        )
        with repository.database.read() as connection:
            assert len(list_versions(connection)) == MANY
        assert len([query for query in queries if query.startswith("SELECT")]) == 2


# Selection.


def names(at: Path) -> list[str]:
    return sorted(os.listdir(at / "by_name"))


def test_names_tags_and_versions_restrict_what_is_shown(config_file: Path, tmp_path: Path) -> None:
    web = back_up_image(config_file, "web", "daily")
    back_up_image(config_file, "web-old", "weekly", "daily")
    back_up_image(config_file, "db", "weekly")
    for options, expected in (
        ((), ["db", "web", "web-old"]),
        (("--name", "web"), ["web"]),
        (("--name", "web*"), ["web", "web-old"]),
        (("--name", "web", "--name", "db"), ["db", "web"]),
        (("--tag", "daily"), ["web", "web-old"]),
        (("--tag", "daily", "--name", "*-old"), ["web-old"]),
        (("--version", web.uid[:8]), ["web"]),
        (("--version", "db@latest"), ["db"]),
        (("--tag", "nothing"), []),
    ):
        with mounting(config_file, tmp_path / "mount", *options) as at:
            assert names(at) == expected


def test_an_unknown_version_is_refused(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    done = mount(config_file, tmp_path / "mount", "--version", "nothing@latest")
    assert done.returncode == 4
    assert "no version is named 'nothing'" in done.stderr


def test_a_name_with_pattern_characters_is_found(config_file: Path, tmp_path: Path) -> None:
    back_up_image(config_file, "disk[1]")
    with mounting(config_file, tmp_path / "mount", "--name", "disk[1]") as at:
        assert names(at) == ["disk[1]"]


# Facts.


def test_facts_are_extended_attributes_of_the_version_and_its_image(config_file: Path, tmp_path: Path) -> None:
    version = back_up_image(config_file, "web", "daily", "manual")
    with mounting(config_file, tmp_path / "mount") as at:
        directory = at / "by_version_uid" / version.uid
        for file in (directory, directory / "data"):
            facts = {name: os.getxattr(file, name).decode() for name in os.listxattr(file)}
            assert facts["user.backyfs.name"] == "web"
            assert facts["user.backyfs.tags"] == "daily,manual"
            assert facts["user.backyfs.size"] == str(SIZE)
            assert facts["user.backyfs.valid"] == "1"
            assert facts["user.backyfs.encryption_versions"] == "2"
            assert facts["user.backyfs.date"] == f"{version.created_at:%Y-%m-%dT%H:%M:%S}"
            assert facts["user.backyfs.expire"] == facts["user.backyfs.snapshot_name"] == ""


def test_holes_take_no_blocks(config_file: Path, tmp_path: Path) -> None:
    with opened(config_file) as repository:
        pieces = {BLOCK: random_bytes(BLOCK, 1), 5000 * BLOCK + 5: random_bytes(10, 2)}
        version = back_up(repository, sparse_image(tmp_path / "image", 10_000 * BLOCK + 7, pieces)).version
    with mounting(config_file, tmp_path / "mount") as at:
        found = (at / "by_version_uid" / version.uid / "data").stat()
        assert found.st_size == 10_000 * BLOCK + 7
        assert found.st_blocks * 512 == 2 * BLOCK
        du = run_tool("du", "--block-size=1", str(at / "by_version_uid" / version.uid / "data"))
        assert int(du.split()[0]) == 2 * BLOCK


def test_the_file_system_has_the_size_of_its_images(config_file: Path, tmp_path: Path) -> None:
    back_up_image(config_file)
    back_up_image(config_file)
    with mounting(config_file, tmp_path / "mount") as at:
        found = os.statvfs(at)
        assert found.f_frsize * found.f_blocks == 2 * SIZE
        assert found.f_bavail == 0


# Partitions.


@pytest.fixture
def partitioned(config_file: Path, tmp_path: Path) -> bytes:
    """Make an image with two partitions, the second of which begins in the middle of a block."""
    image = tmp_path / "image"
    content = bytearray(random_bytes(16 << 20, 9))
    image.write_bytes(content)
    script = b"label: gpt\nunit: sectors\nstart=2048, size=4096, name=boot\nstart=6147, size=8000, name=root\n"
    subprocess.run(["sfdisk", "-q", "--wipe", "always", str(image)], input=script, check=True, capture_output=True)
    with opened(config_file) as repository:
        back_up(repository, image)
    return image.read_bytes()


def test_partitions_are_slices_of_the_image(config_file: Path, tmp_path: Path, partitioned: bytes) -> None:
    with mounting(config_file, tmp_path / "mount") as at:
        partitions = at / "by_name" / "disk" / "latest" / "partitions"
        assert sorted(os.listdir(partitions)) == ["1", "2", "table.txt"]
        assert (partitions / "1").stat().st_size == 4096 * 512
        assert (partitions / "1").read_bytes() == partitioned[2048 * 512 : 6144 * 512]
        assert (partitions / "2").read_bytes() == partitioned[6147 * 512 : 14147 * 512]
        text = (partitions / "table.txt").read_text()
        assert "boot" in text
        assert "root" in text
        assert (partitions / "table.txt").stat().st_size == len(text.encode())
        assert not (partitions / "3").exists()


def test_an_image_without_partitions_has_an_empty_table(config_file: Path, tmp_path: Path) -> None:
    back_up_image(config_file)
    with mounting(config_file, tmp_path / "mount") as at:
        partitions = at / "by_name" / "disk" / "latest" / "partitions"
        assert os.listdir(partitions) == ["table.txt"]
        assert "no partition table" in (partitions / "table.txt").read_text().lower()


def test_a_damaged_first_block_costs_only_the_first_table(
    config_file: Path, tmp_path: Path, partitioned: bytes
) -> None:
    with opened(config_file) as repository:
        with repository.database.read() as connection:
            version = find_version(connection, "disk@latest")
        flip_a_byte(file_of(repository, blob_of(repository, version, 0)))
    with mounting(config_file, tmp_path / "mount") as at:
        partitions = at / "by_name" / "disk" / "latest" / "partitions"
        assert sorted(os.listdir(partitions)) == ["1", "2", "table.txt"]
        assert (partitions / "1").read_bytes() == partitioned[2048 * 512 : 6144 * 512]


# Damage and missing answers.


def counted(at: Path) -> dict[str, int]:
    lines = (at / "stats").read_text().splitlines()
    return {name: int(number) for name, number in (line.split() for line in lines)}


def test_damaged_blocks_are_errors_for_their_range_and_are_counted(config_file: Path, tmp_path: Path) -> None:
    version = back_up_image(config_file)
    with opened(config_file) as repository:
        for index in (3, 7):
            flip_a_byte(file_of(repository, blob_of(repository, version, index)))
    with mounting(config_file, tmp_path / "mount") as at:
        assert "stats" not in os.listdir(at)
        assert counted(at)["damaged_blocks"] == 0
        with (at / "by_version_uid" / version.uid / "data").open("rb", buffering=0) as file:
            for index in range(64):
                if index in (3, 7):
                    with pytest.raises(OSError, match="Input/output error"):
                        os.pread(file.fileno(), BLOCK, index * BLOCK)
                else:
                    assert os.pread(file.fileno(), BLOCK, index * BLOCK) == IMAGE[index * BLOCK : (index + 1) * BLOCK]
        assert counted(at)["damaged_blocks"] == 2
        assert counted(at)["read_errors"] >= 2


def test_damage_found_by_a_reader_is_marked_and_repaired_by_the_next_backup(
    config_file: Path, tmp_path: Path
) -> None:
    version = back_up_image(config_file)

    def status() -> VersionStatus:
        with opened(config_file) as repository, repository.database.read() as connection:
            return find_version(connection, version.uid).status

    with opened(config_file) as repository:
        flip_a_byte(file_of(repository, blob_of(repository, version, 3)))
    with mounting(config_file, tmp_path / "mount") as at:
        data = at / "by_version_uid" / version.uid / "data"
        with pytest.raises(OSError, match="Input/output error"):
            data.read_bytes()
        assert within(PATIENCE_S, lambda: status() is VersionStatus.INVALID)
        back_up_image(config_file)
        assert status() is VersionStatus.VALID
        assert within(PATIENCE_S, data.exists)
        assert data.read_bytes() == IMAGE


def test_a_hanging_storage_is_an_error_after_a_while_and_the_rest_still_works(
    loop_devices: None, config_file: Path, tmp_path: Path
) -> None:
    version = back_up_image(config_file)
    with opened(config_file) as repository:
        blob_file = file_of(repository, blob_of(repository, version, 5))
    with (
        hanging([blob_file], tmp_path) as let_it_answer,
        mounting(config_file, tmp_path / "mount", "--timeout", "0.5", "--read-ahead", "0") as at,
    ):
        data = at / "by_version_uid" / version.uid / "data"
        assert os.listdir(at / "by_version_uid") == [version.uid]
        with data.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            began = time.monotonic()
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(file.fileno(), BLOCK, 5 * BLOCK)
            assert 0.4 < time.monotonic() - began < 20
            assert os.pread(file.fileno(), BLOCK, 9 * BLOCK) == IMAGE[9 * BLOCK : 10 * BLOCK]
            assert counted(at)["timeouts"] >= 1
            let_it_answer()
            found: list[bytes] = []

            def can_be_read() -> bool:
                with suppress(OSError):
                    found.append(os.pread(file.fileno(), BLOCK, 5 * BLOCK))
                return bool(found)

            assert within(PATIENCE_S, can_be_read)
            assert found == [IMAGE[5 * BLOCK : 6 * BLOCK]]


def test_a_mount_whose_storage_hangs_can_be_unmounted(loop_devices: None, config_file: Path, tmp_path: Path) -> None:
    version = back_up_image(config_file)
    with opened(config_file) as repository:
        blob_files = [file_of(repository, blob_of(repository, version, index)) for index in range(10)]
    with (
        hanging(blob_files, tmp_path),
        mounting(config_file, tmp_path / "mount", "--timeout", "0.3") as at,
    ):
        with (
            (at / "by_version_uid" / version.uid / "data").open("rb", buffering=0) as file,
            pytest.raises(OSError, match="Input/output error"),
        ):
            file.read(BLOCK)
        assert counted(at)["timeouts"] >= 1
        done = backyfs("umount", at)
        assert (done.returncode, done.stderr) == (0, "")
