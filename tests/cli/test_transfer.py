"""`backyfs export`, `import` and `db copy` as people and scripts call them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from backyfs.cli.main import run
from backyfs.metadata.records.versions import find_version
from tests.support.audit import audit
from tests.support.images import random_bytes, sparse_image
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, make_repository, opened
from tests.support.stored import blob_of, file_of, flip_a_byte
from tests.unit.test_import import copy_of, readable_by_backy2, rows

if TYPE_CHECKING:
    from collections.abc import Callable

UID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
SIZE = 4 * BLOCK + 5  # block 2 is a hole
BACKY2_COLUMNS = ("uid", "version", "id", "date", "checksum", "size", "valid", "enc_version", "enc_envkey", "enc_nonce")


class Done(NamedTuple):
    """The result of a command."""

    status: int
    out: bytes
    err: str

# The twin has an older database for the same storage.
OLDER = (
    "backyfs: the catalog in the storage has index 2, but the database has 1: the database may be an older copy\n"
)

@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Make an encrypted repository as `init` does, whose new blobs backy2 could read."""
    return readable_by_backy2(make_repository(tmp_path / "repository"))


@pytest.fixture
def twin(config: Path) -> Path:
    """Make the same repository with a database without versions."""
    return copy_of(config, "twin")


@pytest.fixture
def call(config: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Done]:
    """Run a command on a repository, by default `config`."""

    def call(*words: object, on: Path = config) -> Done:
        status = run(["-c", str(on), *map(str, words)])
        captured = capsysbinary.readouterr()
        return Done(status, captured.out, captured.err.decode())

    return call


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pieces = {0: random_bytes(2 * BLOCK), 3 * BLOCK: random_bytes(BLOCK + 5, 1)}
    return sparse_image(tmp_path / "image", SIZE, pieces)


@pytest.fixture
def uid(twin: Path, call: Callable[..., Done], image: Path) -> str:
    """Back up `image`, for the twin to lack; return the uid of the version."""
    return call("-m", "backup", image, "disk").out.split()[0].decode()


def contents(config: Path) -> dict[str, list[Any]]:
    with opened(config) as repository:
        return rows(repository)


def restored(call: Callable[..., Done], config: Path, uid: str, target: Path) -> bytes:
    assert call("restore", uid, target, on=config).status == 0
    with opened(config) as repository:
        audit(repository)
    return target.read_bytes()


# Export and import


def test_a_version_can_be_transferred_in_a_file(
    call: Callable[..., Done], twin: Path, uid: str, image: Path, tmp_path: Path
) -> None:
    assert call("export", uid, tmp_path / "export") == (0, b"", "")
    assert oct(os.stat(tmp_path / "export").st_mode & 0o777) == "0o600"
    assert os.stat(tmp_path / "export").st_nlink == 1
    assert sorted(os.listdir(tmp_path)) == ["export", "image", "repository"]
    assert call("import", tmp_path / "export", on=twin) == (0, f"version {uid} of disk\n".encode(), OLDER)
    assert restored(call, twin, uid, tmp_path / "out") == image.read_bytes()


