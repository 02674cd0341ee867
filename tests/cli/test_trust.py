"""Configurations that others can change: root refuses them, users get a warning. Root with a user's configuration."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.images import random_image
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, make_repository
from tests.support.users import USER, give_to_user, run_as_user

pytestmark = pytest.mark.root



@pytest.fixture
def home():
    """Make a directory that users can reach, with a repository of root in it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        home = Path(directory)
        home.chmod(0o755)
        make_repository(home / "repository")
        random_image(home / "image", 3 * BLOCK)
        yield home


@pytest.fixture
def config(home):
    return home / "repository" / "backyfs.cfg"


def backyfs(config, *words):
    return subprocess.run(
        [BACKYFS, "-c", str(config), *map(str, words)], capture_output=True, text=True, check=False, timeout=120
    )


def with_line(config, section, line):
    """Add a line to a section, which need not exist."""
    text = config.read_text()
    head, _, rest = text.partition(f"\n[{section}]\n")
    config.write_text(f"{head}\n[{section}]\n{line}\n{rest}")


def refusal(config, *words):
    done = backyfs(config, *(words or ("ls",)))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line.removeprefix("backyfs: error: ")


def found_by_check(config):
    done = backyfs(config, "--json", "check-config")
    results: dict[str, list[tuple[str, str]]] = {}
    for row in json.loads(done.stdout):
        results.setdefault(row["check"], []).append((row["grade"], row["message"]))
    return done.returncode, results


def by_owner(path):
    os.chown(path, USER, USER)
    return f"{path} belongs to user {USER}", f"chown root {path}"


def by_mode(path):
    path.chmod(path.stat().st_mode | 0o002)
    return f"{path} can be changed by every user", f"chmod go-w {path}"


def by_group(path):
    os.chown(path, 0, USER)
    path.chmod(path.stat().st_mode | 0o020)
    return f"{path} can be changed by the members of group {USER}", f"chmod go-w {path}"


# Root and its own configuration


@pytest.mark.parametrize("part", ["", "repository", "repository/backyfs.cfg"])
@pytest.mark.parametrize("open_up", [by_mode, by_group])
def test_root_refuses_a_configuration_that_others_can_change(home, config, part, open_up):
    fact, remedy = open_up(home / part)
    assert refusal(config) == f"{fact}, so others can change {config} and have commands run as root; run `{remedy}`"


@pytest.mark.parametrize("part", ["", "repository"])
def test_root_refuses_a_configuration_in_the_directory_of_a_user(home, config, part):
    fact, remedy = by_owner(home / part)
    assert refusal(config) == f"{fact}, so others can change {config} and have commands run as root; run `{remedy}`"


def test_root_refuses_such_a_configuration_behind_a_link(home, config):
    (home / "open").mkdir()
    (home / "open" / "linked.cfg").symlink_to(config)
    assert backyfs(home / "open" / "linked.cfg", "ls").returncode == 0
    by_mode(home / "open")
    assert f"{home}/open can be changed by every user" in refusal(home / "open" / "linked.cfg")


@pytest.mark.parametrize("words", ["ls", "backup {home}/image disk", "scrub", "mount {home}/mount", "attach x"])
def test_a_refused_configuration_runs_and_writes_nothing(home, config, words):
    with_line(config, "hooks", f"before_backup: touch {home}/hooked\nbefore_mount: touch {home}/hooked")
    log = home / "repository" / "backyfs.log"
    log.unlink(missing_ok=True)
    by_mode(config)
    refusal(config, *words.format(home=home).split())
    assert not (home / "hooked").exists()
    assert not log.exists()


def test_root_refuses_a_hook_whose_program_others_can_change(home, config):
    program = home / "hook"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with_line(config, "hooks", f"before_backup: {program} --now")
    assert backyfs(config, "ls").returncode == 0
    fact, remedy = by_owner(program)
    assert refusal(config) == (
        f"{fact}, so others can change {program}, which before_backup runs as root; run `{remedy}`"
    )


def test_root_refuses_a_key_file_that_others_can_replace(home, config):
    key = home / "repository" / "backyfs.key"
    fact, remedy = by_owner(key)
    assert refusal(config) == f"{fact}, so others can replace the key in {key}; run `{remedy}`"


def test_repair_refuses_such_a_configuration_of_another_repository(home, config):
    other = make_repository(home / "other")
    by_mode(other)
    assert backyfs(config, "backup", home / "image", "disk").returncode == 0
    done = backyfs(config, "repair", "--from-config", other)
    assert done.returncode == 1
    assert f"{other} can be changed by every user" in done.stderr


