"""Repositories in buckets, as their users see them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from backyfs.cli.main import run
from tests.support.buckets import Bucket
from tests.support.images import random_image

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.signing import Credentials

BLOCK = 4096


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with credentials for a bucket, who runs commands in a directory."""

    directory: Path
    bucket: Bucket
    capsys: pytest.CaptureFixture[str]

    def call(self, *words: str) -> tuple[int, str, str]:
        """Run a command with the configuration of the user; return its exit status and its output."""
        self.capsys.readouterr()
        status = run(["-c", str(self.directory / "backyfs.cfg"), *words])
        return status, *self.capsys.readouterr()

    def init(self, credentials: Credentials, *, prefix: str = "") -> tuple[int, str, str]:
        """Make a repository."""
        files = {"id": credentials.access_key, "secret": credentials.secret_key}
        for name, key in files.items():
            (self.directory / name).write_text(f"{key}\n")
        return self.call(
            "init", "--storage", f"s3://{self.bucket.name}{prefix}", "--endpoint", self.bucket.server.endpoint,
            "--access-key-file", str(self.directory / "id"), "--secret-key-file", str(self.directory / "secret"),
            "--db", str(self.directory / "backyfs.sqlite"), "--block-size", str(BLOCK),
        )  # fmt: skip

    def back_up(self, image: Path) -> str:
        """Back up an image and return the uid of the version."""
        status, out, err = self.call("--json", "backup", str(image), "disk")
        assert (status, err) == (0, "")
        return str(json.loads(out)["uid"])

    def blobs(self) -> list[str]:
        """Return the keys of all blobs."""
        keys = self.bucket.keys()
        return [key for key in keys if "/" not in key]


@pytest.fixture
def user(tmp_path: Path, bucket: Bucket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> User:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    return User(tmp_path, bucket, capsys)


def test_no_repository_is_made_where_nothing_can_be_stored(user: User) -> None:
    status, out, err = user.init(user.bucket.server.reader)
    assert (status, out) == (6, "")
    assert err == (
        f"backyfs: error: storage s3://{user.bucket.name}: access is denied (object catalog/clock); give these "
        "credentials the permission, or configure others\n"
    )
    assert sorted(path.name for path in user.directory.iterdir()) == ["id", "secret"]
    assert user.bucket.keys() == []


def test_a_host_that_may_not_delete_can_make_a_repository_and_backups(user: User) -> None:
    image = random_image(user.directory / "image", 3 * BLOCK)
    assert user.init(user.bucket.server.appender, prefix="/host")[0] == 0
    uid = user.back_up(image)
    status, _, err = user.call("restore", uid, str(user.directory / "restored"))
    assert status == 0, err
    assert (user.directory / "restored").read_bytes() == image.read_bytes()


def test_an_attempt_without_deletion_does_not_prevent_the_next(user: User) -> None:
    user.bucket.put("catalog/clock", b"")
    assert user.init(user.bucket.server.admin)[0] == 0


def test_a_bucket_with_something_else_is_refused(user: User) -> None:
    user.bucket.put("README", b"theirs")
    status, _, err = user.init(user.bucket.server.admin)
    assert status == 6
    assert err == (
        f"backyfs: error: storage s3://{user.bucket.name} is not empty: it holds README; "
        "name another bucket or prefix\n"
    )
    assert user.init(user.bucket.server.admin, prefix="/mine")[0] == 0


def test_a_cleanup_reports_what_is_paid_for_and_leaves_it(user: User) -> None:
    image = random_image(user.directory / "image", 3 * BLOCK)
    assert user.init(user.bucket.server.admin)[0] == 0
    file = user.directory / "backyfs.cfg"
    file.write_text(file.read_text().replace("\nbucket_name", "\nminimum_storage_days: 30\nbucket_name"))
    assert user.call("rm", "--force", user.back_up(image))[0] == 0
    blobs = user.blobs()
    assert len(blobs) == 3
    status, out, err = user.call("cleanup", "--dangerous-force")
    assert (status, err) == (0, "")
    first, second, *_ = out.splitlines()
    assert first.startswith("0 blobs deleted, 0 B freed, in ")
    assert second == (
        "3 blobs were stored in the last 30 days, for which the storage is paid, and are kept for now"
    )
    report = json.loads(user.call("--json", "cleanup", "--full", "--dangerous-force")[1])
    assert (report["blobs"], report["young_blobs"]) == (0, 3)
    assert user.blobs() == blobs
