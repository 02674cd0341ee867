"""Root works in a user's repository, and everything still belongs to the user."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from backyfs.metadata.db.database import Database
from backyfs.metadata.records.versions import list_versions
from tests.cli.cases import CASES
from tests.cli.test_every_command import by_words, made_place, place
from tests.support.images import random_image
from tests.support.program import backyfs
from tests.support.repositories import BLOCK, make_repository
from tests.support.users import USER, give_to_user, run_as_user
from tests.upgrade.reference import Reference

__all__ = ["made_place", "place"]

SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
# A mount shows files of root, and only root uses the records of `attach`. Neither is permanent.
WITHOUT_MOUNT = [case for case in CASES if case.name not in {"mount", "umount", "attach", "detach"}]


def run_as_root(config, *words):
    return backyfs("-c", config, *words, env=os.environ | {"PATH": SBIN})


def owned_by_others(directory):
    return [str(path) for path in directory.rglob("*") if os.lstat(path)[4:6] != (USER, USER)]


@pytest.fixture
def home():
    """Make a user's directory with a repository of the user; pytest's own directories are closed to users."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        home = Path(directory)
        make_repository(home / "repository")
        random_image(home / "image", 50 * BLOCK)
        give_to_user(home)
        yield home


@pytest.fixture
def config(home):
    return home / "repository" / "backyfs.cfg"


@pytest.mark.parametrize("case", WITHOUT_MOUNT, ids=by_words)
def test_no_command_run_by_root_leaves_a_file_owned_by_root(place, case):
    give_to_user(place)
    for words in (*case.after, case.words):
        text = words.replace("{dir}", str(place))
        while "{}" in text:
            database = Database(f"sqlite:///{place}/repository/backyfs.sqlite")
            with database.read() as connection:
                uid = list_versions(connection)[0].uid
            database.close()
            text = text.replace("{}", uid)
        done = run_as_root(place / case.config, *text.split())
        assert done.returncode == 0, done.stderr
    assert owned_by_others(place) == []


def test_a_user_can_continue_in_a_repository_created_by_root(home, config):
    shutil.rmtree(home / "repository")
    data, database = home / "repository" / "data", home / "repository" / "backyfs.sqlite"
    done = run_as_root(config, "init", "--data", data, "--db", database, "--block-size", BLOCK)
    assert done.returncode == 0, done.stderr
    assert run_as_root(config, "backup", home / "image", "disk").returncode == 0
    random_image(home / "second", 70 * BLOCK, 1)
    (home / "second").chmod(0o644)
    done = run_as_user(
        config,
        "ls",
        "check-config",
        f"backup {home}/second disk",
        f"restore disk@latest {home}/restored",
        "scrub --all",
        "rm --force disk@latest",
        "cleanup",
    )
    assert done.returncode == 0, done.stderr
    assert (home / "restored").read_bytes() == (home / "second").read_bytes()


def test_a_user_continues_a_log_that_root_began(home, config):
    log = home / "repository" / "backyfs.log"
    assert not log.exists()
    assert run_as_root(config, "--debug", "restore", "no-such", home / "out").returncode == 4
    before = log.read_text()
    assert "no-such" in before
    assert run_as_user(config, f"restore another {home}/out").returncode == 4
    assert log.read_text().startswith(before)
    assert "another" in log.read_text().removeprefix(before)


def test_a_user_can_use_and_delete_blocks_stored_by_root(home, config):
    assert run_as_root(config, "backup", home / "image", "disk").returncode == 0
    blobs = len(list(home.rglob("*.blob")))
    done = run_as_user(
        config,
        f"backup {home}/image again",
        "rm --force disk@latest",
        "rm --force again@latest",
        "cleanup --dangerous-force",
    )
    assert done.returncode == 0, done.stderr
    assert blobs > 0
    assert list(home.rglob("*.blob")) == []


def test_the_copy_made_by_an_upgrade_as_root_belongs_to_the_user(home):
    reference = Reference("v1-sqlite", home)
    give_to_user(home)
    done = run_as_root(reference.config_file, "ls")
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*.before-upgrade-*")) != []
    assert owned_by_others(home) == []


def test_an_existing_file_keeps_its_owner(home, config):
    log = home / "repository" / "backyfs.log"
    log.touch()
    assert run_as_root(config, "backup", home / "image", "disk").returncode == 0
    assert log.stat().st_uid == 0


def test_a_users_link_does_not_give_the_user_files_of_root(home, config):
    elsewhere = home.parent / f"{home.name}.root"
    elsewhere.mkdir()
    try:
        (elsewhere / "secret").write_text("of root")
        for first in range(256):
            (home / "repository" / "data" / f"{first:02x}").symlink_to(elsewhere)
        run_as_root(config, "backup", home / "image", "disk")
        owners = {path: path.lstat().st_uid for path in (elsewhere, *elsewhere.rglob("*"))}
        assert owners == dict.fromkeys(owners, 0)
    finally:
        shutil.rmtree(elsewhere)
