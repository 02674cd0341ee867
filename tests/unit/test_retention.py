"""Retention: what is due, which breaches there are, and which versions can be removed, at given times."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backyfs.config import Scheduler
from backyfs.model import Version, VersionId, VersionStatus, VersionUid
from backyfs.retention import automatic_tags, due_tags, find_breaches, find_due, plan_removal

DAY = 86400
NOW = datetime(2024, 3, 15, 12, tzinfo=UTC)
DAILY = Scheduler(name="daily", interval_s=DAY, keep=3, sla_s=3600)
WEEKLY = Scheduler(name="weekly", interval_s=7 * DAY, keep=2, sla_s=DAY)
HOURLY = Scheduler(name="hourly", interval_s=3600, keep=0, sla_s=600)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def version(
    created: str | datetime,
    *tags: str,
    name: str = "disk",
    status: VersionStatus = VersionStatus.VALID,
    protected: bool = False,
    expire: datetime | None = None,
) -> Version:
    moment = at(created) if isinstance(created, str) else created
    number = int(moment.timestamp())
    return Version(
        id=VersionId(number),
        uid=VersionUid(f"uid-{moment:%m-%d}"),
        created_at=moment,
        name=name,
        snapshot_name="",
        size_bytes=0,
        status=status,
        protected=protected,
        expire_at=expire,
        tags=tuple(sorted(tags)),
    )


# Automatic tags

ALL = ("b_daily", "b_weekly", "b_monthly")


@pytest.mark.parametrize(
    ("last", "now", "expected"),
    [
        ("2024-03-15T00:00:00", "2024-03-15T23:59:59", ()),
        ("2024-03-14T23:59:59", "2024-03-15T00:00:00", ("b_daily",)),
        ("2024-03-09T00:00:00", "2024-03-15T23:59:59", ("b_daily",)),
        ("2024-03-08T23:59:59", "2024-03-15T00:00:00", ("b_daily", "b_weekly")),
        ("2024-02-15T23:59:59", "2024-03-15T00:00:00", ALL),
        ("2024-02-16T00:00:00", "2024-03-15T23:59:59", ("b_daily", "b_weekly")),
        ("2024-01-31T12:00:00", "2024-02-28T12:00:00", ("b_daily", "b_weekly")),
        ("2024-01-31T12:00:00", "2024-02-29T12:00:00", ALL),  # a leap year
        ("2023-01-31T12:00:00", "2023-02-28T12:00:00", ALL),
        ("2024-02-29T12:00:00", "2024-03-28T12:00:00", ("b_daily", "b_weekly")),
        ("2024-02-29T12:00:00", "2024-03-29T12:00:00", ALL),
        ("2023-12-31T12:00:00", "2024-01-30T12:00:00", ("b_daily", "b_weekly")),
        ("2023-12-31T12:00:00", "2024-01-31T12:00:00", ALL),
        ("2020-01-01T12:00:00", "2024-01-01T12:00:00", ALL),
        ("2024-03-20T12:00:00", "2024-03-15T12:00:00", ALL),  # dated in the future, so it does not count
        ("2024-03-15T12:04:00", "2024-03-15T12:00:00", ()),  # the clock of its host is a little ahead
    ],
)
def test_a_tag_is_added_when_the_last_version_with_it_is_old_enough(
    last: str, now: str, expected: tuple[str, ...]
) -> None:
    assert automatic_tags([version(last, *ALL)], at(now)) == expected


def test_without_versions_all_tags_are_added() -> None:
    assert automatic_tags([], NOW) == ALL


def test_each_tag_depends_on_its_own_last_version_of_any_status() -> None:
    versions = [
        version("2024-01-01", "b_monthly", status=VersionStatus.INVALID),
        version("2024-03-14", "b_weekly", "b_daily", status=VersionStatus.INCOMPLETE),
        version("2024-03-15", "daily"),
    ]
    assert automatic_tags(versions, NOW) == ("b_daily", "b_monthly")


# Due


@pytest.mark.parametrize(
    ("last", "since"),
    [
        ("2024-03-14T13:00:00", None),  # exactly interval minus sla ago
        ("2024-03-14T12:59:59", "2024-03-15T11:59:59"),
        ("2024-02-28T12:00:00", "2024-02-29T11:00:00"),
    ],
)
def test_a_backup_is_due_after_interval_minus_sla(last: str, since: str | None) -> None:
    due = find_due([version(last, "daily")], [DAILY], NOW)
    assert [each.due_since for each in due] == ([] if since is None else [at(since)])


def test_a_name_without_a_valid_version_of_the_scheduler_has_been_due_since_1970() -> None:
    versions = [version("2024-03-15", "daily", status=VersionStatus.INVALID), version("2024-03-15", "other")]
    [due] = find_due(versions, [DAILY, WEEKLY, HOURLY], NOW)
    assert (due.name, due.schedulers, due.due_since) == ("disk", ("daily", "weekly"), at("1970-01-01"))
    assert due.expire_at == NOW + 3 * timedelta(days=7)  # of the longest: (keep + 1) intervals


def test_due_tags_depend_on_the_name() -> None:
    versions = [version("2024-03-15", "daily"), version("2024-03-08", "weekly")]
    assert due_tags(versions, [DAILY, WEEKLY, HOURLY], NOW, name="disk") == ("weekly",)
    assert due_tags([], [DAILY, WEEKLY, HOURLY], NOW, name="disk") == ("daily", "weekly")
    assert due_tags(versions, [], NOW, name="disk") == ()


def test_a_tag_stored_with_a_blank_by_an_earlier_release_belongs_to_its_schedule() -> None:
    versions = [version("2024-03-01", "daily", " weekly"), version("2024-03-15T12:00:00", "\tdaily ", "weekly")]
    assert find_due(versions, [DAILY, WEEKLY], NOW) == []
    assert [one.reason for one in plan_removal(versions, [DAILY], [WEEKLY], NOW)] == [
        "of a schedule that was not asked for: weekly", "the newest valid version of its name",
    ]  # fmt: skip


def test_a_scheduler_that_keeps_nothing_is_never_due() -> None:
    assert find_due([version("2000-01-01")], [HOURLY], NOW) == []


def test_the_longest_overdue_come_first() -> None:
    versions = [version("2024-03-10", "daily", name="b"), version("2024-03-12", "daily", name="a")]
    assert [due.name for due in find_due(versions, [DAILY], NOW, names=["never"])] == ["never", "b", "a"]


# Breaches


def sentences(*versions: Version, schedulers: tuple[Scheduler, ...] = (DAILY,)) -> list[str]:
    return [breach.sentence for breach in find_breaches(versions, schedulers, NOW)]


def days(*numbers: int) -> list[Version]:
    return [version(f"2024-03-{number:02}T12:00:00", "daily") for number in numbers]


def test_backups_on_schedule_are_not_breaches() -> None:
    assert sentences(*days(13, 14, 15)) == []
    assert sentences(*days(11, 12, 13, 14, 15)) == []


def test_versions_kept_by_another_schedule_are_neither_too_old_nor_too_many() -> None:
    weeks = [version(day, "daily", "weekly") for day in ("2024-03-01T12:00:00", "2024-03-08T12:00:00")]
    versions = [*weeks, *days(13, 14, 15)]
    assert sentences(*versions, schedulers=(DAILY, WEEKLY)) == []
    assert [breach.sentence for breach in find_breaches(versions, [DAILY], NOW, others=[DAILY, WEEKLY])] == []
    alone = sentences(*versions)
    assert [sentence.split(".")[0] for sentence in alone] == [
        "daily: Version uid-03-08 is not in SLA range",
        "daily: Version uid-03-13 is not in SLA range",
        "daily: Backup too old",
    ]


def test_a_version_that_no_schedule_needs_breaches_all_its_schedules() -> None:
    weeks = [version(f"2024-{day}T12:00:00", "daily", "weekly") for day in
             ("01-19", "01-26", "02-02", "02-09", "02-16", "02-23", "03-01", "03-08")]  # fmt: skip
    found = sentences(*weeks, *days(13, 14, 15), schedulers=(DAILY, WEEKLY))
    assert "daily: Too many backups. Found 7, should be 3." in found  # without the newest 2 + 2 weekly ones
    assert "weekly: Too many backups. Found 8, should be 2." in found


def test_a_disabled_schedule_does_not_keep_versions_from_being_too_old() -> None:
    versions = [version("2024-03-01T12:00:00", "daily", "hourly"), *days(13, 14, 15)]
    found = [breach.sentence for breach in find_breaches(versions, [DAILY], NOW, others=[HOURLY])]
    assert any("Backup too old. Found version_uid uid-03-01" in sentence for sentence in found)


def test_too_few_and_too_many_versions_are_reported() -> None:
    assert sentences(*days(14, 15)) == ["daily: Too few backups. Found 2, should be 3."]
    assert sentences(*days(10, 11, 12, 13, 14, 15))[0] == "daily: Too many backups. Found 6, should be 3."


def test_a_name_without_backups_has_too_few() -> None:
    [breach] = find_breaches([], [DAILY], NOW, names=["disk"])
    assert (breach.name, breach.scheduler) == ("disk", "daily")
    assert breach.sentence == "daily: Too few backups. Found 0, should be 3."


def test_a_latest_backup_that_is_too_old_is_reported() -> None:
    assert sentences(*days(11, 12, 13))[0] == (
        "daily: Latest backup is too old. Version uid-03-13 has date 2024-03-13 12:00:00, "
        "new backup due since 2024-03-14 13:00:00."
    )


def test_a_gap_is_reported() -> None:
    assert sentences(*days(12, 14, 15)) == [
        ("daily: Version uid-03-14 is not in SLA range. It was created at 2024-03-14 12:00:00 and shoud be between "
        "2024-03-13 11:00:00 and 2024-03-13 13:00:00.")
    ]


def test_a_gap_over_a_leap_day_is_counted_in_days() -> None:
    leap = [version(day, "daily") for day in ("2024-02-28T12:00:00", "2024-02-29T12:00:00", "2024-03-01T12:00:00")]
    assert find_breaches(leap, [DAILY], at("2024-03-01T12:30:00")) == []
    common = [version(day, "daily") for day in ("2023-02-27T12:00:00", "2023-02-28T12:00:00", "2023-03-01T12:00:00")]
    assert find_breaches(common, [DAILY], at("2023-03-01T12:30:00")) == []


def test_an_oldest_backup_that_should_have_been_removed_is_reported() -> None:
    assert sentences(*days(10, 11, 12, 13, 14))[-1] == (
        "daily: Backup too old. Found version_uid uid-03-10 with backup date 2024-03-10 12:00:00. "
        "Oldest allowed date is 2024-03-11 11:00:00."
    )


def test_spans_beyond_the_calendar_are_not_an_error() -> None:
    endless = Scheduler(name="daily", interval_s=10**11, keep=10**6, sla_s=10**11)
    assert [breach.sentence for breach in find_breaches(days(15), [endless], NOW)] == [
        "daily: Too few backups. Found 1, should be 1000000."
    ]
    assert [due.expire_at.year for due in find_due([], [endless], NOW, names=["disk"])] == [9999]


# Removal


def decisions(
    *versions: Version, chosen: tuple[Scheduler, ...] = (DAILY,), others: tuple[Scheduler, ...] = (WEEKLY,)
) -> list[tuple[str, bool, str]]:
    return [(each.version.uid, each.needed, each.reason) for each in plan_removal(versions, chosen, others, NOW)]


def test_the_newest_of_a_schedule_are_needed_and_older_ones_are_not() -> None:
    assert decisions(*days(10, 11, 12, 13, 14)) == [
        ("uid-03-10", False, "older than the 3 of daily"),
        ("uid-03-11", False, "older than the 3 of daily"),
        ("uid-03-12", True, "daily 3 of 3"),
        ("uid-03-13", True, "daily 2 of 3"),
        ("uid-03-14", True, "the newest valid version of its name"),
    ]


def test_one_schedule_is_enough_to_be_needed() -> None:
    versions = [version("2024-03-01", "daily", "weekly"), *days(11, 12, 13, 14)]
    assert decisions(*versions, chosen=(DAILY, WEEKLY), others=())[0] == ("uid-03-01", True, "weekly 1 of 2")
    assert decisions(*versions)[0] == ("uid-03-01", True, "of a schedule that was not asked for: weekly")


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (version("2024-01-01", "daily", protected=True), "protected"),
        (version("2024-01-01", "daily", expire=at("2024-03-16")), "expires 2024-03-16 00:00:00"),
        (version("2024-01-01", "mine"), "of no schedule: it has the tag of none"),
        (version("2024-01-01"), "of no schedule: it has the tag of none"),
    ],
)
def test_some_versions_are_kept_regardless_of_the_schedule(odd: Version, reason: str) -> None:
    assert decisions(odd, *days(11, 12, 13, 14))[0] == (odd.uid, True, reason)


def test_an_expired_version_is_removed_by_the_schedule() -> None:
    old = version("2024-01-01", "daily", expire=at("2024-03-14"))
    assert decisions(old, *days(11, 12, 13, 14))[0][1] is False


def test_an_invalid_version_is_removed_if_enough_valid_ones_are_newer() -> None:
    broken = version("2024-03-11", "daily", status=VersionStatus.INVALID)
    assert decisions(broken, *days(13, 14))[0] == (
        broken.uid, True, "invalid, but not enough valid ones are newer",
    )  # fmt: skip
    assert decisions(broken, *days(12, 13, 14))[0] == (broken.uid, False, "invalid, and enough valid ones are newer")
    assert decisions(*days(8, 9, 10), broken)[-1][1] is True


def test_the_newest_version_is_kept_even_if_it_is_invalid_and_keep_is_0() -> None:
    keeps_none = replace(DAILY, keep=0)
    broken = version("2024-03-11", "daily", status=VersionStatus.INVALID)
    assert decisions(broken, chosen=(keeps_none,)) == [(broken.uid, True, "invalid: no valid version is newer")]
    assert decisions(*days(10), broken, chosen=(keeps_none,))[-1][1] is True


def test_with_keep_0_only_the_newest_valid_version_is_needed() -> None:
    assert decisions(*days(10, 11), chosen=(replace(DAILY, keep=0),)) == [
        ("uid-03-10", False, "daily keeps none"),
        ("uid-03-11", True, "the newest valid version of its name"),
    ]


def test_an_incomplete_version_is_removed_if_a_valid_one_is_newer() -> None:
    begun = version("2024-03-13", status=VersionStatus.INCOMPLETE)
    assert decisions(begun, *days(14))[0] == (begun.uid, False, "incomplete, and a valid version is newer")
    assert decisions(*days(12), begun)[-1] == (
        begun.uid, True, "incomplete, and can be continued: no valid version is newer",
    )  # fmt: skip


def test_names_are_counted_separately() -> None:
    versions = [version(f"2024-03-{day:02}", "daily", name=name) for name in "ab" for day in (10, 11, 12)]
    assert [needed for _, needed, _ in decisions(*versions)] == [True] * 6


tag_sets = st.sets(st.sampled_from(["daily", "weekly", "mine"]))
histories = st.lists(
    st.builds(
        version,
        st.integers(0, 400).map(lambda hours: NOW - timedelta(hours=hours)),
        name=st.sampled_from("ab"),
        status=st.sampled_from(VersionStatus),
        protected=st.booleans(),
    ),
    max_size=30,
)


@given(histories, st.data())
def test_a_removal_does_not_affect_counts_of_schedules_and_needs_no_second_run(
    history: list[Version], data: st.DataObject
) -> None:
    history = [
        replace(each, id=VersionId(number), tags=tuple(sorted(data.draw(tag_sets))))
        for number, each in enumerate(history)
    ]
    plan = plan_removal(history, [DAILY, WEEKLY], [], NOW)
    assert len(plan) == len(history)
    left = [each.version for each in plan if each.needed]
    for name in "ab":
        for scheduler in (DAILY, WEEKLY):
            before, after = (
                [
                    each.id
                    for each in sorted(of, key=lambda each: (each.created_at, each.id))
                    if each.name == name and each.status is VersionStatus.VALID and scheduler.name in each.tags
                ][-scheduler.keep :]
                for of in (history, left)
            )
            assert before == after
        valid = [each for each in history if each.name == name and each.status is VersionStatus.VALID]
        assert not valid or max(valid, key=lambda each: (each.created_at, each.id)) in left
    assert all(each.needed for each in plan_removal(left, [DAILY, WEEKLY], [], NOW))


# Dates in the future


def test_a_version_dated_in_the_future_does_not_suppress_automatic_tags() -> None:
    ahead = version("2034-01-01T00:00:00", *ALL)
    assert automatic_tags([ahead], NOW) == ALL
    assert automatic_tags([version("2024-03-15T01:00:00", *ALL), ahead], NOW) == ()


def test_a_version_dated_in_the_future_does_not_change_what_is_due() -> None:
    old, ahead = version("2024-03-10T12:00:00", "daily"), version("2034-01-01T00:00:00", "daily")
    assert find_due([old, ahead], [DAILY], NOW) == find_due([old], [DAILY], NOW)
    assert [each.name for each in find_due([ahead], [DAILY], NOW)] == ["disk"]
    assert find_breaches([old, ahead], [DAILY], NOW) == find_breaches([old], [DAILY], NOW)


def test_a_version_dated_in_the_future_is_kept_and_does_not_count() -> None:
    days = [version(f"2024-03-{day:02}T12:00:00", "daily") for day in range(10, 16)]
    ahead = version("2034-01-01T00:00:00", "daily")
    decisions = plan_removal([*days, ahead], [DAILY], [], NOW)
    assert [decision.version for decision in decisions if decision.needed] == [*days[-3:], ahead]
    assert decisions[-1].reason == "dated in the future, 2034-01-01 00:00:00"


def test_the_newest_valid_version_is_kept_beside_one_dated_in_the_future() -> None:
    old, ahead = version("2024-03-10T12:00:00", "daily"), version("2034-01-01T00:00:00", "daily")
    keeps_none = replace(DAILY, keep=0)
    assert all(decision.needed for decision in plan_removal([old, ahead], [keeps_none], [], NOW))
