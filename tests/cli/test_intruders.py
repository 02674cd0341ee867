"""How commands react to an intruder who writes to the storage, the database or both, but has no key."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest
import zstandard
from blake3 import blake3

from backyfs.blocks import PieceLoader
from backyfs.cli.main import run
from backyfs.errors import IntegrityError
from backyfs.metadata.records.versions import list_versions
from tests.cli.test_identity import NO_FINGERPRINT_KEY, NO_SLOTS, NO_TAG, SLOT_AS_BLOB
from tests.support.images import random_image
from tests.support.repositories import BLOCK, change_database, configure, make_repository, opened
from tests.support.stored import blob_of
from tests.upgrade.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    Call = Callable[..., tuple[int, str]]

DAMAGE = 20
FORGED = b"E" * BLOCK
NOTHING_PROVES = "nothing proves that the database was written with the key of this repository"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return random_image(tmp_path / "image", 2 * BLOCK)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command on a configuration; return status and stderr."""

    def call(config: Path, *words: object) -> tuple[int, str]:
        capsys.readouterr()
        status = run(["-c", str(config), *map(str, words)])
        return status, capsys.readouterr().err

    return call


@pytest.fixture
def encrypted(tmp_path: Path, image: Path, call: Call) -> Path:
    """Make a repository that was encrypted from the start, with a backup of the image."""
    config = make_repository(tmp_path / "encrypted")
    assert call(config, "backup", image, "disk")[0] == 0
    return config


@pytest.fixture
def plain(tmp_path: Path, image: Path, call: Call) -> Path:
    """Make a repository without encryption, with a backup of the image."""
    config = make_repository(tmp_path / "plain", encrypted=False)
    assert call(config, "backup", image, "disk")[0] == 0
    return config


def make_plain(config: Path, fingerprint: bytes) -> None:
    """Make the database call all blocks plain, with this fingerprint."""
    change_database(
        config, f"UPDATE blobs SET encryption_version = 0, wrapped_key = NULL, fingerprint = x'{fingerprint.hex()}'"
    )


def blobs(config: Path) -> list[Path]:
    return sorted((config.parent / "data").rglob("*.blob"))


def forge_objects(config: Path) -> None:
    for file in blobs(config):
        file.write_bytes(FORGED)


def use_key(config: Path, key: Path | None = None) -> None:
    """Configure a key, a new one or that of another repository, for a repository that has none."""
    if key is None:
        key = config.with_name("later.key")
        key.write_text("ab" * 32)
        key.chmod(0o600)
    config.write_text(re.sub(r"(?m)^encryption_version:.*$", f"encryption_key_file: {key}", config.read_text()))


def later_encrypted(tmp_path: Path, image: Path, call: Call) -> Path:
    """Make a repository that was plain at first, so its fingerprints are not keyed, with an encrypted backup."""
    config = make_repository(tmp_path / "later", encrypted=False)
    use_key(config)
    assert call(config, "backup", image, "disk")[0] == 0
    return config


def warnings(config: Path) -> str:
    """Return the warnings in the log, which appear with -q, -m and --json too."""
    lines = config.with_name("backyfs.log").read_text().splitlines()
    return "\n".join(line for line in lines if " WARNING " in line)


# What intruders can read