def test_a_version_can_be_transferred_through_stdout_and_stdin(
    call: Callable[..., Done], twin: Path, uid: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = call("export", "disk@latest", "-")
    assert (exported.status, exported.err) == (0, "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(exported.out)))
    assert call("import", "-", on=twin).status == 0
    assert restored(call, twin, uid, tmp_path / "out") == image.read_bytes()


@pytest.mark.parametrize("form", ["backyfs", "backy2"])
def test_a_version_can_be_transferred_through_a_pipe(
    call: Callable[..., Done], config: Path, twin: Path, uid: str, image: Path, tmp_path: Path, form: str
) -> None:
    commands = f"{BACKYFS} -c {config} export --format {form} {uid} - | {BACKYFS} -c {twin} -m import -"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", commands], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{uid}\n", "")
    assert restored(call, twin, uid, tmp_path / "out") == image.read_bytes()


def test_all_versions_can_be_transferred_in_a_file(
    call: Callable[..., Done], twin: Path, uid: str, image: Path, tmp_path: Path
) -> None:
    other = call("-m", "backup", image, "a\nb", "-s", "snap").out.split()[0].decode()
    assert call("export", "--all", tmp_path / "export").status == 0
    done = call("import", tmp_path / "export", on=twin)
    older = OLDER.replace("index 2", "index 3")
    assert done == (0, f"version {other} of a\\x0ab\nversion {uid} of disk\n".encode(), older)
    assert call("-m", "ls", on=twin).out == call("-m", "ls").out
    for one in (uid, other):
        assert restored(call, twin, one, tmp_path / one) == image.read_bytes()


def test_an_import_prints_uids_for_machines(call: Callable[..., Done], twin: Path, uid: str, tmp_path: Path) -> None:
    call("export", uid, tmp_path / "export")
    assert call("-m", "import", tmp_path / "export", on=twin) == (0, f"{uid}\n".encode(), "")


def test_an_import_prints_json(call: Callable[..., Done], twin: Path, uid: str, tmp_path: Path) -> None:
    call("export", uid, tmp_path / "export")
    done = call("--json", "import", tmp_path / "export", on=twin)
    assert (done.status, json.loads(done.out), done.err) == (0, {"versions": [uid]}, "")


@pytest.mark.parametrize("form", ["backyfs", "backy2"])
def test_an_existing_file_is_not_replaced(call: Callable[..., Done], uid: str, tmp_path: Path, form: str) -> None:
    (tmp_path / "export").write_bytes(b"precious")
    done = call("export", "--format", form, uid, tmp_path / "export")
    assert done == (1, b"", f"backyfs: error: {tmp_path}/export exists already; name another file\n")
    assert (tmp_path / "export").read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["export", "image", "repository"]


# For backy2


def blocks_of(text: bytes) -> list[dict[str, str]]:
    """Return the lines for blocks in an export in backy2's format."""
    return [
        dict(zip(BACKY2_COLUMNS, line, strict=True)) for line in list(csv.reader(io.StringIO(text.decode(), "")))[2:]
    ]


def test_an_export_for_backy2_has_checksums_and_keys_that_backy2_understands(
    call: Callable[..., Done], config: Path, uid: str, image: Path, tmp_path: Path
) -> None:
    assert call("export", "--format", "backy2", uid, tmp_path / "export.csv") == (0, b"", "")
    text = (tmp_path / "export.csv").read_bytes()
    first, second, *_ = text.splitlines()
    assert first == b"backy2 Version 2.12 metadata dump"
    assert re.fullmatch(rf"{uid},\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,disk,,5,16389,1,0,".encode(), second)
    configured_key = bytes.fromhex((config.parent / "backyfs.key").read_text())
    content = image.read_bytes()
    for index, line in enumerate(blocks_of(text)):
        block = content[index * BLOCK : (index + 1) * BLOCK]
        assert (line["version"], line["id"], line["size"], line["valid"]) == (uid, str(index), str(len(block)), "1")
        if not any(block):
            assert [line[name] for name in ("uid", "checksum", "enc_version", "enc_envkey")] == ["", "", "0", ""]
            continue
        assert line["checksum"] == hashlib.sha512(block).hexdigest()
        assert line["enc_version"] == "1"
        data_key = aes_key_unwrap(configured_key, bytes.fromhex(line["enc_envkey"]))
        blob = line["uid"]
        stored = (config.parent / "data" / blob[:2] / blob[2:4] / f"{blob}.blob").read_bytes()
        opened_blob = AESGCM(data_key).decrypt(stored[16:32], stored[32:] + stored[:16], None)
        assert zstandard.ZstdDecompressor().decompress(opened_blob) == block


def test_blocks_unknown_to_backy2_can_be_exported_for_it_after_a_migration(
    call: Callable[..., Done], config: Path, image: Path, tmp_path: Path
) -> None:
    config.write_text(config.read_text().replace("encryption_version: 1", "encryption_version: 2"))
    call("-m", "backup", image, "disk")
    done = call("export", "--format", "backy2", "disk@latest", tmp_path / "export.csv")
    assert done.status == 1
    assert "encryption version 2, which backy2 does not know; run `backyfs migrate-encryption --all --to 1`" in done.err
    assert not (tmp_path / "export.csv").exists()
    assert call("-m", "migrate-encryption", "--all", "--to", "1").status == 0
    assert call("export", "--format", "backy2", "disk@latest", tmp_path / "export.csv") == (0, b"", "")


def test_an_export_for_backy2_can_go_to_stdout(call: Callable[..., Done], uid: str) -> None:
    done = call("export", "--format", "backy2", uid, "-")
    assert (done.status, done.err) == (0, "")
    assert [line["id"] for line in blocks_of(done.out)] == ["0", "1", "2", "3", "4"]


def test_an_unencrypted_export_for_backy2_has_no_keys(
    capsysbinary: pytest.CaptureFixture[bytes], image: Path, tmp_path: Path
) -> None:
    config = make_repository(tmp_path / "plain", encrypted=False)
    for words in (["backup", str(image), "disk"], ["export", "--format", "backy2", "disk@latest", "-"]):
        capsysbinary.readouterr()
        assert run(["-c", str(config), *words]) == 0
    lines = blocks_of(capsysbinary.readouterr().out)
    assert {(line["enc_version"], line["enc_envkey"]) for line in lines} == {("0", "")}
    assert lines[0]["checksum"] == hashlib.sha512(image.read_bytes()[:BLOCK]).hexdigest()


def test_all_versions_can_be_exported_for_backy2_into_a_directory(
    call: Callable[..., Done], twin: Path, uid: str, image: Path, tmp_path: Path
) -> None:
    other = call("-m", "backup", image, "other").out.split()[0].decode()
    assert call("export", "--all", "--format", "backy2", tmp_path / "exports") == (0, b"", "")
    assert oct(os.stat(tmp_path / "exports").st_mode & 0o777) == "0o700"
    assert sorted(os.listdir(tmp_path / "exports")) == sorted([f"{uid}.csv", f"{other}.csv"])
    for one in (uid, other):
        done = call("import", tmp_path / "exports" / f"{one}.csv", on=twin)
        assert done.status == 0
        assert restored(call, twin, one, tmp_path / one) == image.read_bytes()


def test_an_import_reports_how_many_blobs_lost_their_fingerprint(
    call: Callable[..., Done], twin: Path, uid: str, tmp_path: Path
) -> None:
    call("export", "--format", "backy2", uid, tmp_path / "export.csv")
    done = call("import", tmp_path / "export.csv", on=twin)
    assert done.err == OLDER + "backyfs: 4 blobs lost their fingerprint, which is of another hash function\n"


@pytest.mark.parametrize("target", ["export.csv", "-"])
def test_an_export_for_backy2_that_meets_damage_leaves_no_file(
    call: Callable[..., Done], config: Path, uid: str, tmp_path: Path, target: str
) -> None:
    with opened(config) as repository:
        with repository.database.read() as connection:
            version = find_version(connection, uid)
        flip_a_byte(file_of(repository, blob_of(repository, version, 1)))
    done = call("export", "--format", "backy2", uid, target if target == "-" else tmp_path / target)
    assert done.status == 20
    assert re.fullmatch(r"backyfs: error: blob \w+ .*\n", done.err)
    assert sorted(os.listdir(tmp_path)) == ["image", "repository"]
    assert call("ls").status == 0  # stdout still exists


# Failure


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export"], "name a VERSION and a FILE, or --all and a FILE"),
        (["export", "disk@latest"], "name a VERSION and a FILE, or --all and a FILE"),
        (["export", "disk@latest", "a", "b"], "name a VERSION and a FILE, or --all and a FILE"),
        (["export", "--all"], "name a VERSION and a FILE, or --all and a FILE"),
        (["export", "--all", "disk@latest", "file"], "name a VERSION and a FILE, or --all and a FILE"),
        (["export", "--all", "--format", "backy2", "-"], "has a file for each version; name a directory"),
        (["export", "--all", "--format", "backy2", "{tmp}"], "{tmp} cannot be created: File exists; name another one"),
        (["export", "disk@latest", "{tmp}"], "{tmp} exists already; name another file"),
        (["export", "disk@latest", "{tmp}/no/x"], "{tmp}/no/x cannot be written: No such file or directory; name"),
        (["import", "{tmp}/nothing"], "{tmp}/nothing cannot be read: No such file or directory; name a file that"),
        (["import", "{tmp}"], "{tmp} cannot be read: Is a directory; name a file that `export` wrote"),
        (["db", "copy", "mysql//x", "sqlite:////nowhere"], "is not a URL of a database that backyfs supports"),
        (["db", "copy", "sqlite:////nowhere", "sqlite:////elsewhere"], "/nowhere holds no repository"),
        (["db", "copy", "sqlite:///{tmp}/x", "sqlite:///{tmp}/x"], "{tmp}/x is named twice; name an empty database"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    call: Callable[..., Done], uid: str, tmp_path: Path, words: list[str], message: str
) -> None:
    done = call(*(word.format(tmp=tmp_path) for word in words))
    assert (done.status, done.out) == (1, b"")
    assert done.err.startswith("backyfs: error: ")
    assert message.format(tmp=tmp_path) in done.err
    assert done.err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["image", "repository"]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["import"], "import"),
        (["export", "--format", "xml", "a", "b"], "export"),
        (["db", "copy", "a"], "db copy"),
    ],
)
def test_the_error_for_a_missing_argument_points_to_the_usage(
    call: Callable[..., Done], words: list[str], command: str
) -> None:
    done = call(*words)
    assert (done.status, done.out) == (1, b"")
    assert done.err.endswith(f"; see `backyfs {command} --help`\n")


