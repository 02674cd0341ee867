"""due, sla and forget, as people and scripts call them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from backyfs.engine.versions.forget import ForgetOutcome, forget
from backyfs.engine.versions.remove import remove_versions
from backyfs.errors import InterruptedByUser
from backyfs.metadata.db.tables import versions as versions_table
from backyfs.metadata.records.removal import remove_version
from backyfs.metadata.records.versions import list_versions
from backyfs.work.job import Job
from tests.support.audit import audit
from tests.support.images import random_image
from tests.support.jobs import spec
from tests.support.repositories import BLOCK, back_up, make_repository, opened

SCHEDULERS = """
[hourly]
interval: 1h
keep: 2
sla: 10m

[daily]
interval: 1d
keep: 3
sla: 3h
"""
DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture
def config(tmp_path):
    config = make_repository(tmp_path / "repository")
    config.write_text(config.read_text() + SCHEDULERS)
    return config


@pytest.fixture
def daily(config, tmp_path):
    """Make a version for each of the last five days, the newest dated now; return their uids, oldest first."""
    image = random_image(tmp_path / "image", BLOCK)
    uids = []
    with opened(config) as repository:
        for age in (4, 3, 2, 1, 0):
            version = back_up(repository, image, tags=("daily",)).version
            uids.append(version.uid)
            moment = datetime.now(UTC) - timedelta(days=age)
            with repository.database.write() as connection:
                here = versions_table.c.uid == version.uid
                connection.execute(update(versions_table).where(here).values(created_at=moment))
    return uids


def left(config):
    with opened(config) as repository:
        audit(repository)
        with repository.database.read() as connection:
            return [version.uid for version in list_versions(connection)]


def test_a_name_without_backups_has_been_due_since_1970(call):
    status, out, err = call("-m", "due", "disk", "-s", "daily,hourly")
    assert (status, err) == (0, "")
    header, line = out.splitlines()
    assert header == "name|schedulers|expire_date|due_since"
    assert re.fullmatch(rf"disk\|daily,hourly\|{DATE}\|1970-01-01 00:00:00", line)


def test_nothing_is_due_right_after_a_backup(call, daily):
    assert call("-m", "-s", "due") == (0, "", "")
    assert call("-m", "-s", "due", "--check") == (0, "", "")


def test_the_status_is_enough_for_monitoring(call):
    assert call("due", "disk", "--check")[0] == 2
    assert call("sla", "disk", "--check")[0] == 2
    assert call("sla", "disk")[0] == 0


def test_due_prints_json(call):
    [due] = json.loads(call("--json", "due", "disk")[1])
    assert (due["name"], due["schedulers"], due["due_since"]) == ("disk", ["daily"], "1970-01-01T00:00:00Z")


def test_breaches_are_the_sentences_of_backy2(call, daily):
    status, out, _ = call("-m", "sla", "-s", "daily,hourly")
    assert status == 0
    assert out.splitlines() == ["name|breach", "disk|hourly: Too few backups. Found 0, should be 2."]


def test_an_unknown_scheduler_is_reported_with_the_configured_ones(call):
    for command in ("due", "sla", "forget"):
        status, _, err = call(command, "-s", "daily,yearly")
        assert (status, err) == (
            1,
            ("backyfs: error: no scheduler 'yearly' is configured (configured are hourly, daily); write a section "
            "[yearly] for it\n"),
        )


def test_without_any_scheduler_the_error_says_what_to_configure(call, config):
    config.write_text(config.read_text().replace(SCHEDULERS, ""))
    status, _, err = call("due")
    assert status == 1
    assert "no scheduler daily, weekly or monthly is configured; write a section [daily] with interval" in err


def test_a_dry_run_lists_the_versions_to_remove_and_removes_nothing(call, config, daily):
    status, out, err = call("-m", "-s", "forget", "--dry-run", "--fields", "uid,action,reason")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"{daily[0]}|remove|older than the 3 of daily",
        f"{daily[1]}|remove|older than the 3 of daily",
        f"{daily[2]}|keep|daily 3 of 3",
        f"{daily[3]}|keep|daily 2 of 3",
        f"{daily[4]}|keep|the newest valid version of its name",
    ]
    assert left(config) == daily


def test_forget_removes_versions_that_no_schedule_needs(call, config, daily):
    status, out, err = call("forget")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "2 removed, 3 kept"
    assert left(config) == daily[2:]
    assert call("forget")[1].splitlines()[-1] == "0 removed, 3 kept"


@pytest.mark.parametrize("words", [["-s", "daily"], ["--schedulers", "hourly, daily", "disk"]])
def test_forget_with_schedulers_removes_versions_that_they_do_not_need(call, config, daily, words):
    assert call("forget", "-n", *words)[::2] == (0, "")
    assert left(config) == daily
    assert call("forget", *words)[::2] == (0, "")
    assert left(config) == daily[2:]


def test_naming_a_disabled_scheduler_keeps_only_the_newest(call, config, daily):
    config.write_text(config.read_text().replace("keep: 3", "keep: 0"))
    assert call("forget")[1].splitlines()[-1] == "0 removed, 5 kept"
    assert call("forget", "-s", "daily")[1].splitlines()[-1] == "4 removed, 1 kept"
    assert left(config) == daily[4:]


def test_an_invalid_list_of_schedulers_is_refused(call):
    for command in ("due", "sla", "forget"):
        status, _, err = call(command, "-s", 'daily,"hourly')
        assert (status, err) == (
            1, "backyfs: error: 'daily,\"hourly' is not a list of schedulers; give them as a,b\n"
        )  # fmt: skip


def test_versions_protected_in_use_or_tagged_by_others_are_kept(call, config, daily):
    call("protect", daily[0])
    call("add-tag", daily[1], "hourly")
    assert call("forget")[0] == 0
    assert left(config) == daily
    call("remove-tag", daily[1], "hourly")
    with opened(config) as repository, Job(repository.database, spec("restore")) as job:
        with repository.database.read() as connection:
            job.hold(next(version.id for version in list_versions(connection) if version.uid == daily[1]))
        status, out, err = call("forget")
    assert status == 4
    assert f"version {daily[1]} is in use by restore (process " in err
    assert out.splitlines()[-1] == "0 removed, 4 kept, 1 refused"
    assert left(config) == daily


def test_young_versions_need_force(call, config, daily):
    young = "[DEFAULTS]\ndisallow_rm_when_younger_than_days: 4"
    config.write_text(config.read_text().replace("[DEFAULTS]", young, 1))
    assert call("forget")[0] == 4
    assert left(config) == daily[1:]
    assert call("forget", "--force")[0] == 0
    assert left(config) == daily[2:]


def test_an_empty_name_means_all_for_reports_but_nothing_for_forget(call, config, daily):
    out = call("-m", "-s", "due", "", "-s", "hourly", "-f", "name,schedulers")[1]
    assert out == "disk|hourly\n"
    assert call("-m", "-s", "sla", "", "-s", "hourly")[1] == "disk|hourly: Too few backups. Found 0, should be 2.\n"
    assert call("-m", "-s", "forget", "") == (0, "", "")
    assert left(config) == daily


def test_a_version_is_kept_if_its_replacement_disappears_while_forget_runs(config, daily):
    def others_disappear(forgotten):
        with repository.database.write() as connection:
            newest = [version for version in list_versions(connection) if version.uid in daily[2:]]
            for version in newest:
                remove_version(connection, version.id)

    with opened(config) as repository:
        [scheduler] = [scheduler for scheduler in repository.config.schedulers if scheduler.name == "daily"]
        results = forget(repository, [scheduler], now=datetime.now(UTC), announce=others_disappear)
    assert [each.outcome for each in results[:2]] == [ForgetOutcome.REMOVED, ForgetOutcome.REFUSED]
    assert results[1].refusal is not None
    assert results[1].refusal.fact == "changed in the meantime and no longer qualifies for removal"
    assert left(config) == [daily[1]]


def test_an_interrupted_forget_lists_what_it_has_removed(call, config, daily, monkeypatch):
    def interrupted_after_one(repository, versions, **options):
        remove_versions(repository, versions[:1], **options)
        raise InterruptedByUser("interrupted")

    monkeypatch.setattr("backyfs.engine.versions.forget.remove_versions", interrupted_after_one)
    status, out, err = call("-m", "-s", "forget", "-f", "uid,action")
    assert (status, out, err) == (130, f"{daily[0]}|remove\n", "backyfs: error: interrupted\n")
    assert left(config) == daily[1:]


def test_a_name_restricts_forget_to_its_versions(call, config, daily):
    assert call("-m", "-s", "forget", "other") == (0, "", "")
    assert left(config) == daily