def files(directory: Path) -> Iterable[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


def readable(path: Path) -> bytes:
    """Return everything anyone can read in a file: its bytes, and the contents of any zstd frame in them."""
    found = [content := path.read_bytes()]
    for frame in re.finditer(re.escape(zstandard.FRAME_HEADER), content):
        with suppress(zstandard.ZstdError):
            found.append(zstandard.ZstdDecompressor().decompressobj().decompress(content[frame.start() :]))
    return b"".join(found)


def parts(content: bytes) -> list[bytes]:
    return [content[at : at + 16] for at in range(0, len(content), 512)]


@pytest.mark.parametrize("version", [1, 2])
def test_neither_storage_nor_database_nor_log_contains_bytes_of_an_image(
    tmp_path: Path, call: Call, version: int
) -> None:
    image = random_image(tmp_path / "image", 2 * BLOCK)  # incompressible, so it would be found
    with image.open("ab") as file:
        file.write(b"secret in plain text" * 300)
    config = make_repository(tmp_path / "repository")
    configure(config, encryption_version=version)
    assert call(config, "backup", image, "disk")[0] == 0
    assert len(blobs(config)) == 4
    for path in files(config.parent):
        content = readable(path)
        assert not [part for part in parts(image.read_bytes()) if part in content], path
        assert b"secret in" not in content, path


def test_the_storage_learns_no_names(tmp_path: Path, image: Path, call: Call) -> None:
    config = make_repository(tmp_path / "repository")
    names = ("the-name-of-it", "the-snapshot-of-it", "the-tag-of-it")
    assert call(config, "backup", image, names[0], "-s", names[1], "-t", names[2])[0] == 0
    stored = b"".join(str(path).encode() + readable(path) for path in files(config.parent / "data"))
    assert {path.name for path in files(config.parent / "data" / "catalog")} > {"repository", "index", "marker"}
    assert not [name for name in names if name.encode() in stored]


@pytest.mark.parametrize("hash_name", ["blake3", *sorted(hashlib.algorithms_guaranteed - {"shake_128", "shake_256"})])
def test_the_database_contains_no_hash_of_a_known_block(encrypted: Path, image: Path, hash_name: str) -> None:
    block = image.read_bytes()[:BLOCK]
    digest = blake3(block).digest() if hash_name == "blake3" else hashlib.new(hash_name, block).digest()
    for path in files(encrypted.parent):
        assert digest not in path.read_bytes(), path


def test_a_repository_that_was_plain_at_first_has_hashes_that_reveal_known_blocks(
    tmp_path: Path, image: Path, call: Call
) -> None:
    config = later_encrypted(tmp_path, image, call)
    assert blake3(image.read_bytes()[:BLOCK]).digest() in (config.parent / "backyfs.sqlite").read_bytes()


def test_no_plain_object_is_left_after_a_migration_and_a_cleanup(plain: Path, image: Path, call: Call) -> None:
    use_key(plain)
    before = blobs(plain)
    assert call(plain, "migrate-encryption", "--all")[0] == 0
    assert set(before) < set(blobs(plain))
    assert call(plain, "cleanup", "--dangerous-force")[0] == 0
    assert len(blobs(plain)) == 2
    stored = b"".join(path.read_bytes() for path in files(plain.parent / "data"))
    assert not [part for part in parts(image.read_bytes()) if part in stored]


# What intruders can replace


@pytest.mark.parametrize(
    "fingerprint",
    [blake3(FORGED).digest(), blake3(FORGED, key=bytes(32)).digest(), hashlib.sha512(FORGED).digest(), b""],
    ids=["BLAKE3", "BLAKE3 with another key", "SHA-512", "empty"],
)
@pytest.mark.parametrize(
    "words",
    [
        "restore disk@latest", "restore --offset 5 --length 9 disk@latest", "scrub --all",
        "export --format backy2 disk@latest", "migrate-encryption --all",
    ],
)  # fmt: skip
def test_a_forged_plain_block_is_damage_if_fingerprints_are_keyed(
    encrypted: Path, call: Call, fingerprint: bytes, words: str
) -> None:
    forge_objects(encrypted)
    make_plain(encrypted, fingerprint)
    target = encrypted.with_name("target")
    assert call(encrypted, *words.split(), *([] if "--all" in words else [target]))[0] == DAMAGE
    assert not target.exists() or FORGED[:9] not in target.read_bytes()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_mount_gives_no_part_of_a_forged_plain_block(encrypted: Path, number: int) -> None:
    forge_objects(encrypted)
    make_plain(encrypted, [blake3(FORGED).digest(), hashlib.sha512(FORGED).digest(), b""][number])
    with opened(encrypted) as repository:
        with repository.database.read() as connection:
            blob = blob_of(repository, list_versions(connection)[0], 0)
        with pytest.raises(IntegrityError):
            PieceLoader(repository.blocks).load(blob, range(1))


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ((forge_objects,), DAMAGE),
        ((lambda config: make_plain(config, blake3(FORGED).digest()),), DAMAGE),
        ((lambda config: make_plain(config, hashlib.sha512(FORGED).digest()),), DAMAGE),
        ((forge_objects, lambda config: make_plain(config, blake3(FORGED).digest())), 0),
        ((forge_objects, lambda config: make_plain(config, hashlib.sha512(FORGED).digest())), 0),
    ],
    ids=["storage", "database, BLAKE3", "database, SHA-512", "both, BLAKE3", "both, SHA-512"],
)
def test_replacing_a_block_without_keyed_fingerprints_takes_storage_and_database(
    tmp_path: Path, image: Path, call: Call, what: tuple[Callable[[Path], None], ...], status: int
) -> None:
    """As documented, encryption does not prevent the last two there."""
    config = later_encrypted(tmp_path, image, call)
    for act in what:
        act(config)
    assert call(config, "restore", "disk@latest", tmp_path / "target")[0] == status
    restored = (tmp_path / "target").read_bytes()
    assert (FORGED in restored) == (status == 0)
    assert call(config, "scrub", "--all")[0] == status


# Whether encryption can be switched off


def test_recover_warns_of_an_unauthenticated_catalog(plain: Path, call: Call) -> None:
    (plain.parent / "backyfs.sqlite").unlink()
    status, said = call(plain, "recover")
    assert status == 0
    for text in (said, warnings(plain)):
        assert "is not encrypted: its catalog cannot be authenticated" in text


