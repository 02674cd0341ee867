"""Reference repositories in an object store: the first command takes them over where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backyfs.cli.main import run
from backyfs.engine.setup.upgrade import upgrade
from backyfs.repository import open_repository
from tests.support.audit import audit
from tests.upgrade.reference import BUCKET_NAMES, BucketReference, check

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.buckets import Bucket
    from tests.support.faultproxy import FaultProxy


@pytest.mark.parametrize("name", BUCKET_NAMES)
def test_a_repository_in_a_bucket_is_taken_over_whole(name: str, tmp_path: Path, bucket: Bucket) -> None:
    reference = BucketReference(name, tmp_path, bucket)
    report = upgrade(reference.config)
    assert report is not None
    assert report.adopted is not None
    assert report.adopted.versions == len(reference.expected["versions"])
    with open_repository(reference.config) as repository:
        check(repository, reference.expected)
        if not reference.expected["blobs"]["missing"]:
            audit(repository)
    found = bucket.objects()
    assert {key: found.get(key) for key in reference.objects} == reference.objects


@pytest.mark.parametrize("command", ["ls", "du", "stats"])
@pytest.mark.parametrize("name", BUCKET_NAMES)
def test_machine_output_is_the_same_as_in_backy2(
    name: str, command: str, tmp_path: Path, bucket: Bucket, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    reference = BucketReference(name, tmp_path, bucket)
    assert run(["-q", "-c", str(reference.config_file), "ls"]) == 0  # upgrades
    capsysbinary.readouterr()
    assert run(["-m", "-c", str(reference.config_file), command]) == 0
    assert capsysbinary.readouterr().out == (reference.directory / "output" / f"{command}.txt").read_bytes()


@pytest.mark.parametrize("name", BUCKET_NAMES)
def test_a_repository_is_reached_through_a_proxy(
    name: str, tmp_path: Path, bucket: Bucket, fault_proxy: FaultProxy
) -> None:
    reference = BucketReference(name, tmp_path, bucket, endpoint=fault_proxy.endpoint)
    upgrade(reference.config)
    with open_repository(reference.config) as repository:
        check(repository, reference.expected)
    assert fault_proxy.log.requests
    assert fault_proxy.log.in_flight == 0
