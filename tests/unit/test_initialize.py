"""Creation of a repository: everything is in its place, nothing is overwritten, and the key is checked."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from backyfs.config import load_config
from backyfs.engine.restore.restore import restore
from backyfs.engine.setup import initialize as module
from backyfs.engine.setup.initialize import initialize
from backyfs.engine.setup.places import Places, default_places
from backyfs.errors import (
    ConfigError,
    DatabaseError,
    MissingKeyError,
    SchemaError,
    StorageError,
    UsageError,
    WrongKeyError,
)
from backyfs.metadata.maps.usage import encryption_versions
from backyfs.metadata.schema import schema
from backyfs.repository import create_repository, open_repository
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up, configure, make_repository, opened


@pytest.fixture
def places(tmp_path):
    return Places(
        config_file=str(tmp_path / "etc" / "backyfs.cfg"),
        key_file=str(tmp_path / "etc" / "backyfs.key"),
        storage=str(tmp_path / "lib" / "data"),
        database=str(tmp_path / "lib" / "backyfs.sqlite"),
        logfile=str(tmp_path / "log" / "backyfs.log"),
    )


def stored_by(repository, image):
    """Back up an image; return the encryption versions of its blobs."""
    version = back_up(repository, image).version
    with repository.database.read() as connection:
        return encryption_versions(connection, version)


def everything_below(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_a_new_repository_has_its_four_parts_and_nothing_else(places, tmp_path):
    report = initialize(places, block_size=BLOCK, encrypted=True)
    assert everything_below(tmp_path) == [
        "etc/backyfs.cfg", "etc/backyfs.key", "lib/backyfs.sqlite", "lib/backyfs.sqlite-reserve",
        "lib/data/catalog/index", "lib/data/catalog/marker", "lib/data/catalog/repository",
    ]  # fmt: skip
    assert os.path.isdir(places.storage)
    assert report.block_size == BLOCK
    assert report.key_check is not None


@pytest.mark.parametrize("place", ["config_file", "key_file", "database"])
def test_files_can_be_read_only_by_their_owner(places, place):
    initialize(places, block_size=BLOCK, encrypted=True)
    assert stat.S_IMODE(os.stat(getattr(places, place)).st_mode) == 0o600


def test_the_storage_can_be_entered_only_by_its_owner(places):
    initialize(places, block_size=BLOCK, encrypted=True)
    assert stat.S_IMODE(os.stat(places.storage).st_mode) == 0o700


def test_the_key_is_64_random_hexadecimal_digits(places):
    initialize(places, block_size=BLOCK, encrypted=True)
    with open(places.key_file, encoding="ascii") as file:
        digits = file.read().strip()
    assert len(bytes.fromhex(digits)) == 32
    assert len(digits) == 64
    assert len(set(digits)) > 4


def test_without_encryption_there_is_no_key(places):
    assert initialize(places, block_size=BLOCK, encrypted=False).key_check is None
    assert not os.path.exists(places.key_file)


@pytest.mark.parametrize("place", ["config_file", "key_file"])
def test_an_existing_file_is_not_touched_and_nothing_else_is_created(places, tmp_path, place):
    path = getattr(places, place)
    os.makedirs(os.path.dirname(path))
    with open(path, "w", encoding="ascii") as file:
        file.write("mine")
    with pytest.raises(UsageError, match=r"exists already and was not changed"):
        initialize(places, block_size=BLOCK, encrypted=True)
    with open(path, encoding="ascii") as file:
        assert file.read() == "mine"
    assert len(everything_below(tmp_path)) == 1


def test_an_existing_database_is_not_touched(places):
    initialize(places, block_size=BLOCK, encrypted=True)
    with open(places.database, "rb") as file:
        before = file.read()
    other = replace(
        places,
        config_file=places.config_file + "2",
        key_file=places.key_file + "2",
        storage=places.storage + "2",
    )
    with pytest.raises(SchemaError, match="already contains tables; name an empty database"):
        initialize(other, block_size=BLOCK, encrypted=True)
    with open(places.database, "rb") as file:
        assert file.read() == before
    assert not os.path.exists(other.config_file)
    assert not os.path.exists(other.key_file)
    assert not os.path.exists(other.storage)


def test_a_storage_that_is_not_empty_is_not_used(places, tmp_path):
    os.makedirs(places.storage)
    with open(f"{places.storage}/precious", "w", encoding="ascii"):
        pass
    with pytest.raises(StorageError, match="is not empty: it holds precious; name another one"):
        initialize(places, block_size=BLOCK, encrypted=True)
    assert everything_below(tmp_path) == ["lib/data/precious"]


def test_a_file_in_the_place_of_the_storage_is_not_touched(places, tmp_path):
    os.makedirs(os.path.dirname(places.storage))
    with open(places.storage, "w", encoding="ascii") as file:
        file.write("mine")
    with pytest.raises(StorageError, match=places.storage):
        initialize(places, block_size=BLOCK, encrypted=True)
    assert everything_below(tmp_path) == ["lib/data"]


def test_a_file_that_is_not_a_database_is_not_touched(places, tmp_path):
    os.makedirs(os.path.dirname(places.database))
    with open(places.database, "w", encoding="ascii") as file:
        file.write("my letters " * 1000)
    with pytest.raises(DatabaseError, match="file is not a database"):
        initialize(places, block_size=BLOCK, encrypted=True)
    assert everything_below(tmp_path) == ["lib/backyfs.sqlite"]
    assert not os.path.exists(places.storage)
    assert os.path.getsize(places.database) == 11_000


@pytest.mark.parametrize("block_size", [0, 1000, 256 << 20])
def test_an_impossible_block_size_is_refused_before_anything_is_created(places, tmp_path, block_size):
    with pytest.raises(ConfigError, match="block_size"):
        initialize(places, block_size=block_size, encrypted=True)
    assert everything_below(tmp_path) == []


def test_a_failure_leaves_neither_key_nor_configuration(places, monkeypatch):
    def fail(*_arguments, **_options):
        raise StorageError("the disk is full")

    monkeypatch.setattr(module, "create_repository", fail)
    with pytest.raises(StorageError, match="the disk is full"):
        initialize(places, block_size=BLOCK, encrypted=True)
    assert os.listdir(os.path.dirname(places.config_file)) == []


def test_a_signal_leaves_neither_key_nor_configuration(places, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "create_repository", interrupt)
    with pytest.raises(KeyboardInterrupt):
        initialize(places, block_size=BLOCK, encrypted=True)
    assert os.listdir(os.path.dirname(places.config_file)) == []


def test_a_failure_in_the_database_leaves_nothing(places, tmp_path, monkeypatch):
    def fail(*_arguments):
        raise DatabaseError("the disk is full")

    monkeypatch.setattr(schema, "create_tables", fail)
    with pytest.raises(DatabaseError, match="the disk is full"):
        initialize(places, block_size=BLOCK, encrypted=True)
    assert everything_below(tmp_path) == []
    assert not os.path.exists(places.storage)


def test_a_failure_keeps_an_existing_empty_directory(places, monkeypatch):
    def fail(*_arguments):
        raise DatabaseError("the disk is full")

    os.makedirs(places.storage)
    monkeypatch.setattr(schema, "create_tables", fail)
    with pytest.raises(DatabaseError):
        initialize(places, block_size=BLOCK, encrypted=True)
    assert os.path.isdir(places.storage)


def test_the_same_places_can_be_used_after_a_failure(places, monkeypatch):
    def fail(*_arguments):
        raise DatabaseError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "create_tables", fail)
        with pytest.raises(DatabaseError):
            initialize(places, block_size=BLOCK, encrypted=True)
    assert initialize(places, block_size=BLOCK, encrypted=True).places == places


def test_the_error_for_an_unusable_place_names_it(places):
    places = replace(places, config_file="/proc/backyfs/backyfs.cfg")
    with pytest.raises(UsageError, match=r"/proc/backyfs: .*; name another place or become root"):
        initialize(places, block_size=BLOCK, encrypted=True)


def test_the_configuration_opens_the_repository_with_its_block_size(places):
    initialize(places, block_size=8192, encrypted=True)
    config, warnings = load_config(places.config_file, {})
    assert (config.block_size, warnings) == (8192, ())
    with open_repository(config) as repository:
        assert repository.block_size == 8192
        assert repository.blocks.encryption_version == 2


@pytest.mark.parametrize("hash_function", ["blake3", "sha512"])
def test_new_blobs_have_version_2_by_default(tmp_path, hash_function):
    text = make_repository(tmp_path / "written").read_text()
    file = tmp_path / "written" / "mine.cfg"
    file.write_text(
        re.sub(r"(?m)^encryption_version: .*", f"hash_function: {hash_function}", text)
        .replace("backyfs.sqlite", "mine.sqlite")
        .replace("/data", "/mine")
    )
    create_repository(load_config(str(file), {})[0], created_at=datetime.now(UTC))
    with opened(file) as repository:
        assert repository.blocks.encryption_version == 2
        assert stored_by(repository, random_image(tmp_path / "image", BLOCK)) == [2]


def test_a_repository_uses_the_configured_encryption_version(tmp_path):
    file = make_repository(tmp_path / "repository")
    file.write_text(file.read_text().replace("encryption_version: 2", "encryption_version: 1"))
    with opened(file) as repository:
        assert repository.blocks.encryption_version == 1
        assert stored_by(repository, random_image(tmp_path / "image", BLOCK)) == [1]


def test_a_plain_repository_stores_blocks_unchanged(tmp_path):
    with opened(make_repository(tmp_path / "repository", encrypted=False)) as repository:
        image = random_image(tmp_path / "image", BLOCK)
        back_up(repository, image)
        [stored] = (tmp_path / "repository" / "data").rglob("*.blob")
        assert stored.read_bytes() == image.read_bytes()


def test_the_repository_of_root_goes_to_the_system_directories():
    assert default_places({}, as_root=True) == Places(
        config_file="/etc/backyfs/backyfs.cfg",
        key_file="/etc/backyfs/backyfs.key",
        storage="/var/lib/backyfs/data",
        database="/var/lib/backyfs/backyfs.sqlite",
        logfile="/var/log/backyfs.log",
    )


def test_the_repository_of_a_user_goes_to_the_xdg_directories():
    environ = {"HOME": "/home/ada", "XDG_DATA_HOME": "/data/ada"}
    assert default_places(environ, as_root=False) == Places(
        config_file="/home/ada/.config/backyfs/backyfs.cfg",
        key_file="/home/ada/.config/backyfs/backyfs.key",
        storage="/data/ada/backyfs/data",
        database="/data/ada/backyfs/backyfs.sqlite",
        logfile="/home/ada/.local/state/backyfs/backyfs.log",
    )


def test_a_user_can_move_configuration_data_and_log_with_xdg_variables():
    environ = {"HOME": "/h", "XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "/d", "XDG_STATE_HOME": "/s"}
    places = default_places(environ, as_root=False)
    assert (places.config_file, places.key_file) == ("/c/backyfs/backyfs.cfg", "/c/backyfs/backyfs.key")
    assert (places.storage, places.logfile) == ("/d/backyfs/data", "/s/backyfs/backyfs.log")


@pytest.mark.parametrize("home", [None, "", "ada"])
def test_the_error_for_a_user_without_a_home_directory_says_what_to_set(home):
    environ = {} if home is None else {"HOME": home}
    with pytest.raises(UsageError, match=r"HOME is not set; .*, or set XDG_CONFIG_HOME"):
        default_places(environ, as_root=False)


def test_without_a_home_directory_everything_goes_beside_the_named_configuration():
    assert default_places({}, as_root=False, config_file="/srv/b/one.cfg") == Places(
        config_file="/srv/b/one.cfg",
        key_file="/srv/b/one.key",
        storage="/srv/b/data",
        database="/srv/b/backyfs.sqlite",
        logfile="/srv/b/backyfs.log",
    )


def test_an_xdg_variable_that_is_not_absolute_is_ignored():
    environ = {"HOME": "/home/ada", "XDG_DATA_HOME": "data"}
    assert default_places(environ, as_root=False).storage == "/home/ada/.local/share/backyfs/data"


def test_the_xdg_variables_do_not_move_the_repository_of_root():
    assert default_places({"XDG_DATA_HOME": "/d"}, as_root=True).storage == "/var/lib/backyfs/data"


def test_key_and_log_are_beside_a_named_configuration():
    places = default_places({}, as_root=True, config_file="/srv/b/one.cfg")
    assert (places.key_file, places.logfile) == ("/srv/b/one.key", "/srv/b/backyfs.log")


@pytest.mark.parametrize(
    ("key", "value", "created_with"), [("block_size", "8192", "4096"), ("hash_function", "sha512", "blake3")]
)
def test_a_configuration_is_refused_with_another(tmp_path, key, value, created_with):
    file = make_repository(tmp_path)
    configure(file, **{key: value})
    with pytest.raises(ConfigError, match=f"{key}: is {value}, but this repository was created with {created_with}"):
        open_once(file)


def open_once(file):
    config, _ = load_config(str(file), {})
    with open_repository(config):
        pass


def test_the_wrong_key_is_refused_and_both_check_values_are_shown(tmp_path):
    file = make_repository(tmp_path)
    key_file = tmp_path / "backyfs.key"
    right = key_file.read_text().strip()
    key_file.write_text("ab" * 32)
    with pytest.raises(WrongKeyError) as caught:
        open_once(file)
    message = str(caught.value)
    assert "the configured key" in message
    assert "is not the key of this repository" in message
    assert right[:8] not in message
    assert "abababab" not in message


def test_the_error_for_a_missing_key_names_the_expected_one(tmp_path):
    file = make_repository(tmp_path)
    lines = [line for line in file.read_text().splitlines() if not line.startswith("encryption_")]
    file.write_text("\n".join(lines))
    with pytest.raises(MissingKeyError, match=r"encrypted with key [0-9a-f-]{19} and the configuration has none"):
        open_once(file)


def test_encryption_can_be_switched_on_for_a_plain_repository(tmp_path):
    file = make_repository(tmp_path / "repository", encrypted=False)
    first, second = (random_image(tmp_path / f"image{seed}", 2 * BLOCK, seed) for seed in (1, 2))
    with opened(file) as repository:
        back_up(repository, first)
    (tmp_path / "repository" / "key").write_text("cd" * 32)
    (tmp_path / "repository" / "key").chmod(0o600)
    text = file.read_text().replace("encryption_version: 0", "encryption_key_file: key")
    file.write_text(text)
    with opened(file) as repository:
        assert repository.blocks.encryption_version == 2
        report = back_up(repository, second)
        assert report.statistics.blocks_written == 2
    with opened(file) as repository:
        assert back_up(repository, first).statistics.blocks_deduplicated == 2
    (tmp_path / "repository" / "key").write_text("ef" * 32)
    with pytest.raises(WrongKeyError):
        open_once(file)


@pytest.mark.parametrize("server", ["postgresql_server", "mariadb_server"])
def test_a_repository_can_be_created_in_an_empty_database_on_a_server(places, tmp_path, request, server):
    running = request.getfixturevalue(server)
    url = running.new_database()
    made = replace(places, database=url)
    initialize(made, block_size=BLOCK, encrypted=True)
    image = random_image(tmp_path / "image", 3 * BLOCK)
    with opened(made.config_file) as repository:
        version = back_up(repository, image).version
        restore(repository, version, str(tmp_path / "restored"))
    assert (tmp_path / "restored").read_bytes() == image.read_bytes()
    other = replace(made, config_file=str(tmp_path / "other.cfg"), storage=str(tmp_path / "other"))
    with pytest.raises(SchemaError, match="already contains tables; name an empty database"):
        initialize(other, block_size=BLOCK, encrypted=False)
    assert not (tmp_path / "other.cfg").exists()
    assert not (tmp_path / "other").exists()
    running.drop(url)


def test_an_unreachable_database_leaves_nothing_and_shows_no_password(places, tmp_path):
    made = replace(places, database="postgresql://ada:secret@127.0.0.1:1/name")
    with pytest.raises(DatabaseError) as caught:
        initialize(made, block_size=BLOCK, encrypted=True)
    assert "secret" not in str(caught.value)
    assert everything_below(tmp_path) == []