@pytest.mark.parametrize(
    "statements",
    [
        (NO_TAG, NO_FINGERPRINT_KEY),
        (NO_TAG, "UPDATE repository SET hash_function = 'sha512'"),
        (NO_TAG, NO_FINGERPRINT_KEY, SLOT_AS_BLOB, NO_SLOTS),
    ],
    ids=["no fingerprint key", "another hash function", "looks like backy2"],
)
@pytest.mark.parametrize("catalog", ["removed", "damaged", "of another repository"])
def test_without_tag_and_catalog_no_database_is_trusted_silently(
    encrypted: Path, tmp_path: Path, call: Call, statements: tuple[str, ...], catalog: str
) -> None:
    forge_objects(encrypted)
    make_plain(encrypted, blake3(FORGED).digest())
    change_database(encrypted, *statements)
    assert call(encrypted, "ls")[0] == DAMAGE  # the catalog shows it
    file = encrypted.parent / "data" / "catalog" / "repository"
    file.unlink()
    if catalog == "damaged":
        file.write_bytes(b"damaged")
    elif catalog == "of another repository":
        other = make_repository(tmp_path / "other")
        assert call(other, "ls")[0] == 0
        assert call(other, "backup", tmp_path / "image", "disk")[0] == 0
        shutil.copy(other.parent / "data" / "catalog" / "repository", file)
    assert NOTHING_PROVES in call(encrypted, "restore", "disk@latest", tmp_path / "target")[1]
    assert NOTHING_PROVES in warnings(encrypted)


def test_a_database_that_looks_like_backy2_is_not_trusted_silently_if_new_blocks_are_plain(
    encrypted: Path, call: Call
) -> None:
    """As documented: such a repository does not need the key, so a key that opens nothing is not an error."""
    change_database(encrypted, NO_TAG, NO_FINGERPRINT_KEY, NO_SLOTS)
    (encrypted.parent / "data" / "catalog" / "repository").unlink()
    configure(encrypted, encryption_version=0)
    assert call(encrypted, "ls")[0] == 0
    assert "does not open the encrypted blocks of this repository" in warnings(encrypted)


def test_an_unproven_database_gives_one_warning_where_that_is_normal(
    encrypted: Path, tmp_path: Path, call: Call
) -> None:
    assert NOTHING_PROVES not in warnings(encrypted)
    change_database(encrypted, NO_TAG)  # as from an older release, with its catalog
    assert NOTHING_PROVES not in call(encrypted, "ls")[1]
    adopted = Reference("v1-sqlite", tmp_path).config_file
    assert call(adopted, "upgrade")[0] == 0
    assert NOTHING_PROVES in call(adopted, "ls")[1]
    assert NOTHING_PROVES not in call(adopted, "ls")[1]
    for file in adopted.parent.rglob("catalog/repository"):
        file.unlink()
    assert NOTHING_PROVES not in call(adopted, "ls")[1]  # the database has its tag


def test_a_repository_that_was_never_encrypted_is_not_taken_for_another_one_silently(
    encrypted: Path, plain: Path, image: Path, call: Call, tmp_path: Path
) -> None:
    """Storage and database belong to an intruder; the configuration and its key are still ours."""
    (encrypted.parent / "backyfs.sqlite").unlink()
    shutil.copy(plain.parent / "backyfs.sqlite", encrypted.parent / "backyfs.sqlite")
    shutil.rmtree(encrypted.parent / "data")
    shutil.copytree(plain.parent / "data", encrypted.parent / "data")
    before = set(blobs(encrypted))
    status, said = call(encrypted, "restore", "disk@latest", tmp_path / "target")
    assert status == 0
    for text in (said, warnings(encrypted)):
        assert "this repository was not encrypted until now" in text
        assert "If it was encrypted before, somebody has changed its database and storage" in text
    image.write_bytes(os.urandom(3 * BLOCK))
    assert call(encrypted, "backup", image, "disk")[0] == 0
    new = b"".join(file.read_bytes() for file in set(blobs(encrypted)) - before)
    assert len(new) >= 3 * BLOCK
    assert not [part for part in parts(image.read_bytes()) if part in new]


def test_keys_of_another_repository_opened_by_the_same_key_are_useless(
    encrypted: Path, tmp_path: Path, call: Call
) -> None:
    """Slot and fingerprint key both come from the other repository, so they match each other."""
    other = tmp_path / "other" / "backyfs.cfg"
    other.parent.mkdir()
    other.write_text(encrypted.read_text().replace(f"{encrypted.parent}/", f"{other.parent}/"))
    shutil.copy(encrypted.with_suffix(".key"), other.with_suffix(".key"))
    assert call(other, "initdb")[0] == 0
    with closing(sqlite3.connect(other.parent / "backyfs.sqlite")) as connection:
        [(slot,)] = connection.execute("SELECT wrapped_key FROM key_slots")
        [(fingerprint_key,)] = connection.execute("SELECT wrapped_fingerprint_key FROM repository")
    change_database(
        encrypted,
        f"UPDATE key_slots SET wrapped_key = x'{slot.hex()}'",
        f"UPDATE repository SET wrapped_fingerprint_key = x'{fingerprint_key.hex()}'",
    )
    status, said = call(encrypted, "ls")
    assert status == DAMAGE
    assert "than the ones written with its key" in said
