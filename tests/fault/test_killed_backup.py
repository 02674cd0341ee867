"""A backup that is killed or interrupted loses no valid version and needs no repair."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backyfs.engine.restore.restore import restore
from backyfs.metadata.records.versions import list_versions
from backyfs.model import VersionStatus
from tests.support.audit import audit, count_jobs
from tests.support.images import random_image
from tests.support.repositories import back_up, make_repository, opened

BACKYFS = str(Path(sys.executable).with_name("backyfs"))
BLOCK = 64 << 10
BLOCKS = 1600  # 100 MiB: two pages, and several flushes
PATIENCE_S = 60


@pytest.fixture
def config_file(tmp_path):
    return make_repository(tmp_path / "repository", block_size=BLOCK)


def start(config_file: Path, image: Path, *options: str) -> subprocess.Popen[str]:
    command = [BACKYFS, "-c", str(config_file), *options, "backup", str(image), "disk"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_objects(directory: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until the storage contains `count` objects or parts of objects, or the backup has ended."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        if sum(1 for _ in directory.rglob("*.blob*")) >= count:
            return
        time.sleep(0.002)
    assert process.poll() is not None, "the backup did not get so far in time"


def expect_exact(repository, version, image: Path, directory: Path) -> None:
    target = directory / "restored.img"
    assert restore(repository, version, str(target), replace=True).damaged == ()
    assert target.read_bytes() == image.read_bytes()


@pytest.mark.parametrize("objects", [0, 1, 100, 800, 1599])
def test_a_backup_killed_at_any_time_loses_nothing(config_file, tmp_path, objects):
    earlier, image = random_image(tmp_path / "earlier", 3 * BLOCK, 1), random_image(tmp_path / "image", BLOCKS * BLOCK)
    with opened(config_file) as repository:
        first = back_up(repository, earlier, "earlier").version
    process = start(config_file, image, "-q")
    wait_for_objects(tmp_path / "repository" / "data", objects, process)
    process.kill()
    process.communicate()
    with opened(config_file) as repository:
        audit(repository)
        with repository.database.read() as connection:
            versions = {version.uid: version for version in list_versions(connection)}
        assert versions[first.uid].status is VersionStatus.VALID
        expect_exact(repository, first, earlier, tmp_path)
        for begun in versions.values():
            if begun.status is VersionStatus.INCOMPLETE:
                continued = back_up(repository, image, continued=begun).version
                expect_exact(repository, continued, image, tmp_path)
        again = back_up(repository, image)
        expect_exact(repository, again.version, image, tmp_path)
        audit(repository)
        assert count_jobs(repository) == 0  # the row of the killed job was removed by the next one


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_backup_leaves_what_it_stored_to_the_next_one(config_file, tmp_path, number):
    image = random_image(tmp_path / "image", BLOCKS * BLOCK)
    process = start(config_file, image)
    wait_for_objects(tmp_path / "repository" / "data", 200, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "interrupted: version" in errors
    assert "Traceback" not in errors
    with opened(config_file) as repository:
        audit(repository)
        assert count_jobs(repository) == 0
        with repository.database.read() as connection:
            [version] = list_versions(connection)
        assert version.status is VersionStatus.INCOMPLETE
        report = restore(repository, version, str(tmp_path / "part.img"))
        assert report.damaged
        assert report.bytes_written > 0
        content = image.read_bytes()
        restored = (tmp_path / "part.img").read_bytes()
        holes = {start_ for damage in report.damaged for start_ in range(damage.start, damage.stop, BLOCK)}
        for start_ in range(0, len(content), BLOCK):
            expected = bytes(BLOCK) if start_ in holes else content[start_ : start_ + BLOCK]
            assert restored[start_ : start_ + BLOCK] == expected
        again = back_up(repository, image)
        assert again.statistics.blocks_deduplicated == report.bytes_written // BLOCK
        expect_exact(repository, again.version, image, tmp_path)
        audit(repository)


def test_with_json_an_interrupted_backup_prints_no_half_result(config_file, tmp_path):
    image = random_image(tmp_path / "image", BLOCKS * BLOCK)
    process = start(config_file, image, "--json")
    wait_for_objects(tmp_path / "repository" / "data", 100, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert output == ""


def test_two_backups_at_once_are_both_whole(config_file, tmp_path):
    images = [random_image(tmp_path / f"image{number}", 200 * BLOCK, number) for number in (1, 2)]
    processes = [start(config_file, image, "--json") for image in [*images, images[0]]]
    reports = [json.loads(process.communicate(timeout=PATIENCE_S)[0]) for process in processes]
    with opened(config_file) as repository:
        with repository.database.read() as connection:
            versions = {version.uid: version for version in list_versions(connection)}
        for report, image in zip(reports, [*images, images[0]], strict=True):
            expect_exact(repository, versions[report["uid"]], image, tmp_path)
        audit(repository)
