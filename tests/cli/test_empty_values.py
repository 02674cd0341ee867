"""Empty values from scripts: `backup -e "$EXPIRE" ...` with an empty variable works as in backy2."""

from __future__ import annotations

import click
import pytest

from backyfs.cli.main import cli, run
from backyfs.metadata.records.versions import list_versions
from tests.support.images import random_image
from tests.support.repositories import BLOCK, opened

SCHEDULERS = "\n[daily]\ninterval: 1d\nkeep: 3\nsla: 3h\n"

# By command: every option of backy2 that has a value, our options that mean the same, and how many arguments the
# command needs.
OPTIONS = {
    "backup": ("-s --snapshot-name -r --rbd --hints -f --from-version -c --continue-version -t --tag -e --expire", 2),
    "restore": ("-c --continue-from", 2),
    "scrub": ("-s --source -p --percentile", 1),
    "cleanup": ("-p --prefix", 0),
    "ls": ("-s --snapshot-name -t --tag -f --fields", 0),
    "stats": ("-f --fields -l --limit", 0),
    "du": ("-f --fields", 0),
    "due": ("-s --schedulers -f --fields", 0),
    "sla": ("-s --schedulers -f --fields", 0),
    "forget": ("-s --schedulers -f --fields", 0),
    "jobs": ("-f --fields", 0),
    "mount": ("--version --name --tag", 1),
    "init": ("-c --configfile --data --db", 0),  # an empty path would be the current directory
}
GIVEN = [(name, option, count) for name, (options, count) in OPTIONS.items() for option in options.split()]
# A blank is a valid name of a snapshot, but not a valid prefix.
KEEPS_BLANKS = {("backup", "-s"), ("backup", "--snapshot-name"), ("ls", "-s"), ("ls", "--snapshot-name"),
                ("cleanup", "-p"), ("cleanup", "--prefix")}  # fmt: skip


@pytest.fixture
def config(config):
    config.write_text(config.read_text() + SCHEDULERS)
    return config


@pytest.fixture
def image(tmp_path):
    return random_image(tmp_path / "image", 2 * BLOCK)


@pytest.fixture
def version(call, config, image):
    assert call("backup", image, "disk", "-t", "daily")[0] == 0
    with opened(config) as repository, repository.database.read() as connection:
        [version] = list_versions(connection)
    return version


def parsed(name, words):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command.make_context(name, list(words)).params


@pytest.mark.parametrize(
    ("name", "option", "count", "value"),
    [(*given, "") for given in GIVEN] + [(*given, " ") for given in GIVEN if given[:2] not in KEEPS_BLANKS],
)
def test_an_empty_value_is_the_same_as_none(name, option, count, value):
    arguments = ["x"] * count
    without = parsed(name, arguments)
    given = parsed(name, [option, value, *arguments])
    assert {key: given[key] or None for key in given} == {key: without[key] or None for key in without}


def test_a_backup_with_empty_values_is_the_same_as_without_them(call, config, image):
    status, _, err = call(
        "backup", image, "disk", "-s", "", "-r", "", "-f", "", "-c", "", "-t", "", "-e", ""
    )  # fmt: skip
    assert (status, err) == (0, "")
    with opened(config) as repository, repository.database.read() as connection:
        [version] = list_versions(connection)
    assert version.tags == ("b_daily", "b_monthly", "b_weekly")
    assert (version.expire_at, version.snapshot_name) == (None, "")


@pytest.mark.parametrize(
    ("empty", "without"),
    [
        (["ls", "", "-s", "", "-t", "", "-f", ""], ["ls"]),
        (["stats", "", "-f", "", "-l", ""], ["stats"]),
        (["du", "", "-f", ""], ["du"]),
        (["due", "", "-s", "", "-f", ""], ["due"]),
        (["sla", "", "-s", "", "-f", ""], ["sla"]),
        (["forget", "-n", "-s", "", "-f", ""], ["forget", "-n"]),
        (["jobs", "-f", ""], ["jobs"]),
        (["cleanup", "-p", "", "-n"], ["cleanup", "-n"]),
    ],
)
def test_empty_values_do_not_change_the_output_of_a_command(call, version, empty, without):
    expected = call("-m", *without)
    assert expected[0] == 0
    assert call("-m", *empty) == expected


def test_a_scrub_with_empty_values_checks_everything(call, version):
    status, out, err = call("scrub", "-s", "", "-p", "", version.uid)
    assert (status, err) == (0, "")
    assert out.startswith("2 blobs checked, ")


def test_a_restore_with_an_empty_block_makes_a_new_file(call, version, image, tmp_path):
    assert call("restore", "-c", "", version.uid, tmp_path / "out")[0] == 0
    assert (tmp_path / "out").read_bytes() == image.read_bytes()
    assert call("restore", "-c", "", version.uid, tmp_path / "out")[0] == 8  # it exists


@pytest.mark.parametrize("command", ["add-tag", "remove-tag"])
def test_no_tags_are_a_warning(call, version, command):
    status, _, err = call(command, version.uid, "")
    assert (status, err) == (0, "backyfs: no tags were given; nothing is changed\n")
    assert call("-m", "-s", "ls", "-f", "tags")[1] == "daily\n"


def test_with_an_empty_path_the_configuration_is_found_in_the_usual_places(config, capsys, monkeypatch):
    monkeypatch.setenv("BACKYFS_CONFIG", str(config))
    assert run(["-c", "", "-m", "ls"]) == 0
    assert capsys.readouterr().out.startswith("date|name|")


def test_the_last_of_several_values_counts_even_if_it_is_empty(call, config, image):
    assert call("backup", image, "disk", "-t", "mine", "-t", "")[0] == 0
    assert call("-m", "-s", "ls", "-f", "tags")[1] == "b_daily,b_monthly,b_weekly\n"


def test_only_the_empty_filters_of_a_mount_are_dropped():
    given = parsed("mount", ["--tag", "", "--tag", " a b ", "--name", "x*", "--name", "", "--version", "", "/mnt"])
    assert (given["tags"], given["names"], given["versions"]) == (("a b",), ("x*",), ())
