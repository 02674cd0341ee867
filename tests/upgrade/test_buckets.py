"""Reference repositories in an object store: the first command takes them over where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backyfs.cli.main import run
from backyfs.engine.setup.upgrade import upgrade
from backyfs.repository import open_repository
from tests.support.audit import audit
from tests.support.signing import request
from tests.upgrade.reference import BUCKET_NAMES, BucketReference, check

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.buckets import Bucket
    from tests.support.faultproxy import FaultProxy
    from tests.support.signing import Answer


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


# Objects of other programs. The client library refuses some of these names, and some look like those of blobs.
FOREIGN = [
    "README", "backup2024", "notes.txt", "with space/and more", "\u00fcml\u00e4ut/\u00df", "control\x01", "tab\there",
    "a//b", "per%41cent", "catalog/theirs", "catalog/versions/theirs.txt",
]  # fmt: skip


def ask(bucket: Bucket, method: str, key: str, body: bytes = b"") -> Answer:
    """Send a request for an object whose name the client library may refuse."""
    return request(bucket.server.endpoint, bucket.server.admin, method, f"/{bucket.name}/{key}", body=body)


def test_objects_of_other_programs_survive_every_command(tmp_path: Path, bucket: Bucket) -> None:
    reference = BucketReference("s3-minio-mixed", tmp_path, bucket)
    [orphan] = reference.expected["blobs"]["orphans"]
    names = [name for name in FOREIGN if ask(bucket, "PUT", name, name.encode()).status == 200]
    assert len(names) >= len(FOREIGN) - 1
    image = tmp_path / "image"
    image.write_bytes(b"new" * 100_000)
    other_config = reference.directory / "recovered.cfg"
    other_config.write_text(reference.config_file.read_text().replace("backy.sqlite", "recovered.sqlite"))
    config, recovered = (["-q", "-c", str(file)] for file in (reference.config_file, other_config))
    for words in (
        [*config, "ls"],
        [*config, "backup", str(image), "new"],
        [*config, "scrub", "--all"],
        [*config, "migrate-encryption", "--all"],
        [*config, "cleanup", "--dangerous-force"],
        [*config, "cleanup", "--full", "--dangerous-force"],
        [*config, "catalog", "push", "--all"],
        [*config, "catalog", "check"],
        [*config, "repair"],
        [*recovered, "recover", "--check-objects"],
        [*recovered, "scrub", "--all"],
        [*recovered, "cleanup", "--full", "--dangerous-force"],
    ):
        assert run(words) == 0, words
    assert {name: ask(bucket, "GET", name).body for name in names} == {name: name.encode() for name in names}
    assert ask(bucket, "GET", orphan).status == 404
    for name in names:
        ask(bucket, "DELETE", name)
