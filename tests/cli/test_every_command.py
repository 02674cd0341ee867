"""Every command prints JSON that matches its schema, and one line for each failure, wherever it happens."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import click
import jsonschema
import pytest

from backyfs.cli.main import cli, run
from backyfs.metadata.db.database import Database
from backyfs.metadata.records.versions import list_versions
from tests.cli.cases import CASES, copy_place, filled_in, make_place, words_of
from tests.support.forkserver import ForkServer
from tests.support.program import BACKYFS
from tests.support.repositories import opened

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference"
SCHEMA = json.loads((DOCS / "output.schema.json").read_text(encoding="utf-8"))
UNKNOWN = "12345678"


IN_REPOSITORY = [case for case in CASES if case.uses_storage and case.name != "upgrade"]
WITH_VERSION = [case for case in CASES if "{}" in case.words]


def by_words(case):
    return case.words


@pytest.fixture(scope="module")
def made_place(tmp_path_factory):
    """Make a repository with a version and everything else the commands need."""
    directory = tmp_path_factory.mktemp("place")
    make_place(directory)
    return directory


@pytest.fixture
def place(made_place, tmp_path):
    """Copy it, because commands change it."""
    copy_place(made_place, tmp_path)
    yield tmp_path
    for command, directory in (("detach", "attached"), ("umount", "mount")):
        if (tmp_path / directory).exists() and any((tmp_path / directory).iterdir()):
            subprocess.run([BACKYFS, "-q", command, str(tmp_path / directory)], capture_output=True, check=False)


@pytest.fixture
def call(tmp_path, capfd):
    """Run a command on the repository of `place`, if the test has it; return status, stdout and stderr."""

    def call(*words, config="repository/backyfs.cfg"):
        arguments = ["-c", str(tmp_path / config), *words]
        if {"mount", "attach"} & {*words}:  # they leave a process behind that this process cannot wait for
            status = subprocess.run([BACKYFS, *arguments], check=False).returncode
        else:
            status = run(arguments)
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def prepare(call, place):
    """Run the commands that a case depends on."""

    def prepare(case):
        for words in case.after:
            status, _, err = call("-q", *filled_in(words, place))
            assert (status, err) == (0, "")

    return prepare


def expect_one_line(err, status):
    """Fail unless an error is one line that begins as errors do."""
    assert err.startswith("backyfs: error: "), err
    assert err.count("\n") == 1, err
    assert "unexpected" not in err
    assert status not in {0, 100}


def test_every_command_has_a_case():
    assert {case.name for case in CASES} == set(cli.list_commands(click.Context(cli)))


@pytest.mark.root
def test_all_commands_work_in_sequence_and_print_json_that_matches_the_schema(call, place):
    version = call("-m", "-s", "ls", "-f", "uid")[1].strip()
    outputs = {}
    for case in CASES:
        status, out, err = call("--json", *words_of(case, place, version), config=case.config)
        assert status == 0, (case.words, err)
        outputs[case.words] = (case, out)
    for case, out in outputs.values():
        if case.schema == "":
            continue
        schema = {"$ref": f"#/$defs/{case.name if case.schema is None else case.schema}", **SCHEMA}
        jsonschema.validate(
            json.loads(out), schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )


@pytest.mark.parametrize("case", WITH_VERSION, ids=by_words)
def test_an_unknown_version(call, place, case):
    status, out, err = call("-m", *words_of(case, place, UNKNOWN))
    assert (status, out) == (4, "")
    expect_one_line(err, status)
    assert UNKNOWN in err


@pytest.mark.parametrize("case", IN_REPOSITORY, ids=by_words)
def test_the_wrong_key(call, place, prepare, case):
    prepare(case)
    (place / "repository" / "backyfs.key").write_text("ab" * 32)
    status, _, err = call("-m", *words_of(case, place))
    assert status == 3
    expect_one_line(err, status)


@pytest.mark.parametrize("case", IN_REPOSITORY, ids=by_words)
def test_a_missing_storage(call, place, prepare, case):
    prepare(case)
    (place / "repository" / "data").rename(place / "elsewhere")
    status, _, err = call("-m", *words_of(case, place))
    assert status == 6
    expect_one_line(err, status)


@pytest.mark.parametrize("case", IN_REPOSITORY, ids=by_words)
def test_a_storage_that_is_an_empty_directory(call, place, prepare, case):
    prepare(case)
    data = place / "repository" / "data"
    data.rename(place / "elsewhere")
    data.mkdir()
    status, _, err = call("-m", *words_of(case, place))
    assert status == 6
    expect_one_line(err, status)
    assert "this is not the storage of this repository" in err
    assert list(data.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("case", [case for case in IN_REPOSITORY if not case.mounts], ids=by_words)
def test_a_read_only_file_system(place, prepare, case):
    prepare(case)
    repository = place / "repository"
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    command = [BACKYFS, "-c", str(repository / "backyfs.cfg"), "-q", *words_of(case, place)]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(repository), *command], capture_output=True, text=True, check=False
    )
    if case.writes:
        expect_one_line(done.stderr, done.returncode)
        assert "read-only" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def server_without_reader():
    """Run commands whose stdout is a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with ForkServer(stdout=writer) as server:
            yield server
    finally:
        os.close(writer)


@pytest.mark.parametrize("case", [case for case in CASES if not case.needs_root], ids=by_words)
@pytest.mark.parametrize("form", [[], ["-m"], ["--json"]], ids=["table", "-m", "--json"])
def test_a_reader_that_stops_early(server_without_reader, place, prepare, case, form):
    prepare(case)
    err = place / "err"
    words = ["-c", str(place / case.config), *form, *words_of(case, place)]
    status = server_without_reader.run(words, err=err)
    printed = err.read_text()
    assert status == 0, printed
    assert "Traceback" not in printed
    assert "error" not in printed
    if case.name == "backup":  # it completes its work
        with opened(place / "repository" / "backyfs.cfg") as repository, repository.database.read() as connection:
            assert [version.status.value for version in list_versions(connection)] == ["valid", "valid"]


# A mount continues in a separate process, where nothing is patched: see tests/mount.
@pytest.mark.parametrize("case", [case for case in CASES if case.uses_storage and not case.mounts], ids=by_words)
def test_ctrl_c(call, place, prepare, case, monkeypatch):
    prepare(case)

    def interrupt(_database):
        raise KeyboardInterrupt

    monkeypatch.setattr(Database, "check_revision", interrupt)
    monkeypatch.setattr(Database, "schema", interrupt)
    status, out, err = call("-m", *words_of(case, place))
    assert (status, out, err) == (130, "", "backyfs: error: interrupted\n")


@pytest.mark.parametrize("case", CASES, ids=by_words)
def test_an_unknown_option_is_reported_in_one_line(call, case):
    name = case.words.split()[: 2 if case.name in {"catalog", "db", "key"} else 1]
    status, out, err = call(*name, "--no-such-option")
    assert (status, out) == (1, "")
    expect_one_line(err, status)
    assert "--no-such-option" in err
    assert f"`backyfs {' '.join(name)} --help`" in err


def test_an_unknown_command_is_reported_in_one_line(call):
    status, out, err = call("no-such-command")
    assert (status, out) == (1, "")
    expect_one_line(err, status)
    assert "'no-such-command'" in err