def test_a_group_without_a_command_lists_its_commands(call: Callable[..., Done]) -> None:
    done = call("db")
    assert (done.status, done.out) == (1, b"")
    assert "Usage: backyfs db" in done.err


def test_an_unknown_version_is_not_exported(call: Callable[..., Done], tmp_path: Path) -> None:
    done = call("export", "disk@latest", tmp_path / "export")
    assert (done.status, done.out) == (4, b"")
    assert not (tmp_path / "export").exists()


def test_an_existing_version_has_status_22(
    call: Callable[..., Done], config: Path, uid: str, tmp_path: Path
) -> None:
    call("export", uid, tmp_path / "export")
    before = contents(config)
    done = call("import", tmp_path / "export")
    message = f"backyfs: error: version {uid} (disk) exists already; nothing was imported\n"
    assert done == (22, b"", message)
    assert contents(config) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "the export is truncated: it ends within its zstd frame"),
        (lambda data: data + b"\n", "the export has something after its end"),
        (lambda data: data[1:], "the file is not an export of backyfs or backy2; name a file that one of them wrote"),
        (lambda data: data[:0], "the file is not an export of backyfs or backy2; name a file that one of them wrote"),
    ],
)
def test_a_truncated_file_has_status_23(
    call: Callable[..., Done], twin: Path, uid: str, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    call("export", uid, tmp_path / "export")
    data = (tmp_path / "export").read_bytes()
    (tmp_path / "export").write_bytes(damage(data))
    before = contents(twin)
    assert call("import", tmp_path / "export", on=twin) == (23, b"", f"backyfs: error: {message}\n")
    assert contents(twin) == before


def test_a_truncated_export_for_backy2_has_status_23(
    call: Callable[..., Done], twin: Path, uid: str, tmp_path: Path
) -> None:
    call("export", "--format", "backy2", uid, tmp_path / "export.csv")
    data = (tmp_path / "export.csv").read_bytes()
    (tmp_path / "export.csv").write_bytes(b"".join(data.splitlines(keepends=True)[:-1]))
    before = contents(twin)
    done = call("import", tmp_path / "export.csv", on=twin)
    assert (done.status, done.out) == (23, b"")
    assert done.err.startswith("backyfs: error: the export has 4 blocks, but its version has 5: it is truncated")
    assert contents(twin) == before


# The database


@pytest.fixture
def urls(config: Path, tmp_path: Path) -> tuple[str, str]:
    return f"sqlite:///{config.parent}/backyfs.sqlite", f"sqlite:///{tmp_path}/new.sqlite"


def test_a_copied_database_can_replace_the_old_one(
    call: Callable[..., Done], config: Path, uid: str, image: Path, urls: tuple[str, str], tmp_path: Path
) -> None:
    done = call("db", "copy", *urls)
    assert done.status == 0
    assert "backyfs: blobs: 4 rows copied and compared\n" in done.err
    assert done.out.decode().splitlines() == [
        f"21 rows of 13 tables were copied to {tmp_path}/new.sqlite, and compared.",
        "Now set `engine` in [MetaBackend] to its URL. The old database was not changed.",
    ]
    config.write_text(config.read_text().replace(*urls))
    (config.parent / "backyfs.sqlite").unlink()
    assert restored(call, config, uid, tmp_path / "out") == image.read_bytes()


def test_db_copy_prints_a_line_for_each_table_for_machines(
    call: Callable[..., Done], uid: str, urls: tuple[str, str]
) -> None:
    done = call("-m", "db", "copy", *urls)
    assert sorted(done.out.decode().splitlines()) == [
        "blob_checks|0",
        "blob_refs|4",
        "blobs|4",
        "catalog_notes|3",
        "damaged_versions|0",
        "key_slots|1",
        "pages|1",
        "repository|1",
        "runs|1",
        "stats|1",
        "tags|3",
        "version_pages|1",
        "versions|1",
    ]


def test_db_copy_prints_json(call: Callable[..., Done], uid: str, urls: tuple[str, str], tmp_path: Path) -> None:
    result = json.loads(call("--json", "db", "copy", *urls).out)
    assert result == {
        "from": f"{tmp_path}/repository/backyfs.sqlite", "to": f"{tmp_path}/new.sqlite",
        "blob_checks": 0, "blob_refs": 4, "blobs": 4, "catalog_notes": 3, "damaged_versions": 0, "key_slots": 1,
        "pages": 1, "repository": 1, "runs": 1, "stats": 1, "tags": 3, "version_pages": 1, "versions": 1,
    }  # fmt: skip


def test_db_copy_refuses_a_database_that_is_not_empty(call: Callable[..., Done], urls: tuple[str, str]) -> None:
    call("db", "copy", *urls)
    done = call("db", "copy", *urls)
    path = urls[1].removeprefix("sqlite:///")
    assert done == (1, b"", f"backyfs: error: {path} already contains tables; name an empty database\n")
