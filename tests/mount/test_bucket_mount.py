"""Mounts of a repository in a bucket: an object store that is away, and credentials that may only read."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.audit import versions_of
from tests.support.bucketrepositories import made, places_in
from tests.support.faults import NO_SUCH_KEY, SLOW_DOWN, Answer, Fault, Silence
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up, opened, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backyfs.model import Version
    from tests.support.buckets import Bucket
    from tests.support.faultproxy import FaultProxy
    from tests.support.services.objectstore import S3Server

    Mounted = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("fuse")

LATEST = "by_name/disk/latest/data"


@pytest.fixture
def s3_server(seaweedfs_server: S3Server) -> S3Server:
    """Use one server."""
    return seaweedfs_server


@pytest.fixture
def config_file(bucket: Bucket, fault_proxy: FaultProxy, tmp_path: Path) -> Path:
    """Return the configuration of a repository with a backup of `image`, which is reached through the proxy."""
    config_file = made(bucket, tmp_path / "site", endpoint=fault_proxy.endpoint)
    with opened(config_file) as repository:
        back_up(repository, random_image(tmp_path / "image", 9 * BLOCK + 5))
    text = config_file.read_text()
    config_file.write_text(text.replace("[DataBackend]\n", "[DataBackend]\nrequest_timeout: 2s\nretry_time: 5s\n"))
    return config_file


def versions_in(config_file: Path) -> list[Version]:
    with opened(config_file) as repository:
        return versions_of(repository)


@pytest.mark.parametrize("fault", [Silence(), SLOW_DOWN, Answer(404, ""), NO_SUCH_KEY, None], ids=str)
def test_readers_get_an_error_while_the_store_is_away_and_data_when_it_is_back(
    fault: Fault | None, mounted: Mounted, config_file: Path, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    before = versions_in(config_file)
    at = mounted(config_file, "--timeout", "1")
    expected = (tmp_path / "image").read_bytes()
    if fault is None:
        fault_proxy.refuse()
    else:
        fault_proxy.add(fault)
    with pytest.raises(OSError, match="Input/output error") as raised:
        (at / LATEST).read_bytes()
    assert raised.value.errno == errno.EIO
    if fault is None:
        fault_proxy.accept()
    fault_proxy.rules.clear()

    def is_read() -> bool:
        with suppress(OSError):
            return (at / LATEST).read_bytes() == expected
        return False

    wait_for(is_read, "the mount reads again")
    assert versions_in(config_file) == before  # and nothing is marked


def test_credentials_that_may_only_read_are_enough(
    mounted: Mounted, config_file: Path, bucket: Bucket, tmp_path: Path
) -> None:
    places_in(bucket, tmp_path / "site", user="reader")
    assert (mounted(config_file) / LATEST).read_bytes() == (tmp_path / "image").read_bytes()
