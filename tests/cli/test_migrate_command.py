"""`backyfs migrate-encryption`: what it prints and refuses, and which key opens what after a rotation of keys."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from backyfs import keys
from backyfs.cli.main import run
from backyfs.engine.secrets.rotation import rotate_repository_key
from backyfs.errors import KeyMaterialError
from backyfs.metadata.records.identity import load_key_date
from backyfs.metadata.records.versions import list_versions
from backyfs.repository.keyring import configured_secret
from backyfs.work.job import Job
from tests.support.images import random_image
from tests.support.jobs import spec
from tests.support.repositories import BLOCK, back_up, configure, make_repository, opened
from tests.support.stored import blob_of, file_of, flip_a_byte

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Call = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("cheap_passphrases")

WORDS = "correct horse"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Make a repository with three plain blocks, in which encryption was switched on later."""
    config = make_repository(tmp_path / "repository")
    configure(config, encryption_version=0)
    with opened(config) as repository:
        back_up(repository, random_image(tmp_path / "image", 3 * BLOCK))
    configure(config, encryption_version=2)
    (tmp_path / "words").write_text(WORDS + "\n")
    (tmp_path / "words").chmod(0o600)
    return config


@pytest.fixture
def call(config: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    def call(*words: object) -> tuple[int, str, str]:
        status = run(["-c", str(config), *map(str, words)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


def restores(call: Call, directory: Path) -> bool:
    target = directory / "restored"
    assert call("-q", "restore", "-f", "disk@latest", target)[0] == 0
    return target.read_bytes() == (directory / "image").read_bytes()


def labels(call: Call) -> list[str]:
    return [row["label"] for row in json.loads(call("--json", "key", "list")[1])]


def test_a_dry_run_shows_the_work_but_does_not_do_it(call: Call) -> None:
    expected = (0, f"encryption_version|blobs|bytes\n0|3|{3 * BLOCK}\n", "")
    assert call("-m", "migrate-encryption", "--all", "--dry-run") == expected
    assert call("-m", "migrate-encryption", "disk@latest", "-n") == expected
    assert call("-m", "migrate-encryption", "--all", "--to", "0", "-n") == (0, "encryption_version|blobs|bytes\n", "")


def test_the_result_is_reported_in_every_form(call: Call, tmp_path: Path) -> None:
    status, out, err = call("migrate-encryption", "--all")
    assert (status, err) == (0, "")
    assert out.startswith(f"3 blobs re-encrypted, {3 * BLOCK / 1024:.1f} KiB in ")
    assert out.endswith("The old objects are deleted by `backyfs cleanup`.\n")
    assert restores(call, tmp_path)
    report = json.loads(call("--json", "migrate-encryption", "disk@latest", "--to", "1")[1])
    assert (report["blobs"], report["bytes"], report["merged"], report["damaged"]) == (3, 3 * BLOCK, 0, 0)
    header, row = call("-m", "migrate-encryption", "--all")[1].splitlines()
    assert header == "blobs|bytes|stored_bytes|merged|damaged|duration_s"
    assert row.startswith(f"3|{3 * BLOCK}|")
    assert restores(call, tmp_path)


def test_a_damaged_block_is_reported_with_status_20(call: Call, config: Path) -> None:
    with opened(config) as repository, repository.database.read() as connection:
        [version] = list_versions(connection)
        blob = blob_of(repository, version, 1)
        flip_a_byte(file_of(repository, blob))
    status, _, err = call("-m", "migrate-encryption", "--all")
    assert status == 20
    assert f"blob {blob.uid} was not changed: holds other bytes than were backed up" in err
    assert "1 damaged blobs, which the log lists, were not re-encrypted; run `backyfs scrub --all`" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name versions whose blocks should be re-encrypted, or give --all; not both"),
        (["disk@latest", "--all"], "name versions whose blocks should be re-encrypted, or give --all; not both"),
        (["--all", "--to", "7"], "--to is 7; allowed: 0, 1, 2"),
        (["--all", "--to", "-1"], "-1 is not in the range"),
        (["--all", "--older-than", "2026-01-01"], "--older-than limits what --reseal re-encrypts; add --reseal"),
        (["--all", "--reseal", "--older-than", "soon"], "'soon' is not a date"),
        (["--all", "--workers", "0"], "0 is not in the range"),
    ],
)
def test_contradictory_arguments_are_refused(call: Call, words: list[str], said: str) -> None:
    status, out, err = call("migrate-encryption", *words)
    assert (status, out) == (1, "")
    assert said in err
    assert call("-m", "migrate-encryption", "--all", "-n")[1].endswith(f"0|3|{3 * BLOCK}\n")


def test_a_rotation_locks_out_anyone_who_has_seen_the_old_keys(call: Call, config: Path, tmp_path: Path) -> None:
    call("-q", "migrate-encryption", "--all")
    assert call("-q", "key", "add", "ann", "--passphrase-file", tmp_path / "words")[0] == 0
    with opened(config) as repository, repository.database.read() as connection:
        [version] = list_versions(connection)
        old_key, old_blob = repository.blocks.keyring.repository_key, blob_of(repository, version, 0)
    status, _, err = call("migrate-encryption", "--all", "--reseal")
    assert status == 0
    assert "key slot ann was removed, because its key or passphrase is not known here" in err
    assert "print its recovery page again" in err
    assert "is out of date" not in err
    assert call("catalog", "check")[0] == 0
    assert labels(call) == ["configuration"]
    assert restores(call, tmp_path)
    with opened(config) as repository:
        new_key, new_blob = repository.blocks.keyring.repository_key, blob_of(repository, version, 0)
        assert new_key != old_key
        assert new_blob.uid != old_blob.uid
        assert repository.blocks.keyring.unwrap(new_blob.wrapped_key) != _unwrap(old_key, old_blob.wrapped_key)
        assert back_up(repository, tmp_path / "image").statistics.blocks_deduplicated == 3  # fingerprints are unchanged
    assert call("scrub", "--all")[0] == 0


def test_an_old_copy_of_the_database_opens_nothing_after_a_rotation_and_a_cleanup(
    call: Call, config: Path, tmp_path: Path
) -> None:
    call("-q", "migrate-encryption", "--all")
    assert call("-q", "key", "export", tmp_path / "page")[0] == 0
    database, copy = config.parent / "backyfs.sqlite", tmp_path / "copy.sqlite"
    call("-q", "key", "add", "ann", "--passphrase-file", tmp_path / "words")
    shutil.copy(database, copy)
    assert call("-q", "migrate-encryption", "--all", "--reseal")[0] == 0
    assert call("-q", "cleanup", "--dangerous-force")[0] == 0
    assert restores(call, tmp_path)
    rescue = ("key", "add", "rescue", "--passphrase-file", tmp_path / "words", "--from-recovery", tmp_path / "page")
    status, _, err = call(*rescue)
    assert (status, "has the key of another repository" in err) == (3, True)
    database.unlink()
    shutil.copy(copy, database)
    image = (tmp_path / "image").read_bytes()
    assert call("restore", "disk@latest", tmp_path / "again")[0] == 20
    found = (tmp_path / "again").read_bytes()
    assert not [at for at in range(0, len(image), 512) if found[at : at + 16] == image[at : at + 16]]


def _unwrap(key: bytes | None, wrapped: bytes | None) -> bytes:
    assert key is not None
    assert wrapped is not None
    return keys.unwrap_key(key, wrapped)


def test_a_rotation_is_done_once_per_date(call: Call, tmp_path: Path) -> None:
    tomorrow, earlier = datetime.now(UTC) + timedelta(days=1), "2026-01-01"
    reseal = ("--json", "migrate-encryption", "--all", "--reseal", "--older-than")
    assert json.loads(call(*reseal, earlier)[1])["blobs"] == 3  # that are not encrypted
    done = json.loads(call(*reseal, earlier)[1])
    assert (done["blobs"], done["rotated"]) == (0, False)
    done = json.loads(call(*reseal, tomorrow.strftime("%Y-%m-%dT%H:%M:%S"))[1])
    assert (done["blobs"], done["rotated"], done["slots_removed"]) == (3, True, [])
    assert restores(call, tmp_path)


def test_a_rotation_asks_for_its_passphrase_once(
    call: Call, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("-q", "key", "add", "ann", "--passphrase-file", tmp_path / "words")
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("encryption_")))
    asked: list[str] = []

    def ask() -> str:
        asked.append(WORDS)
        return WORDS

    monkeypatch.setattr("backyfs.cli.invocation.asking", lambda: ask)
    assert call("-q", "migrate-encryption", "--all", "--reseal")[0] == 0
    assert asked == [WORDS]
    assert labels(call) == ["ann"]
    assert restores(call, tmp_path)


