"""Mounts with a disk cache: a second mount needs nothing from the storage, and a cache never causes wrong bytes."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.buckets import Bucket
from tests.support.images import random_image
from tests.support.program import backyfs
from tests.support.repositories import back_up, make_repository, opened
from tests.support.stored import blob_uids, flip_a_byte

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.services.objectstore import S3Server

    Mounted = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("fuse")

BLOCK = 1 << 20
SIZE = 3 * BLOCK + 5
LATEST = "by_name/disk/latest/data"
DAMAGED = 20


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def config_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the configuration of a repository with a cache and one version, a backup of `image`."""
    config_file = make_repository(tmp_path / "repository", block_size=BLOCK, encrypted=request.param)
    text = config_file.read_text()
    config_file.write_text(text.replace("[DataBackend]\n", f"[DataBackend]\ncache: {tmp_path / 'cache'}\n"))
    with opened(config_file) as repository:
        back_up(repository, random_image(tmp_path / "image", SIZE))
    return config_file


def copies(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "copies").glob("??/*"))


def remove_blobs(config_file: Path) -> None:
    """Remove the objects of all blobs, but keep the marker and the catalog."""
    with opened(config_file) as repository:
        storage = repository.blocks.storage
        storage.delete(blob_uids(storage))


def test_a_second_mount_reads_nothing_from_the_storage(mounted: Mounted, config_file: Path, tmp_path: Path) -> None:
    image = (tmp_path / "image").read_bytes()
    first = mounted(config_file)
    assert (first / LATEST).read_bytes() == image
    assert backyfs("umount", first).returncode == 0
    remove_blobs(config_file)
    second = mounted(config_file)
    assert (second / LATEST).read_bytes() == image


def test_parts_already_read_are_in_the_cache(mounted: Mounted, config_file: Path, tmp_path: Path) -> None:
    image = (tmp_path / "image").read_bytes()

    def read(at: Path) -> bytes:
        with (at / LATEST).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            return b"".join(os.pread(file.fileno(), 4096, offset) for offset in (2 * BLOCK + 9, 700_000))

    expected = b"".join(image[offset : offset + 4096] for offset in (2 * BLOCK + 9, 700_000))
    first = mounted(config_file, "--read-ahead", "0")
    assert read(first) == expected
    assert backyfs("umount", first).returncode == 0
    remove_blobs(config_file)
    assert read(mounted(config_file, "--read-ahead", "0")) == expected


def test_bytes_damaged_in_the_cache_are_read_from_the_storage(
    mounted: Mounted, config_file: Path, tmp_path: Path
) -> None:
    image = (tmp_path / "image").read_bytes()
    first = mounted(config_file)
    assert (first / LATEST).read_bytes() == image
    assert backyfs("umount", first).returncode == 0
    for path in copies(tmp_path):
        flip_a_byte(path)
    second = mounted(config_file)
    assert (second / LATEST).read_bytes() == image


def test_other_commands_read_the_storage(mounted: Mounted, config_file: Path, tmp_path: Path) -> None:
    image = (tmp_path / "image").read_bytes()
    at = mounted(config_file)
    assert (at / LATEST).read_bytes() == image
    assert backyfs("umount", at).returncode == 0
    for path in (tmp_path / "repository" / "data").glob("??/??/*.blob"):
        flip_a_byte(path)
    for command in (("restore", "disk@latest", tmp_path / "target"), ("scrub", "--all")):
        assert backyfs("-c", config_file, *command).returncode == DAMAGED
    [data] = mounted(config_file).glob("by_version_uid/*/data")
    assert data.read_bytes() == image


def test_a_mount_with_an_unusable_cache_warns_but_works(
    mounted: Mounted, config_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_bytes(b"")
    at = mounted(config_file)
    assert (at / LATEST).read_bytes() == (tmp_path / "image").read_bytes()
    warning = f"disk cache {tmp_path}/cache: Not a directory; blocks are read from the storage without it"
    assert warning in (tmp_path / "repository" / "backyfs.log").read_text()


def test_a_cache_can_be_removed_under_a_mount(mounted: Mounted, config_file: Path, tmp_path: Path) -> None:
    at = mounted(config_file)
    with (at / LATEST).open("rb", buffering=0) as file:
        first = file.read(4096)
        shutil.rmtree(tmp_path / "cache")
        assert first + file.readall() == (tmp_path / "image").read_bytes()


@pytest.fixture
def in_bucket(s3_server: S3Server, tmp_path: Path) -> Iterator[tuple[Path, Bucket]]:
    """The configuration of the same repository in a bucket, and the bucket."""
    config_file = make_repository(tmp_path / "repository", block_size=BLOCK)
    with opened(config_file) as repository:
        back_up(repository, random_image(tmp_path / "image", SIZE))
    bucket = Bucket.make(s3_server)
    bucket.take_over(config_file, cache=tmp_path / "cache")
    yield config_file, bucket
    bucket.remove()


def test_a_second_mount_reads_nothing_from_a_bucket(
    mounted: Mounted, in_bucket: tuple[Path, Bucket], tmp_path: Path
) -> None:
    config_file, bucket = in_bucket
    image = (tmp_path / "image").read_bytes()
    first = mounted(config_file)
    assert (first / LATEST).read_bytes() == image
    assert backyfs("umount", first).returncode == 0
    stored = bucket.keys()
    bucket.delete(*(key for key in stored if "/" not in key))
    assert (mounted(config_file) / LATEST).read_bytes() == image
