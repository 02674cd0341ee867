"""Commands that list or change versions: ls, rm, protect, unprotect, add-tag, remove-tag, expire."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, event, update

from backyfs.cli.main import run
from backyfs.engine.restore.restore import restore
from backyfs.errors import VersionNotFoundError
from backyfs.metadata.db.tables import versions as versions_table
from backyfs.metadata.records.versions import add_tags, list_versions, set_status
from backyfs.model import VersionStatus
from backyfs.work.job import Job
from tests.support.audit import audit
from tests.support.images import random_image
from tests.support.jobs import spec
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, opened
from tests.upgrade.reference import FIXTURES, Reference

REFERENCES = sorted(path.parent.name for path in FIXTURES.glob("*/output"))
UNKNOWN = "ffffffff-ffff-ffff-ffff-ffffffffffff"


@pytest.fixture
def image(tmp_path):
    return random_image(tmp_path / "image", 5 * BLOCK)


@pytest.fixture
def uid(call, image):
    """Back up an image and return the uid of the version."""
    return call("-m", "backup", image, "disk", "-t", "a,b")[1].splitlines()[0]


@pytest.fixture
def uids(config):
    """Return the uids of the repository, in the order of ls."""

    def uids():
        with opened(config) as repository, repository.database.read() as connection:
            return [version.uid for version in list_versions(connection)]

    return uids


def the_version(config):
    with opened(config) as repository, repository.database.read() as connection:
        [version] = list_versions(connection)
    return version


def age(config, uid, **since):
    """Make a version older."""
    with opened(config) as repository, repository.database.write() as connection:
        moment = datetime.now(UTC) - timedelta(**since)
        connection.execute(update(versions_table).where(versions_table.c.uid == uid).values(created_at=moment))


# ls


@pytest.fixture
def many(call, image):
    """Back up versions that differ in everything ls can filter by."""
    for name, *options in (
        ("a", "-s", "one", "-t", "daily"),
        ("a", "-s", "two", "-t", "daily,weekly", "-e", "2001-01-01"),
        ("b", "-s", "two", "-t", "weekly", "-e", "2099-01-01"),
    ):
        assert call("backup", image, name, *options)[0] == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["a one", "a two", "b two"]),
        (("a",), ["a one", "a two"]),
        (("-s", "two"), ["a two", "b two"]),
        (("-t", "weekly"), ["a two", "b two"]),
        (("-t", "week"), []),
        (("-e",), ["a two"]),
        (("--expired", "b"), []),
        (("", "-s", "", "-t", ""), ["a one", "a two", "b two"]),
        (("a", "-s", "one", "-t", "daily"), ["a one"]),
    ],
)
def test_ls_lists_the_versions_that_match(call, many, options, expected):
    status, out, err = call("-m", "-s", "ls", "-f", "name,snapshot_name", *options)
    assert (status, err) == (0, "")
    assert out.splitlines() == [line.replace(" ", "|") for line in expected]


def test_ls_shows_the_chosen_fields_in_order(call, many):
    assert call("-m", "ls", "-f", "tags,name", "b")[1] == "tags|name\nweekly|b\n"


def test_an_unknown_field_is_reported_with_the_existing_ones(call, many):
    status, _, err = call("ls", "-f", "name,colour")
    assert status == 1
    assert err.startswith("backyfs: error: there is no field 'colour'; the fields are date, name, snapshot_name,")


# rm


def test_rm_removes_a_version_and_leaves_the_others_intact(call, config, image, tmp_path, uid, uids):
    call("backup", image, "other")
    status, out, err = call("rm", "--force", uid)
    assert (status, out, err) == (0, f"version {uid} of disk removed\n", "")
    with opened(config) as repository:
        audit(repository)
        with repository.database.read() as connection:
            [other] = list_versions(connection)
        assert restore(repository, other, str(tmp_path / "out"), replace=False).damaged == ()
    assert other.name == "other"
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_rm_with_m_prints_nothing_as_in_backy2(call, uid):
    assert call("-m", "rm", "-f", uid) == (0, "", "")


def test_rm_removes_each_of_several_versions_once(call, image, uid, uids):
    call("backup", image, "other")
    status, out, _ = call("--json", "rm", "-f", uid, "disk@latest", "other@latest")
    assert status == 0
    assert [(row["name"], row["removed"], row["reason"]) for row in json.loads(out)] == [
        ("disk", True, None),
        ("other", True, None),
    ]
    assert uids() == []


def test_rm_removes_nothing_if_a_version_is_unknown(call, uid, uids):
    status, out, err = call("rm", uid, "none@latest")
    assert (status, out) == (4, "")
    assert "no version is named 'none'" in err
    assert uids() == [uid]


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_protected_version_is_kept_and_the_others_are_removed(call, image, uid, uids, force):
    call("protect", uid)
    other = call("-m", "backup", image, "other")[1].splitlines()[0]
    newer = call("-m", "backup", image, "other")[1].splitlines()[0]
    status, out, err = call("rm", *force, uid, other)
    assert (status, out) == (4, f"version {other} of other removed\n")
    assert err == f"backyfs: error: version {uid} is protected; run `backyfs unprotect {uid}` first\n"
    assert uids() == [uid, newer]


@pytest.mark.parametrize("force", [(), ("-f",)])
def test_a_version_in_use_is_kept(call, config, uid, uids, force):
    with opened(config) as repository, Job(repository.database, spec("mount /mnt")) as job:
        job.hold(the_version(config).id)
        status, _, err = call("rm", *force, uid)
        assert status == 4
        assert f"version {uid} is in use by mount /mnt (process " in err
        assert uids() == [uid]
    assert call("rm", "--force", uid)[0] == 0


def test_a_job_that_starts_too_late_does_not_find_the_version(call, config, uid):
    version = the_version(config)
    call("rm", "--force", uid)
    with (
        opened(config) as repository,
        Job(repository.database, spec("restore")) as job,
        pytest.raises(VersionNotFoundError, match="was removed by another command"),
    ):
        job.hold(version.id)


YOUNG = "[DEFAULTS]\ndisallow_rm_when_younger_than_days: 3"


def test_a_young_version_needs_force(call, config, uid, uids):
    config.write_text(config.read_text().replace("[DEFAULTS]", YOUNG, 1))
    age(config, uid, days=2, hours=23)
    status, _, err = call("rm", uid)
    assert (status, uids()) == (4, [uid])
    assert err == (
        f"backyfs: error: version {uid} is younger than the 3 days of disallow_rm_when_younger_than_days; "
        "add --force to remove it all the same\n"
    )
    assert call("rm", "-f", uid)[0] == 0
    assert uids() == []


def test_an_old_version_needs_no_force(call, config, image, uid):
    config.write_text(config.read_text().replace("[DEFAULTS]", YOUNG, 1))
    call("backup", image, "disk")
    age(config, uid, days=3, minutes=1)
    assert call("rm", uid)[0] == 0


def test_rm_expired_removes_expired_versions_and_lists_those_it_keeps(call, many, uids):
    expired, kept = uids()[1:]
    call("expire", kept, "2002-02-02")
    call("protect", kept)
    before = uids()
    status, out, err = call("rm", "--expired")
    assert (status, out) == (0, f"version {expired} of a removed\n")
    assert err == f"backyfs: kept: version {kept} is protected; run `backyfs unprotect {kept}` first\n"
    assert uids() == [uid for uid in before if uid != expired]


def test_rm_expired_keeps_versions_in_use_without_an_error(call, config, uid, uids):
    call("expire", uid, "2002-02-02")
    with opened(config) as repository, Job(repository.database, spec("mount /mnt")) as job:
        job.hold(the_version(config).id)
        status, out, err = call("--json", "rm", "--expired")
    assert (status, err, uids()) == (0, "", [uid])
    [row] = json.loads(out)
    assert (row["uid"], row["removed"]) == (uid, False)
    assert row["reason"].startswith(f"version {uid} is in use by mount /mnt (process ")


def test_rm_expired_succeeds_if_nothing_has_expired(call, uid):
    assert call("rm", "--expired") == (0, "", "")
    assert call("--json", "rm", "--expired") == (0, "[]\n", "")


def test_each_version_kept_is_reported(call, image, uid):
    other = call("-m", "backup", image, "other")[1].splitlines()[0]
    call("protect", uid, other)
    status, out, err = call("rm", uid, other)
    assert (status, out) == (4, "")
    assert sorted(err.splitlines()) == sorted(
        f"backyfs: error: version {one} is protected; run `backyfs unprotect {one}` first" for one in (uid, other)
    )


def test_versions_removed_before_an_interruption_are_reported(call, image, uid, uids, monkeypatch):
    call("backup", image, "other")
    answers = iter([False, True])
    monkeypatch.setattr(
        "backyfs.cli.invocation.stop_on_signals", lambda: contextlib.nullcontext(lambda: next(answers))
    )
    status, out, err = call("rm", "--force", uid, "other@latest")
    assert (status, out) == (130, f"version {uid} of disk removed\n")
    assert err == "backyfs: error: interrupted after 1 of 2 versions; run it again for the rest\n"
    assert len(uids()) == 1


def test_an_incomplete_version_can_be_removed_when_nobody_writes_it(call, config, uid, uids):
    with opened(config) as repository, repository.database.write() as connection:
        set_status(connection, the_version(config).id, VersionStatus.INCOMPLETE)
    assert call("rm", uid)[0] == 0
    assert uids() == []


def test_rm_needs_either_versions_or_expired(call, uid):
    for words in ((), ("--expired", uid)):
        status, _, err = call("rm", *words)
        assert (status, err) == (1, "backyfs: error: name the versions to remove, or give --expired\n")


def test_rm_keeps_the_last_valid_version_of_a_name_unless_forced(call, image, uid, uids):
    status, out, err = call("rm", "disk@latest")
    assert (status, out, uids()) == (4, "", [uid])
    assert f"version {uid} is the last valid version of 'disk'; make another backup first, or force" in err
    other = call("-m", "backup", image, "disk")[1].splitlines()[0]
    assert call("rm", uid)[0] == 0
    assert call("rm", other)[0] == 4
    assert call("rm", "--force", other)[0] == 0
    assert uids() == []


def test_rm_of_all_versions_of_a_name_keeps_the_newest_in_any_order(call, image, uid, uids):
    newer = call("-m", "backup", image, "disk")[1].splitlines()[0]
    newest = call("-m", "backup", image, "disk")[1].splitlines()[0]
    assert call("rm", newest, uid, newer)[0] == 4
    assert uids() == [newest]


def test_a_damaged_version_does_not_allow_removing_the_last_valid_one(call, config, image, uid, uids):
    damaged = call("-m", "backup", image, "disk")[1].splitlines()[0]
    with opened(config) as repository, repository.database.write() as connection:
        [version] = [version for version in list_versions(connection) if version.uid == damaged]
        set_status(connection, version.id, VersionStatus.INVALID)
    assert call("rm", uid)[0] == 4
    assert call("rm", damaged)[0] == 0
    assert uids() == [uid]


def test_rm_expired_keeps_the_last_valid_version_by_default(call, uid, uids):
    call("expire", uid, "2002-02-02")
    for force in ((), ("--force",)):
        status, out, err = call("rm", "--expired", *force)
        assert (status, out, uids()) == (0, "", [uid])
        assert err.startswith(f"backyfs: kept: version {uid} is the last valid version of 'disk'")
    assert call("rm", "--expired", "--even-last") == (0, f"version {uid} of disk removed\n", "")
    assert uids() == []


def test_even_last_needs_expired(call, uid, uids):
    status, _, err = call("rm", "--even-last", uid)
    assert (status, uids()) == (1, [uid])
    assert "--even-last is for --expired" in err


def test_a_dry_run_of_rm_shows_what_it_would_remove_and_keep(call, image, uid, uids):
    newer = call("-m", "backup", image, "disk")[1].splitlines()[0]
    status, out, err = call("rm", "--dry-run", newer, uid)
    assert (status, out) == (4, f"version {uid} of disk would be removed\n")
    assert f"version {newer} is the last valid version of 'disk'" in err
    status, out, _ = call("--json", "rm", "-n", "--force", uid, newer)
    assert status == 0
    assert [(row["uid"], row["removed"], row["removable"]) for row in json.loads(out)] == [
        (uid, False, True),
        (newer, False, True),
    ]
    assert uids() == [uid, newer]


def test_a_dry_run_of_rm_names_the_users_of_a_version(call, config, image, uid, uids):
    newer = call("-m", "backup", image, "disk")[1].splitlines()[0]
    with opened(config) as repository, Job(repository.database, spec("mount /mnt")) as job:
        with repository.database.read() as connection:
            job.hold(next(version.id for version in list_versions(connection) if version.uid == uid))
        status, out, err = call("rm", "--dry-run", uid)
    assert (status, out) == (4, "")
    assert f"version {uid} is in use by mount /mnt" in err
    assert uids() == [uid, newer]


# protect, unprotect


def test_a_version_can_be_protected_and_unprotected(call, config, uid):
    assert call("protect", uid) == (0, f"version {uid} of disk is protected\n", "")
    assert the_version(config).protected
    assert call("-m", "unprotect", uid) == (0, "", "")
    assert not the_version(config).protected


def test_protecting_twice_is_an_error_but_the_other_versions_are_protected(call, config, image, uid):
    call("protect", uid)
    call("backup", image, "other")
    status, out, err = call("--json", "protect", uid, "other@latest")
    assert (status, err) == (4, f"backyfs: error: version {uid} is already protected; there was nothing to do\n")
    assert [row["name"] for row in json.loads(out)] == ["other"]
    status, _, err = call("unprotect", "other@latest", uid)
    assert status == 0
    status, _, err = call("unprotect", uid)
    assert (status, err) == (4, f"backyfs: error: version {uid} is already unprotected; there was nothing to do\n")


# add-tag, remove-tag


def test_tags_can_be_added_and_removed(call, config, uid):
    assert call("-m", "add-tag", uid, 'c,"d,e"') == (0, "", "")
    assert the_version(config).tags == ("a", "b", "c", "d,e")
    assert call("-m", "remove-tag", uid, "a,c") == (0, "", "")
    assert the_version(config).tags == ("b", "d,e")


def test_white_space_around_tags_is_dropped(call, config, uid):
    assert call("-m", "add-tag", uid, 'c , "d,e",b') == (0, "", "")
    assert the_version(config).tags == ("a", "b", "c", "d,e")
    assert call("-m", "remove-tag", uid, ' a,"d,e" ') == (0, "", "")
    assert the_version(config).tags == ("b", "c")
    assert call("-m", "-s", "ls", "-t", " c\t", "-f", "uid") == (0, f"{uid}\n", "")


def test_a_tag_stored_with_a_blank_by_an_earlier_release_can_be_removed(call, config, uid):
    with opened(config) as repository, repository.database.write() as connection:
        add_tags(connection, the_version(config).id, [" daily"])
    assert call("-m", "-s", "ls", "-t", "daily", "-f", "uid") == (0, f"{uid}\n", "")
    assert call("-m", "remove-tag", uid, "daily,b") == (0, "", "")
    assert the_version(config).tags == ("a",)


def test_adding_an_existing_or_removing_a_missing_tag_is_a_warning(call, config, uid):
    status, out, err = call("add-tag", uid, "b,c")
    assert (status, err) == (0, f"backyfs: version {uid} already has tag b\n")
    assert "a,b,c" in out
    status, _, err = call("remove-tag", uid, "x,b")
    assert (status, err) == (0, f"backyfs: version {uid} has no tag x\n")
    assert the_version(config).tags == ("a", "c")


# expire


def test_an_expiry_can_be_set_and_removed(call, config, uid):
    assert call("-m", "expire", uid, "2031-05-06 07:08:09") == (0, "", "")
    assert the_version(config).expire_at == datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    status, out, _ = call("--json", "expire", uid, "")
    assert (status, json.loads(out)["expire"]) == (0, None)
    assert the_version(config).expire_at is None


def test_the_first_year_has_four_digits_wherever_it_is_shown(call, config, uid):
    assert call("-m", "expire", uid, "0001-01-01") == (0, "", "")
    assert call("-m", "-s", "ls", "-f", "expire") == (0, "0001-01-01 00:00:00\n", "")
    assert json.loads(call("--json", "ls")[1])[0]["expire"] == "0001-01-01T00:00:00Z"
    with opened(config) as repository, repository.database.write() as connection:
        connection.execute(update(versions_table).values(created_at=datetime(1, 2, 3, 4, 5, 6, tzinfo=UTC)))
    assert call("-m", "-s", "ls", "-f", "date") == (0, "0001-02-03 04:05:06\n", "")
    exported = call("export", "--format", "backy2", "disk@0001-02-03", "-")[1]
    assert ",0001-02-03 04:05:06,disk," in exported
    assert ",0001-01-01\r\n" in exported


def test_the_expiry_can_be_an_age(call, config, uid):
    assert call("expire", uid, "+2w")[0] == 0
    left = the_version(config).expire_at - datetime.now(UTC)
    assert timedelta(days=13, hours=23) < left <= timedelta(days=14)


@pytest.mark.parametrize("date", ["never", "2031-02-30", "+5x", "1.2.2031"])
def test_an_invalid_date_is_refused(call, config, uid, date):
    status, _, err = call("expire", uid, date)
    assert status == 1
    assert f"{date!r} is not a date; give YYYY-MM-DD" in err
    assert the_version(config).expire_at is None


# As backy2


@pytest.mark.parametrize("name", REFERENCES)
def test_machine_output_of_ls_is_the_same_as_in_backy2(name, tmp_path, capsysbinary):
    reference = Reference(name, tmp_path)
    assert run(["-q", "-c", str(reference.config_file), "ls"]) == 0  # upgrades
    capsysbinary.readouterr()
    assert run(["-m", "-c", str(reference.config_file), "ls"]) == 0
    assert capsysbinary.readouterr().out == (FIXTURES / name / "output" / "ls.txt").read_bytes()


# Failures of all of them


WORDS = {
    "ls": ("ls",),
    "rm": ("rm", "--force", "UID"),
    "protect": ("protect", "UID"),
    "unprotect": ("unprotect", "UID"),
    "add-tag": ("add-tag", "UID", "x"),
    "remove-tag": ("remove-tag", "UID", "a"),
    "expire": ("expire", "UID", "2031-01-01"),
}
CHANGING = sorted(set(WORDS) - {"ls"})


def words_of(command, uid):
    return [uid if word == "UID" else word for word in WORDS[command]]


@pytest.mark.parametrize("command", CHANGING)
def test_an_unknown_version_is_an_error(call, uid, command):
    status, out, err = call(*words_of(command, UNKNOWN))
    assert (status, out) == (4, "")
    assert err == f"backyfs: error: no version has a uid that begins with {UNKNOWN}; `backyfs ls` lists the versions\n"


@pytest.mark.parametrize("command", WORDS)
def test_the_wrong_key_and_a_missing_storage_are_errors(call, config, uid, uids, command):
    storage = config.parent / "data"
    storage.rename(config.parent / "elsewhere")
    status, out, err = call(*words_of(command, uid))
    assert (status, out) == (6, "")
    assert err.startswith("backyfs: error: storage directory ")
    (config.parent / "elsewhere").rename(storage)
    key = config.parent / "backyfs.key"
    right = key.read_text()
    key.write_text("ab" * 32)
    status, out, err = call(*words_of(command, uid))
    assert (status, out, err.count("\n")) == (3, "", 1)
    key.write_text(right)
    assert uids() == [uid]


@pytest.mark.parametrize("command", CHANGING)
def test_a_read_only_database_is_an_error(call, config, uid, uids, command):
    def read_only(connection, *_arguments):
        connection.execute("PRAGMA query_only = ON")  # like a read-only file system; permissions do not stop root

    event.listen(Engine, "connect", read_only)
    try:
        status, out, err = call(*words_of(command, uid))
    finally:
        event.remove(Engine, "connect", read_only)
    assert (status, out) == (1, "")
    assert err == "backyfs: error: database: attempt to write a readonly database\n"
    assert uids() == [uid]


@pytest.mark.parametrize("command", WORDS)
def test_an_interrupt_ends_a_command_without_a_traceback_and_changes_nothing(call, config, uid, monkeypatch, command):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    before = the_version(config)
    function = {
        "ls": "matching_versions", "rm": "remove", "add-tag": "add_tags", "remove-tag": "remove_tags",
        "expire": "expire",
    }.get(command)  # fmt: skip
    place = "edits.protect" if function is None else f"commands.{command.replace('-', '_')}.{function}"
    monkeypatch.setattr(f"backyfs.cli.{place}", interrupted)
    status, out, err = call(*words_of(command, uid))
    assert (status, out, err) == (130, "", "backyfs: error: interrupted\n")
    monkeypatch.undo()
    assert the_version(config) == before


@pytest.mark.parametrize("command", WORDS)
def test_a_reader_that_stops_early_is_not_an_error_and_the_work_is_done(config, uid, uids, command):
    if command == "unprotect":
        assert run(["-c", str(config), "protect", uid]) == 0
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [BACKYFS, "-c", config, *words_of(command, uid)], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
    if command == "rm":
        assert uids() == []
