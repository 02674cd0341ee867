"""Without the right key, every command ends before it does anything and says which key is expected."""

from __future__ import annotations

import re
import sqlite3

import pytest

from backyfs.cli.main import run
from backyfs.engine.restore.restore import restore
from tests.support.images import random_bytes, random_image
from tests.support.repositories import BLOCK, back_up, make_repository, opened

pytestmark = pytest.mark.slow

CHECK_VALUE = r"(?:[0-9a-f]{4}-){3}[0-9a-f]{4}"
COMMANDS = {
    "ls": ["ls"],
    "backup": ["backup", "{directory}/image", "disk"],
    "restore": ["restore", "disk@latest", "{directory}/target"],
    "mount": ["mount", "--foreground", "{directory}/mountpoint"],
}


@pytest.fixture
def repository_directory(tmp_path):
    """Make a repository with a version and everything else the commands need."""
    (tmp_path / "mountpoint").mkdir()
    config_file = make_repository(tmp_path / "repository")
    with opened(config_file) as repository:
        back_up(repository, random_image(tmp_path / "image", 2 * BLOCK))
    return config_file.parent


def state(directory):
    """Return everything that a command could change: rows, objects, target."""
    connection = sqlite3.connect(directory / "backyfs.sqlite")
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    rows = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    connection.close()
    return rows, sorted((directory / "data").rglob("*")), (directory.parent / "target").exists()


def call(directory, words, capsys):
    """Run a command; return its status and its line on stderr."""
    before = state(directory)
    arguments = [word.format(directory=directory.parent) for word in words]
    status = run(["-c", str(directory / "backyfs.cfg"), *arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert state(directory) == before
    [line] = captured.err.splitlines()
    return status, line


def change_configuration(directory, pattern, new):
    file = directory / "backyfs.cfg"
    text, changes = re.subn(pattern, new, file.read_text(), flags=re.MULTILINE)
    assert changes
    file.write_text(text)


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_wrong_key_ends_a_command_before_it_does_anything(repository_directory, capsys, words):
    (repository_directory / "backyfs.key").write_text("ab" * 32)
    status, line = call(repository_directory, words, capsys)
    assert status == 3
    assert re.fullmatch(
        rf"backyfs: error: the configured key {CHECK_VALUE} is not the key of this repository, which is "
        rf"{CHECK_VALUE}; configure that one \(encryption_key_file, encryption_key_command or encryption_key\)",
        line,
    )


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_configuration_without_a_key_ends_a_command_before_it_does_anything(repository_directory, capsys, words):
    change_configuration(repository_directory, r"^encryption_\w+:.*\n", "")
    status, line = call(repository_directory, words, capsys)
    assert status == 3
    assert re.fullmatch(
        rf"backyfs: error: this repository is encrypted with key {CHECK_VALUE} and the configuration has none; "
        "set encryption_key_file, encryption_key_command or encryption_key",
        line,
    )


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_missing_key_file_ends_a_command_before_it_does_anything(repository_directory, capsys, words):
    key_file = repository_directory / "backyfs.key"
    key_file.unlink()
    status, line = call(repository_directory, words, capsys)
    assert status == 3
    assert line == f"backyfs: error: key file {key_file} cannot be read: No such file or directory"


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_an_unreadable_key_file_ends_a_command_before_it_does_anything(repository_directory, capsys, words):
    key_file = repository_directory / "backyfs.key"
    key_file.unlink()
    key_file.mkdir()
    status, line = call(repository_directory, words, capsys)
    assert status == 3
    assert line == f"backyfs: error: key file {key_file} cannot be read: Is a directory"


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_half_a_key_ends_a_command_before_it_does_anything(repository_directory, capsys, words):
    key_file = repository_directory / "backyfs.key"
    digits = key_file.read_text().strip()
    key_file.write_text(digits[:32])
    status, line = call(repository_directory, words, capsys)
    assert status == 3
    assert line == (
        f"backyfs: error: key file {key_file} holds no key: 32 characters, needed are 64 hexadecimal digits"
    )


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_failing_key_command_ends_a_command_before_it_does_anything(repository_directory, capsys, words):
    change_configuration(repository_directory, r"^encryption_key_file:.*$", "encryption_key_command: exit 7")
    status, line = call(repository_directory, words, capsys)
    assert status == 3
    assert line == (
        "backyfs: error: encryption_key_command ended with status 7; run it by hand to see why"
    )


def test_the_expected_check_value_is_the_one_shown_by_init(tmp_path, capsys):
    config_file, data, database = tmp_path / "backyfs.cfg", tmp_path / "data", tmp_path / "backyfs.sqlite"
    assert run(["init", "-c", str(config_file), "--data", str(data), "--db", str(database)]) == 0
    shown = re.search(rf"\(({CHECK_VALUE})\)", capsys.readouterr().out)
    assert shown is not None
    (tmp_path / "backyfs.key").write_text("ab" * 32)
    assert run(["-c", str(config_file), "ls"]) == 3
    assert f"which is {shown[1]};" in capsys.readouterr().err


@pytest.mark.parametrize("form", [r"encryption_key: {digits}", r"encryption_key_command: echo {digits}"])
def test_the_right_key_opens_the_repository_from_any_source(repository_directory, tmp_path, form):
    key_file = repository_directory / "backyfs.key"
    digits = key_file.read_text().strip()
    key_file.unlink()
    change_configuration(repository_directory, r"^encryption_key_file:.*$", form.format(digits=digits))
    config_file = str(repository_directory / "backyfs.cfg")
    assert run(["-c", config_file, "restore", "disk@latest", str(tmp_path / "target")]) == 0
    assert (tmp_path / "target").read_bytes() == random_bytes(2 * BLOCK)


def test_a_restored_key_opens_everything_again(repository_directory, tmp_path, capsys):
    key_file = repository_directory / "backyfs.key"
    digits = key_file.read_text()
    key_file.write_text("ab" * 32)
    call(repository_directory, COMMANDS["backup"], capsys)
    key_file.write_text(digits)
    with opened(repository_directory / "backyfs.cfg") as repository:
        again = back_up(repository, tmp_path / "image")
        assert again.statistics.blocks_deduplicated == 2
        assert restore(repository, again.version, str(tmp_path / "target")).damaged == ()
