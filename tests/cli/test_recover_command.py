"""`recover` and `catalog`, used by somebody who has lost the database."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from backyfs.cli.main import run
from backyfs.config import load_config
from backyfs.keys.passphrase import Cost
from backyfs.repository import open_repository
from tests.support.images import random_image
from tests.support.repositories import BLOCK, make_repository, opened
from tests.upgrade.reference import Reference, check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return random_image(tmp_path / "image", 5 * BLOCK + 7)


@pytest.fixture
def backed_up(call: Callable[..., tuple[int, str, str]], image: Path) -> str:
    """Make two versions; return the output of `ls`."""
    assert call("-q", "backup", image, "disk", "-t", "a,b")[0] == 0
    assert call("-q", "backup", image, "other")[0] == 0
    assert call("-q", "expire", "disk@latest", "2040-01-01")[0] == 0
    assert call("-q", "protect", "other@latest")[0] == 0
    return call("-m", "ls")[1]


def lose_database(config: Path) -> None:
    for path in config.parent.glob("backyfs.sqlite*"):
        path.unlink()


def data_of(config: Path) -> str:
    return str(config.parent / "data")


def objects(config: Path) -> list[Path]:
    return sorted(path for path in (config.parent / "data" / "catalog").rglob("*") if path.is_file())


def call_with(
    config: Path, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    status = run(["-c", str(config), *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_storage_and_key_are_enough(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str, image: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lose_database(config)
    config.unlink()
    new = tmp_path / "new" / "backyfs.cfg"
    key = config.with_suffix(".key")
    status, out, err = call_with(
        new, capsys, "recover", data_of(config), "--key-file", key, "--to", tmp_path / "new" / "db.sqlite"
    )
    assert (status, err) == (0, "")
    assert out.splitlines()[0].endswith(f"2 versions with 6 blobs are in {tmp_path}/new/db.sqlite")
    assert f"The configuration is {new}." in out
    assert load_config(str(new), {})[0].key is not None
    assert new.stat().st_mode & 0o777 == 0o600
    assert call_with(new, capsys, "-m", "ls")[1] == backed_up
    assert call_with(new, capsys, "-q", "restore", "disk@latest", tmp_path / "restored")[0] == 0
    assert (tmp_path / "restored").read_bytes() == image.read_bytes()
    assert call_with(new, capsys, "-q", "catalog", "check")[0] == 0
    assert call_with(new, capsys, "-q", "backup", image, "disk")[0] == 0


def test_an_existing_configuration_is_used_and_not_changed(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str
) -> None:
    lose_database(config)
    before = config.read_bytes()
    status, out, err = call("recover")
    assert (status, err) == (0, "")
    assert f"The configuration {config} already existed and was not changed: check [MetaBackend] and " in out
    assert config.read_bytes() == before
    assert call("-m", "ls")[1] == backed_up


def test_losses_are_listed_and_the_rest_is_recovered(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str
) -> None:
    assert backed_up
    [page] = [path for path in objects(config) if path.parent.parent.name == "pages"]
    name = str(page.relative_to(config.parent / "data"))
    page.write_bytes(page.read_bytes()[:-1])
    lose_database(config)
    status, out, err = call("--json", "recover")
    report = json.loads(out)
    assert (status, report["versions"], report["blobs"], len(report["invalid"])) == (20, 2, 0, 2)
    assert {loss["name"] for loss in report["losses"]} == {name}
    assert {loss["version"] for loss in report["losses"]} == set(report["invalid"])
    assert err.startswith(
        "backyfs: error: 2 objects are missing, damaged or older than the index says, and are listed; 2 versions were "
    )
    lose_database(config)
    status, out, _ = call("-m", "recover")
    assert (status, out.splitlines()[0]) == (20, "name|version|reason")
    assert out.splitlines()[1].startswith(f"{name}|")
    lose_database(config)
    status, out, _ = call("recover")
    assert status == 20
    assert "fails authentication" in out
    assert "2 versions are invalid now, because they lack blocks." in out


def test_a_version_whose_object_is_missing_is_listed(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str
) -> None:
    [first, _] = [line.split("|") for line in backed_up.splitlines()[1:]]
    uid = next(path.name for path in objects(config) if path.parent.name == "versions" and path.name in first)
    (config.parent / "data" / "catalog" / "versions" / uid).unlink()
    lose_database(config)
    status, out, _ = call("-m", "-s", "recover")
    assert (status, out) == (
        20, f"catalog/versions/{uid}||is missing from the storage, and catalog/index names it\n"
    )  # fmt: skip
    assert len(call("-m", "-s", "ls")[1].splitlines()) == 1


def test_the_state_of_the_catalog_is_shown_for_comparison(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str
) -> None:
    assert backed_up
    assert "its index is number 3." in call("catalog", "check")[1]
    assert json.loads(call("--json", "catalog", "check")[1])["index_number"] == 3
    lose_database(config)
    out = call("recover")[1]
    assert "The catalog's index is number 3, written 20" in out
    assert "the storage is in an older state" in out
    lose_database(config)
    report = json.loads(call("--json", "recover")[1])
    assert (report["index_number"], report["unlisted"], report["losses"]) == (3, [], [])


def test_a_version_missing_from_the_index_is_reported(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str
) -> None:
    assert backed_up
    index = config.parent / "data" / "catalog" / "index"
    kept = index.read_bytes()
    assert call("-q", "backup", config.parent.parent / "image", "new")[0] == 0
    index.write_bytes(kept)
    lose_database(config)
    status, out, _ = call("recover")
    assert status == 0
    assert "1 versions are not in the index: " in out


def test_missing_objects_are_found_with_check_objects(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str
) -> None:
    assert backed_up
    blob = next((config.parent / "data").rglob("*.blob"))
    blob.unlink()
    lose_database(config)
    assert call("-q", "recover")[0] == 0
    lose_database(config)
    status, out, _ = call("-m", "-s", "recover", "--check-objects")
    assert (status, out) == (20, f"{blob.name}||is missing from the storage\n")
    assert call("-m", "-s", "ls", "-f", "valid")[1].split() == ["0", "0"]


def test_versions_are_valid_again_after_a_scrub_finds_the_missing_block(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str, tmp_path: Path
) -> None:
    assert backed_up
    blob = next((config.parent / "data").rglob("*.blob"))
    blob.rename(tmp_path / "kept")
    lose_database(config)
    assert call("-q", "recover", "--check-objects")[0] == 20
    assert call("-m", "-s", "ls", "-f", "valid")[1].split() == ["0", "0"]
    (tmp_path / "kept").rename(blob)
    assert call("-q", "scrub", "--all")[0] == 0
    assert call("-m", "-s", "ls", "-f", "valid")[1].split() == ["1", "1"]


@pytest.mark.parametrize("has_marker", [True, False])
def test_a_recovery_changes_nothing_in_the_storage_except_a_missing_marker(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str, has_marker: bool
) -> None:
    assert backed_up
    marker = config.parent / "data" / "catalog" / "marker"
    kept = marker.read_bytes()
    if not has_marker:
        marker.unlink()
    lose_database(config)
    before = files_of(config)
    assert call("-q", "recover", "--check-objects")[0] == 0
    after = files_of(config)
    if not has_marker:
        assert after.pop(marker)[0] == kept
    assert after == before


def files_of(config: Path) -> dict[Path, tuple[bytes, int]]:
    """Return content and time of each file in the storage."""
    files = (path for path in (config.parent / "data").rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_rollback_of_the_catalog_is_noticed_while_the_database_exists(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str, tmp_path: Path
) -> None:
    catalog = config.parent / "data" / "catalog"
    shutil.copytree(catalog, tmp_path / "kept")
    assert call("-q", "backup", config.parent.parent / "image", "new")[0] == 0
    shutil.rmtree(catalog)
    shutil.copytree(tmp_path / "kept", catalog)
    status, out, _ = call("-m", "-s", "catalog", "check")
    assert status == 20
    assert "catalog/index|is number 3 of " in out
    assert "UTC, not 4: the storage, or this object of it, is in an older state" in out
    lose_database(config)
    status, out, _ = call("recover")  # without the database, nothing else shows it
    assert status == 0
    assert "The catalog's index is number 3, written 20" in out
    assert call("-m", "ls")[1] == backed_up


def test_an_older_object_of_a_version_is_noticed_while_the_database_exists(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str
) -> None:
    assert backed_up
    kept = {path: path.read_bytes() for path in objects(config) if path.parent.name == "versions"}
    assert call("-q", "unprotect", "other@latest")[0] == 0
    [changed] = [path for path, content in kept.items() if path.read_bytes() != content]
    changed.write_bytes(kept[changed])
    status, out, _ = call("-m", "-s", "catalog", "check")
    assert (status, out) == (20, f"catalog/versions/{changed.name}|differs from the database\n")


def test_a_version_that_was_removed_and_put_back_is_noticed(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str
) -> None:
    assert backed_up
    kept = {path: path.read_bytes() for path in objects(config) if path.parent.name == "versions"}
    assert call("-q", "rm", "--force", "disk@latest")[0] == 0
    [gone] = [path for path in kept if not path.exists()]
    gone.write_bytes(kept[gone])
    status, out, _ = call("-m", "-s", "catalog", "check")
    assert (status, out) == (20, f"catalog/versions/{gone.name}|is of nothing that the database has\n")
    lose_database(config)
    status, out, _ = call("recover")
    assert status == 0
    assert f"1 versions are not in the index: {gone.name}" in out


def test_a_database_is_never_overwritten(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str, tmp_path: Path
) -> None:
    status, _, err = call("recover")
    assert (status, err) == (
        1, f"backyfs: error: {config.parent}/backyfs.sqlite already contains tables; name an empty database\n"
    )  # fmt: skip
    assert call("-m", "ls")[1] == backed_up
    foreign = tmp_path / "notes.txt"
    foreign.write_text("mine")
    status, _, err = call("recover", "--to", foreign)
    assert (status, foreign.read_text()) == (1, "mine")
    assert err.startswith("backyfs: error: ")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--key-file", "{dir}/wrong.key"], 3, "is not the key of this repository"),
        (["--key-file", "{dir}/none.key"], 3, "cannot be read"),
        ([], 3, "is encrypted, and opened by"),
        (["--from-recovery", "{dir}/wrong.key"], 3, ""),
    ],
)
def test_without_the_key_nothing_is_created(
    config: Path, backed_up: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int,
    message: str,
) -> None:  # fmt: skip
    assert backed_up
    (tmp_path / "wrong.key").write_text("5e" * 32)
    (tmp_path / "wrong.key").chmod(0o600)
    new = tmp_path / "new.cfg"
    words = [word.replace("{dir}", str(tmp_path)) for word in words]
    done = call_with(new, capsys, "recover", data_of(config), "--to", tmp_path / "db", *words)
    assert done[0] == status
    assert message in done[2]
    assert done[2].count("\n") == 1
    assert not new.exists()
    assert not (tmp_path / "db").exists()


def test_a_storage_without_a_catalog_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    status, _, err = call_with(
        tmp_path / "new.cfg", capsys, "recover", tmp_path / "data", "--to", tmp_path / "db"
    )
    assert status == 20
    assert "the storage has no object catalog/repository" in err
    status, _, err = call_with(tmp_path / "new.cfg", capsys, "recover")
    assert status == 1
    assert "no configuration names the storage; name its directory" in err


@pytest.mark.parametrize("option", ["--endpoint", "--region", "--profile", "--access-key-file", "--secret-key-file"])
def test_options_for_a_bucket_need_a_storage(
    call: Callable[..., tuple[int, str, str]], config: Path, option: str
) -> None:
    status, _, err = call("recover", option, "x", "--to", config.parent / "new.sqlite")
    assert status == 1
    assert "STORAGE is not named, so the options for a bucket would be ignored; name it as s3://BUCKET/PREFIX" in err
    assert not (config.parent / "new.sqlite").exists()


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["s3://b!d/x"], "[DataBackend] bucket_name: bucket_name is 'b!d'"),
        (["s3://bucket", "--region", "x\nprefix: y"], "[DataBackend] region_name: region_name has white space"),
        (["s3://bucket", "--profile", " x"], "[DataBackend] aws_profile: aws_profile has white space"),
    ],
)
def test_the_error_for_an_unusable_bucket_names_no_file(
    words: list[str], fact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = call_with(tmp_path / "new.cfg", capsys, "recover", *words, "--to", tmp_path / "db")
    assert status == 1
    assert err.startswith(f"backyfs: error: {fact}")


@pytest.mark.parametrize("name", ["a\nb", "blank ", "~", "100%"])
def test_a_directory_with_an_odd_name_is_opened_as_it_is(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str, name: str
) -> None:
    (config.parent / "data").rename(config.parent / name)
    lose_database(config)
    assert call("recover", config.parent / name)[0] == 0
    assert backed_up


def test_a_repository_without_encryption_needs_no_key(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_repository(tmp_path / "plain", encrypted=False)
    assert call_with(config, capsys, "-q", "backup", image, "disk")[0] == 0
    lose_database(config)
    config.unlink()
    assert call_with(config, capsys, "-q", "recover", data_of(config), "--to", config.parent / "new.sqlite")[0] == 0
    assert "encryption_version: 0" in config.read_text()
    with opened(config) as repository:
        assert repository.blocks.encryption_version == 0
    assert call_with(config, capsys, "-q", "restore", "disk@latest", tmp_path / "restored")[0] == 0
    assert (tmp_path / "restored").read_bytes() == image.read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ("--key-file", "{key}"),
        ("--key-file", "{directory}/no such file"),
        ("--passphrase-command", "echo no passphrase"),
        ("--from-recovery", "{page}"),
    ],
)
def test_an_unencrypted_catalog_is_refused_if_a_key_is_given(
    tmp_path: Path, image: Path, config: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    page = tmp_path / "page"
    assert call_with(config, capsys, "key", "export", page)[0] == 0
    forged = make_repository(tmp_path / "forged", encrypted=False)
    assert call_with(forged, capsys, "-q", "backup", image, "disk")[0] == 0
    filled = [word.format(key=config.with_suffix(".key"), directory=tmp_path, page=page) for word in words]
    new, database = tmp_path / "new" / "backyfs.cfg", tmp_path / "new" / "db.sqlite"
    status, _, err = call_with(new, capsys, "recover", data_of(forged), "--to", database, *filled)
    assert status == 20
    assert "is not encrypted, and a key was given" in err
    assert not new.exists()
    assert not database.exists()


def test_an_unencrypted_catalog_is_refused_if_the_configuration_has_a_key(
    tmp_path: Path, image: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_with(config, capsys, "-q", "backup", image, "disk")[0] == 0
    forged = make_repository(tmp_path / "forged", encrypted=False)
    assert call_with(forged, capsys, "-q", "backup", image, "disk")[0] == 0
    lose_database(config)
    shutil.rmtree(data_of(config))
    shutil.copytree(data_of(forged), data_of(config))
    status, _, err = call_with(config, capsys, "recover")
    assert status == 20
    assert "someone may have replaced yours" in err



def test_new_keys_and_passphrases_open_the_catalog_immediately(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("backyfs.keys.slots.DEFAULT_COST", Cost(memory_kib=64, passes=1, lanes=1))
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse\n")
    passphrase.chmod(0o600)
    assert call("-q", "key", "add", "second", "--passphrase-file", passphrase)[0] == 0
    page = tmp_path / "page"
    assert call("-q", "key", "export", page)[0] == 0
    lose_database(config)
    for number, words in enumerate((["--passphrase-file", passphrase], ["--from-recovery", page])):
        new = tmp_path / f"new-{number}.cfg"
        database = tmp_path / f"db-{number}"
        assert call_with(new, capsys, "-q", "recover", data_of(config), "--to", database, *words)[0] == 0
        written = load_config(str(new), {})[0]
        assert (written.passphrase is not None) == (number == 0)
        assert written.key is None
    assert call_with(tmp_path / "new-0.cfg", capsys, "-m", "ls")[1] == backed_up


def test_a_removed_key_no_longer_opens_the_catalog(
    call: Callable[..., tuple[int, str, str]], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.key"
    other.write_text("5e" * 32)
    other.chmod(0o600)
    assert call("-q", "key", "add", "second", "--key-file", other)[0] == 0
    new = tmp_path / "new.cfg"
    words = ("-q", "recover", data_of(config), "--key-file", other, "--to", tmp_path / "db")
    assert call("-q", "key", "remove", "second")[0] == 0
    assert call_with(new, capsys, *words)[0] == 3


# Catalog


def test_an_unwritable_catalog_is_a_warning_and_not_a_failure(
    call: Callable[..., tuple[int, str, str]], config: Path, image: Path
) -> None:
    (config.parent / "data" / "catalog" / "versions").write_text("in the way")
    status, _, err = call("backup", image, "disk")
    assert status == 0
    assert "the copy of the metadata in the storage is out of date: " in err
    assert "; run `backyfs catalog push`" in err
    (config.parent / "data" / "catalog" / "versions").unlink()
    status, out, err = call("--json", "catalog", "push")
    assert (status, err, json.loads(out)) == (0, "", {"versions": 1, "pages": 1, "deleted": 0})
    assert call("catalog", "check") == (
        0, "The catalog has all 1 versions and 1 pages as the database has them; its index is number 2.\n", ""
    )  # fmt: skip


def test_an_unmounted_storage_gets_no_catalog(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str
) -> None:
    assert backed_up
    data = config.parent / "data"
    data.rename(config.parent / "elsewhere")
    data.mkdir()
    status, _, err = call("expire", "disk@latest", "2041-01-01")
    assert status == 6
    assert "this is not the storage of this repository: it has no marker" in err
    assert list(data.iterdir()) == []
    data.rmdir()
    (config.parent / "elsewhere").rename(data)
    assert call("catalog", "check")[0] == 0
    assert call("-m", "ls")[1] == backed_up


def test_differences_are_listed(call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str) -> None:
    assert backed_up
    version = next(path for path in objects(config) if path.parent.name == "versions")
    version.unlink()
    name = str(version.relative_to(config.parent / "data"))
    status, out, err = call("-m", "catalog", "check")
    assert (status, out) == (20, f"name|fact\n{name}|is missing\n")
    assert "`backyfs catalog push` writes what is known to be missing, and with --all everything" in err
    assert call("-q", "catalog", "push", "--all")[0] == 0
    assert call("catalog", "check")[0] == 0


def test_init_into_a_storage_with_a_catalog_says_how_to_recover_its_database(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = call_with(
        tmp_path / "new.cfg", capsys, "init", "--data", data_of(config), "--db", tmp_path / "new.sqlite"
    )
    assert status == 6
    assert f"holds a repository; `backyfs recover {data_of(config)}` rebuilds its database" in err


# Repositories of backy2


@pytest.mark.parametrize("name", ["v1-sqlite", "mixed-sqlite"])
def test_a_repository_of_backy2_can_be_recovered(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = Reference(name, tmp_path)
    config = reference.config_file
    assert call_with(config, capsys, "-q", "catalog", "push")[0] == 0
    check_recovered(reference, capsys)
    rekeyed = tmp_path / "new.key"
    rekeyed.write_text("5e" * 32)
    rekeyed.chmod(0o600)
    old = tmp_path / "old.key"
    old.write_text(key_digits(config))
    old.chmod(0o600)
    set_key(config, "5e" * 32)
    assert call_with(config, capsys, "-q", "rekey", "--old-key-file", old)[0] == 0
    check_recovered(reference, capsys)


def key_digits(config: Path) -> str:
    key = load_config(str(config), {})[0].key
    assert key is not None
    assert key.hex_digits is not None
    return key.hex_digits


def set_key(config: Path, digits: str) -> None:
    config.write_text(config.read_text().replace(key_digits(config), digits))


def check_recovered(reference: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    """Recover into the place of the existing database, and compare everything."""
    assert call_with(reference.config_file, capsys, "catalog", "check")[0] == 0
    for path in reference.directory.glob("backy.sqlite*"):
        path.unlink()
    status, out, err = call_with(reference.config_file, capsys, "-q", "recover")
    assert (status, err) == (0, ""), out
    with open_repository(reference.config) as repository:
        check(repository, reference.expected)


def test_a_lost_catalog_is_written_again(
    call: Callable[..., tuple[int, str, str]], config: Path, backed_up: str
) -> None:
    shutil.rmtree(config.parent / "data" / "catalog")
    assert call("catalog", "check")[0] == 6
    status, out, _ = call("--json", "catalog", "push", "--all")
    report: dict[str, Any] = json.loads(out)
    assert (status, report["versions"]) == (0, 2)
    lose_database(config)
    assert call("-q", "recover")[0] == 0
    assert call("-m", "ls")[1] == backed_up
