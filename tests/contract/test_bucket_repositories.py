"""Repositories in buckets: how they are created, and what check-config says about mistakes in their settings."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backyfs.engine.setup.check import check_configuration
from backyfs.engine.setup.findings import Grade
from backyfs.engine.setup.places import named_storage
from backyfs.errors import ConfigError, StorageError, UsageError
from backyfs.model import BlobUid
from tests.support.bucketrepositories import made, places_in
from tests.support.buckets import Bucket
from tests.support.repositories import back_up, expect_restored, opened
from tests.support.services.server import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.services.objectstore import S3Server

NOW = datetime.now(UTC)


@pytest.fixture
def shared(seaweedfs_server: S3Server) -> Iterator[Bucket]:
    """Return an empty bucket of one server."""
    bucket = Bucket.make(seaweedfs_server)
    yield bucket
    bucket.remove()


def storage_findings(config: Path) -> list[tuple[Grade, str]]:
    """Return what check-config says about the storage."""
    report = check_configuration(str(config), os.environ, now=NOW)
    return [
        (found.grade, f"{found.message}; {found.remedy}" if found.remedy else found.message)
        for found in report.findings
        if found.check in ("storage", "configuration")
    ]


@contextmanager
def changed(config: Path, old: str, new: str) -> Iterator[Path]:
    """Change a line of a configuration for a while."""
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    yield config
    config.write_text(text)


@pytest.mark.parametrize("prefix", ["", "hosts/a"])
def test_a_new_repository_in_a_bucket_works(bucket: Bucket, tmp_path: Path, prefix: str) -> None:
    config = made(bucket, tmp_path / "one", prefix=prefix)
    image = tmp_path / "image"
    image.write_bytes(os.urandom(50_000))
    with opened(config) as repository:
        version = back_up(repository, image).version
        expect_restored(repository, version, image)
    assert storage_findings(config)[-1][0] is Grade.OK
    keys = bucket.keys()
    assert [key for key in keys if not key.startswith(f"{prefix}/" if prefix else "")] == []
    assert [key for key in keys if key.endswith("catalog/clock")] == []


def test_repositories_share_a_bucket_below_different_prefixes(shared: Bucket, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(50_000))
    for name in ("a", "ab"):
        with opened(made(shared, tmp_path / name, prefix=name)) as repository:
            back_up(repository, image)
    with pytest.raises(StorageError, match=rf"^storage s3://{shared.name}/a holds a repository"):
        made(shared, tmp_path / "second", prefix="a")
    assert storage_findings(tmp_path / "ab/backyfs.cfg")[-1][0] is Grade.OK


def test_a_bucket_with_other_objects_is_not_taken(shared: Bucket, tmp_path: Path) -> None:
    shared.put("holiday.jpg", b"theirs")
    with pytest.raises(StorageError, match=r"is not empty: it holds holiday\.jpg; name another bucket or prefix$"):
        made(shared, tmp_path / "one")
    assert not (tmp_path / "one/backyfs.cfg").exists()
    assert shared.keys() == ["holiday.jpg"]


def test_a_missing_bucket_is_not_created(shared: Bucket, tmp_path: Path) -> None:
    missing = replace(shared, name=f"{shared.name}-missing")
    with pytest.raises(StorageError, match=r"the bucket does not exist; create it, or correct `bucket_name`"):
        made(missing, tmp_path / "one")


@pytest.mark.parametrize(
    ("text", "fact"),
    [("s3://", "has no bucket"), ("s3:///x", "has no bucket"), ("/srv/x", "is a directory, which has no endpoint")],
)
def test_a_storage_that_cannot_be_meant_is_refused(text: str, fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        named_storage(text, endpoint="http://x", region=None)


@pytest.mark.parametrize("text", ["gs://b/x", "S3://b/x", "s3:/b", "minio://id:secret@host/b", "https://host/b"])
def test_a_url_of_anything_else_is_not_taken_for_a_directory(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        named_storage(text)
    scheme, _, _ = text.partition("/")
    assert str(refused.value) == (
        f"the storage begins with {scheme}/, which is neither a directory nor s3://BUCKET/PREFIX; "
        "write ./PATH for a directory with such a name"
    )


@pytest.mark.parametrize("text", ["./gs://b/x", "a:b", "a/b:/c", "/gs://b"])
def test_a_directory_can_have_almost_any_name(text: str) -> None:
    assert named_storage(text) == os.path.abspath(text)


@pytest.mark.parametrize("prefix", ["a/../b", ".hidden", "a//b", "ä"])
def test_a_prefix_that_could_be_misread_is_refused(shared: Bucket, tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"prefix: prefix is "):
        made(shared, tmp_path / "one", prefix=prefix)


# check-config


def test_every_kind_of_access_is_tried(shared: Bucket, tmp_path: Path) -> None:
    config = made(shared, tmp_path / "one")
    before = shared.keys()
    done = "a test object was written, read, listed and deleted"
    expected = (Grade.OK, f"s3://{shared.name}: it has the marker of this repository; {done}")
    assert storage_findings(config)[-1] == expected
    assert shared.keys() == before


def test_credentials_that_may_not_delete_are_a_warning(bucket: Bucket, tmp_path: Path) -> None:
    config = made(bucket, tmp_path / "one")
    places_in(bucket, tmp_path / "one", user="appender")
    ok, warning = storage_findings(config)[-2:]
    assert ok == (
        Grade.OK,
        f"s3://{bucket.name}: it has the marker of this repository; a test object was written, read and listed",
    )
    assert warning[0] is Grade.WARNING
    assert "access is denied (to delete objects), so a cleanup fails and the test object stays" in warning[1]


def test_credentials_that_may_not_write_are_a_failure(bucket: Bucket, tmp_path: Path) -> None:
    config = made(bucket, tmp_path / "one")
    places_in(bucket, tmp_path / "one", user="reader")
    grade, message = storage_findings(config)[-1]
    assert grade is Grade.FAILED
    assert "access is denied" in message


def test_a_wrong_scheme_is_found(shared: Bucket, tmp_path: Path) -> None:
    config = made(shared, tmp_path / "one")
    endpoint = shared.server.endpoint
    with changed(config, endpoint, endpoint.replace("http:", "https:")):
        grade, message = storage_findings(config)[-1]
    assert grade is Grade.FAILED
    assert "it does not speak TLS" in message
    assert f"set endpoint_url: {endpoint} in [DataBackend]" in message


def test_a_wrong_addressing_style_is_found(shared: Bucket, tmp_path: Path) -> None:
    config = made(shared, tmp_path / "one")
    with changed(config, "[DataBackend]\n", "[DataBackend]\naddressing_style: virtual\n"):
        grade, message = storage_findings(config)[-1]
    assert grade is Grade.FAILED
    assert "set addressing_style: path in [DataBackend]: it answers then" in message


@pytest.mark.parametrize(
    ("file", "text", "fact"),
    [
        ("secret", "wrong", "the secret key is wrong; correct `aws_secret_access_key` of [DataBackend]"),
        ("id", "unknown", "the access key is unknown"),
        ("id", "", "does not contain a key on a single line"),
    ],
)
def test_wrong_keys_are_named(shared: Bucket, tmp_path: Path, file: str, text: str, fact: str) -> None:
    config = made(shared, tmp_path / "one")
    (tmp_path / "one" / file).write_text(text)
    grade, message = storage_findings(config)[-1]
    assert grade is Grade.FAILED
    assert fact.partition(";")[0] in message


def test_an_address_where_nothing_listens_is_named(shared: Bucket, tmp_path: Path) -> None:
    config = made(shared, tmp_path / "one")
    [port] = free_ports(1)
    new = f"http://127.0.0.1:{port}\nretry_time: 1s"
    with changed(config, f"endpoint_url: {shared.server.endpoint}", f"endpoint_url: {new}"):
        grade, message = storage_findings(config)[-1]
    assert (grade, message) == (Grade.FAILED, f"storage s3://{shared.name}: does not answer: connection refused")


def test_another_bucket_is_not_that_of_the_repository(shared: Bucket, tmp_path: Path) -> None:
    config = made(shared, tmp_path / "one")
    empty = Bucket.make(shared.server)
    with changed(config, f"bucket_name: {shared.name}", f"bucket_name: {empty.name}"):
        grade, message = storage_findings(config)[-1]
    assert grade is Grade.FAILED
    assert "it has no marker of this repository, but once had one" in message
    assert empty.keys() == []
    empty.remove()


def test_tls_that_the_url_contradicts_is_a_warning(shared: Bucket, tmp_path: Path) -> None:
    config = made(shared, tmp_path / "one")
    with changed(config, "[DataBackend]\n", "[DataBackend]\nuse_ssl: true\n"):
        found = storage_findings(config)
    assert any(grade is Grade.WARNING and "use_ssl" in message for grade, message in found)
    assert found[-1][0] is Grade.OK


def test_objects_of_a_bucket_that_was_emptied_are_not_missing(shared: Bucket, tmp_path: Path) -> None:
    config = made(shared, tmp_path / "one")
    with opened(config) as repository:
        shared.delete(*shared.keys())
        with pytest.raises(StorageError, match="the marker of the repository is gone"):
            repository.blocks.storage.get(BlobUid("a" * 32))