def test_a_rotation_does_not_wait_for_running_commands_but_names_them(call: Call, config: Path) -> None:
    with opened(config) as repository, Job(repository.database, spec("backup disk")):
        status, _, err = call("migrate-encryption", "--all", "--reseal")
    assert status == 1
    assert "the data keys are in use by backup disk" in err
    assert call("-m", "migrate-encryption", "--all", "-n")[1].endswith(f"0|3|{3 * BLOCK}\n")


def test_a_command_that_has_read_the_old_key_does_not_continue(call: Call, config: Path) -> None:
    with opened(config) as repository:
        assert call("-q", "migrate-encryption", "--all", "--reseal")[0] == 0
        job = Job(repository.database, spec("backup"))
        with pytest.raises(KeyMaterialError, match="another key in the meantime"), job:
            pytest.fail("it went on")


def test_the_error_for_a_repository_without_slots_says_what_to_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_repository(tmp_path / "plain", encrypted=False)
    assert run(["-c", str(config), "migrate-encryption", "--all", "--reseal"]) == 1
    assert "neither key nor passphrase" in capfd.readouterr().err


def test_the_date_of_a_key_is_that_of_its_rotation(config: Path) -> None:
    with opened(config) as repository:
        secret = configured_secret(repository.config)
        assert secret is not None
        before = datetime.now(UTC)
        report = rotate_repository_key(repository.database, secret, older_than=before)
        assert report is not None
        assert (report.removed, report.rewrapped, report.left) == ((), 0, 0)
    with opened(config) as repository:
        with repository.database.read() as connection:
            date = load_key_date(connection)
        assert date is not None
        assert before <= date <= datetime.now(UTC)
        assert rotate_repository_key(repository.database, secret, older_than=before) is None
