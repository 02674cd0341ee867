"""Only names in the forms that backyfs and backy2 choose are those of blobs."""

from __future__ import annotations

import pytest

from backyfs.blocks import new_blob_uids, new_shelf
from backyfs.storage.bucket.blobnames import is_name_of_blob
from tests.upgrade.reference import BUCKETS


def test_our_names_are_recognised() -> None:
    assert all(map(is_name_of_blob, new_blob_uids(new_shelf(), 100)))


def test_all_names_in_the_reference_repositories_are_recognised() -> None:
    names = [path.name for path in BUCKETS.glob("*/objects/*")]
    assert names
    assert [name for name in names if not is_name_of_blob(name)] == []


@pytest.mark.parametrize(
    "name",
    [
        "README", "backup2024", "0123456789", "18c29961439EQS96qJLwyirryH3rZub0", "A1B2C3D4E5F60718293A4B5C6D7E8F90",
        "a1b2c3d4e5f60718293a4b5c6d7e8f9", "a1b2c3d4e5f60718293a4b5c6d7e8f90\n", "abcdefghijklmnopqrstuvwxyz012345",
    ],
)  # fmt: skip
def test_names_of_other_programs_are_not(name: str) -> None:
    assert not is_name_of_blob(name)