def test_a_configuration_from_a_pipe_is_accepted(config):
    done = subprocess.run(
        ["bash", "-c", '"$1" -c <(cat "$2") ls', "bash", BACKYFS, str(config)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("command", "message"), [("detach", "is attached in"), ("umount", "of backyfs is mounted on")])
def test_detach_and_umount_work_without_a_configuration_that_others_can_change(home, config, command, message):
    by_mode(config)
    done = backyfs(config, command, home / "nothing")
    assert done.returncode == 10
    assert message in done.stderr


# check-config


@pytest.mark.parametrize("part", ["repository", "repository/backyfs.cfg"])
def test_the_check_fails_where_commands_refuse(home, config, part):
    fact, _ = by_mode(home / part)
    status, results = found_by_check(config)
    assert status == 1
    ((grade, message),) = results["permissions"]
    assert grade == "failed"
    assert message.startswith(f"{fact}, so others can change {config}")
    assert results["key"] == [("skipped", "cannot be checked until the configuration is out of reach of others")]


def test_the_check_runs_no_command_of_such_a_configuration(home, config):
    text = config.read_text().replace(
        f"encryption_key_file: {home}/repository/backyfs.key",
        f"encryption_key_command: touch {home}/run; cat {home}/repository/backyfs.key",
    )
    config.write_text(text)
    assert found_by_check(config)[0] == 0
    assert (home / "run").exists()
    (home / "run").unlink()
    by_mode(config)
    assert found_by_check(config)[0] == 1
    assert not (home / "run").exists()


def test_the_check_warns_a_user_and_continues(home, config):
    give_to_user(home)
    by_mode(config)
    done = run_as_user(config, "check-config")
    assert done.returncode == 0, done.stderr
    assert f"warning   permissions    {config} can be changed by every user, so others" in done.stdout
    assert "ok        key" in done.stdout


# Users


@pytest.mark.parametrize("part", ["", "repository", "repository/backyfs.cfg"])
def test_a_user_is_warned_of_a_configuration_that_others_can_change(home, config, part):
    give_to_user(home)
    fact, _ = by_mode(home / part)
    done = run_as_user(config, "ls")
    assert done.returncode == 0
    assert f"{fact}, so others can change {config} and have commands run as this user; run `chmod" in done.stderr


def test_a_user_is_not_warned_of_a_configuration_owned_by_root(home, config):
    give_to_user(home)
    os.chown(config, 0, 0)
    config.chmod(0o644)
    done = run_as_user(config, "ls")
    assert (done.returncode, done.stderr) == (0, "")


# Root and the configuration of a user


def test_root_works_in_the_repository_of_a_user(home, config):
    give_to_user(home)
    done = backyfs(config, "backup", home / "image", "disk")
    assert (done.returncode, "belongs to" in done.stderr) == (0, False)


@pytest.mark.parametrize(
    ("section", "line", "name"),
    [
        ("hooks", "before_backup: touch {home}/run", "before_backup"),
        ("hooks", "on_failure: touch {home}/run", "on_failure"),
        ("DEFAULTS", "encryption_passphrase_command: touch {home}/run", "encryption_passphrase_command"),
    ],
)
def test_root_runs_no_command_of_a_user(home, config, section, line, name):
    with_line(config, section, line.format(home=home))
    give_to_user(home)
    assert refusal(config, "backup", home / "image", "disk") == (
        f"{config} belongs to user {USER}, and its commands ({name}) would run as root; run backyfs as that user, or "
        f"give the file and its directory to root (`chown root {config}`)"
    )
    assert not (home / "run").exists()
    assert found_by_check(config)[0] == 1
    assert not (home / "run").exists()


def test_a_user_can_run_their_own_commands(home, config):
    with_line(config, "hooks", f"before_backup: touch {home}/run")
    give_to_user(home)
    done = run_as_user(config, f"backup {home}/image disk")
    assert done.returncode == 0, done.stderr
    assert (home / "run").exists()


def test_root_refuses_the_configuration_of_a_user_if_a_third_user_can_change_it(home, config):
    give_to_user(home)
    fact, _ = by_mode(config)
    assert fact in refusal(config)


def test_root_does_not_log_where_the_user_cannot(home, config):
    secret = home / "roots"
    secret.mkdir()
    log = secret / "log"
    log.write_text("root's\n")
    give_to_user(home / "repository")
    text = config.read_text().replace(f"logfile: {home}/repository/backyfs.log", f"logfile: {log}")
    assert str(log) in text
    config.write_text(text)
    os.chown(home, 0, 0)
    assert f"belongs to user {USER}, and names {log}, which that user cannot write to" in refusal(config)
    assert log.read_text() == "root's\n"


@pytest.mark.parametrize("part", ["data", "backyfs.sqlite"])
@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("words", [["initdb"], ["backup", "{home}/image", "disk"]])
def test_root_does_not_store_where_the_user_cannot(home, config, part, is_there, words):
    secret = home / "roots"
    secret.mkdir()
    (home / "repository" / part).rename(secret / part if is_there else home / "elsewhere")
    give_to_user(home / "repository")
    config.write_text(config.read_text().replace(f"{home}/repository/{part}", f"{secret}/{part}"))
    before = sorted(secret.rglob("*"))
    assert f"belongs to user {USER}, and names {secret}/{part}, which that user cannot write to" in refusal(
        config, *(word.format(home=home) for word in words)
    )
    assert sorted(secret.rglob("*")) == before


def test_root_does_not_log_through_a_link_or_second_name(home, config):
    log, other = home / "repository" / "backyfs.log", home / "roots"
    log.unlink(missing_ok=True)
    other.write_text("root's\n")
    for make in (os.symlink, os.link):
        make(other, log)
        give_to_user(home / "repository")
        os.chown(other, 0, 0)
        os.chown(home, 0, 0)
        assert "which that user cannot write to" in refusal(config)
        log.unlink()
    assert other.read_text() == "root's\n"
