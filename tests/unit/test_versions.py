"""Versions: how users refer to them, and the order in which they are listed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from backyfs.errors import VersionNotFoundError
from backyfs.metadata.db.tables import versions
from backyfs.metadata.records.versions import create_version, find_version, list_versions, set_status
from backyfs.model import Version, VersionStatus

if TYPE_CHECKING:

    from backyfs.metadata.db.database import Connection

NOON = datetime(2024, 1, 10, 12, 0, 0, tzinfo=UTC)
UID = "6f1c0a2e-1111-4222-8333-444444444444"
NEIGHBOUR = "6f1c0a2e-9999-4222-8333-444444444444"


def add(
    connection: Connection,
    name: str = "disk",
    created_at: datetime = NOON,
    status: VersionStatus = VersionStatus.VALID,
    *,
    uid: str | None = None,
    tags: tuple[str, ...] = (),
    snapshot_name: str = "",
) -> str:
    """Insert a version and return its uid."""
    version = create_version(
        connection, name=name, snapshot_name=snapshot_name, size_bytes=4096, created_at=created_at, tag_names=tags
    )
    set_status(connection, version.id, status)
    if uid is not None:
        connection.execute(update(versions).where(versions.c.id == version.id).values(uid=uid))
    return uid or version.uid


def refusal(connection: Connection, wanted: str) -> str:
    """Return the message of the error for a name."""
    with pytest.raises(VersionNotFoundError) as caught:
        find_version(connection, wanted)
    return str(caught.value)


# By uid


def test_a_version_is_found_by_its_uid(connection: Connection) -> None:
    add(connection, uid=UID)
    add(connection, uid=NEIGHBOUR)
    assert find_version(connection, UID).uid == UID


@pytest.mark.parametrize("prefix", ["6f1c", "6f1c0a2e", "6f1c0a2e-", "6f1c0a2e-1111-4222-8333-44444444444"])
def test_a_version_is_found_by_the_beginning_of_its_uid(connection: Connection, prefix: str) -> None:
    add(connection, uid=UID)
    add(connection, uid="7" + UID[1:])
    assert find_version(connection, prefix).uid == UID


@pytest.mark.parametrize("wanted", ["6F1C", UID.upper()])
def test_upper_case_digits_of_a_uid_are_accepted(connection: Connection, wanted: str) -> None:
    add(connection, uid=UID)
    assert find_version(connection, wanted).uid == UID


@pytest.mark.parametrize("status", list(VersionStatus))
def test_a_uid_finds_its_version_in_any_status(connection: Connection, status: VersionStatus) -> None:
    add(connection, uid=UID, status=status)
    assert find_version(connection, UID).status is status


@pytest.mark.parametrize("wanted", ["", "6", "6f", "6f1"])
def test_fewer_than_four_digits_are_refused(connection: Connection, wanted: str) -> None:
    add(connection, uid=UID)
    assert refusal(connection, wanted) == (
        f"{wanted!r} does not name a version; give a uid, 4 or more digits of one, NAME@latest or NAME@YYYY-MM-DD; "
        "list the versions to see which there are"
    )


@pytest.mark.parametrize("wanted", ["%%%%", "6f1%", "6f1_", "____", "6f1c%", "6f1c_1111", "6f1c\n", "6f1c ", "disk"])
def test_an_invalid_beginning_of_a_uid_is_refused(connection: Connection, wanted: str) -> None:
    add(connection, uid=UID)
    assert refusal(connection, wanted).startswith(f"{wanted!r} does not name a version; give a uid, ")


def test_more_digits_than_a_uid_has_are_refused(connection: Connection) -> None:
    add(connection, uid=UID)
    assert refusal(connection, UID + "4").startswith(f"'{UID}4' does not name a version; ")


def test_an_unknown_beginning_of_a_uid_is_refused(connection: Connection) -> None:
    add(connection, uid=UID)
    assert refusal(connection, "abcd") == (
        "no version has a uid that begins with abcd; list the versions to see which there are"
    )


def test_the_beginning_of_two_uids_is_refused_with_both(connection: Connection) -> None:
    add(connection, created_at=NOON, uid=UID)
    add(connection, created_at=NOON + timedelta(days=1), uid=NEIGHBOUR)
    assert refusal(connection, "6f1c0") == (
        f"6f1c0 is the beginning of several uids ({NEIGHBOUR}, {UID}); give more digits"
    )


def test_the_beginning_of_many_uids_is_refused_with_five_of_them(connection: Connection) -> None:
    for number in range(7):
        add(connection, uid=f"6f1c0a2{number}" + UID[8:])
    assert refusal(connection, "6f1c0a2").count(UID[8:]) == 5


def test_a_version_is_found_with_its_tags(connection: Connection) -> None:
    add(connection, uid=UID, tags=("weekly", "daily"))
    assert find_version(connection, UID).tags == ("daily", "weekly")


# NAME@latest


def test_latest_is_the_newest_version(connection: Connection) -> None:
    add(connection, created_at=NOON - timedelta(days=1))
    newest = add(connection, created_at=NOON)
    add(connection, created_at=NOON - timedelta(days=2))
    assert find_version(connection, "disk@latest").uid == newest


def test_of_versions_with_equal_dates_latest_is_the_one_made_last(connection: Connection) -> None:
    add(connection)
    newest = add(connection)
    assert find_version(connection, "disk@latest").uid == newest


@pytest.mark.parametrize("status", [VersionStatus.INCOMPLETE, VersionStatus.INVALID])
def test_latest_skips_invalid_versions(connection: Connection, status: VersionStatus) -> None:
    valid = add(connection)
    add(connection, created_at=NOON + timedelta(days=1), status=status)
    assert find_version(connection, "disk@latest").uid == valid


def test_latest_considers_only_one_name(connection: Connection) -> None:
    wanted = add(connection, "disk")
    add(connection, "disk2", NOON + timedelta(days=1))
    add(connection, "DISK", NOON + timedelta(days=1))
    assert find_version(connection, "disk@latest").uid == wanted


@pytest.mark.parametrize("name", ["root@vm", "a@b@c", "@", "vm@2024-01-10", "vm@latest", 'backup, "weekly" é 100%'])
def test_a_name_may_contain_anything_even_an_at_sign(connection: Connection, name: str) -> None:
    add(connection, name.rpartition("@")[0])
    wanted = add(connection, name)
    assert find_version(connection, f"{name}@latest").uid == wanted
    assert find_version(connection, f"{name}@2024-01-10").uid == wanted


def test_an_unknown_name_is_refused(connection: Connection) -> None:
    add(connection)
    assert refusal(connection, "disc@latest") == "no version is named 'disc'; list the versions to see which there are"


@pytest.mark.parametrize("wanted", ["di%@latest", "dis_@latest", "%@latest"])
def test_a_name_is_not_a_pattern(connection: Connection, wanted: str) -> None:
    add(connection)
    assert refusal(connection, wanted).startswith("no version is named ")


def test_a_name_without_a_valid_version_is_refused(connection: Connection) -> None:
    uid = add(connection, status=VersionStatus.INCOMPLETE)
    assert refusal(connection, "disk@latest") == (
        f"'disk' has no valid version; the backup of the newest one, {uid} of 2024-01-10 12:00:00 UTC, was "
        "interrupted; continue its backup"
    )


def test_a_name_without_a_version_at_that_time_is_refused(connection: Connection) -> None:
    add(connection)
    assert refusal(connection, "disk@2023-01-01") == (
        "'disk' has no valid version at or before 2023-01-01 UTC; list the versions to see which there are"
    )


def test_if_all_are_damaged_the_error_says_how_to_use_the_newest(connection: Connection) -> None:
    add(connection, created_at=NOON - timedelta(days=1), status=VersionStatus.INVALID)
    uid = add(connection, status=VersionStatus.INVALID)
    add(connection, created_at=NOON + timedelta(days=1), status=VersionStatus.INCOMPLETE)
    for wanted in ("disk@latest", "disk@2024-01-10"):
        reason = refusal(connection, wanted)
        assert f"the newest damaged one is {uid} of 2024-01-10 12:00:00 UTC, with 0 of 1 blocks known to be" in reason
        assert "a restore writes everything else and lists the bad ranges" in reason


# Dates in the future


def test_latest_is_the_newest_version_that_is_not_dated_in_the_future(connection: Connection) -> None:
    uid = add(connection, created_at=NOON - timedelta(days=1))
    ahead = add(connection, created_at=NOON + timedelta(days=3650))
    assert find_version(connection, "disk@latest", now=NOON).uid == uid
    assert find_version(connection, "disk@2099-01-01", now=NOON).uid == ahead
    assert find_version(connection, "disk@latest", now=NOON + timedelta(days=3650)).uid == ahead


def test_by_default_the_time_of_this_host_is_used(connection: Connection) -> None:
    uid = add(connection)
    add(connection, created_at=datetime.now(UTC) + timedelta(hours=1))
    assert find_version(connection, "disk@latest").uid == uid


def test_a_date_slightly_ahead_is_not_in_the_future(connection: Connection) -> None:
    add(connection)
    uid = add(connection, created_at=NOON + timedelta(minutes=4))
    assert find_version(connection, "disk@latest", now=NOON).uid == uid


def test_if_all_are_dated_in_the_future_the_error_says_so(connection: Connection) -> None:
    uid = add(connection, created_at=NOON + timedelta(days=2))
    add(connection, created_at=NOON + timedelta(days=1))
    with pytest.raises(VersionNotFoundError) as caught:
        find_version(connection, "disk@latest", now=NOON)
    assert str(caught.value) == (
        f"all valid versions of 'disk' are dated in the future, the newest one, {uid}, at 2024-01-12 12:00:00 UTC; "
        "check the clock of this host, or give a uid"
    )


# NAME@date


@pytest.mark.parametrize(
    ("moment", "found"),
    [
        ("2024-01-10", True),            # the whole day
        ("2024-01-10T12:34", True),      # the whole minute
        ("2024-01-10T12:34:56", True),   # the whole second
        ("2024-01-10T12:34:57", True),
        ("2024-01-10T12:35", True),
        ("2024-01-11", True),
        ("9998-12-31", True),
        ("2024-01-10T12:34:55", False),
        ("2024-01-10T12:33", False),
        ("2024-01-10T00:00", False),
        ("2024-01-09", False),
        ("0001-01-01", False),
    ],
)
def test_a_version_is_found_at_or_before_a_moment(connection: Connection, moment: str, *, found: bool) -> None:
    uid = add(connection, created_at=datetime(2024, 1, 10, 12, 34, 56, 789_000, tzinfo=UTC))
    if found:
        assert find_version(connection, f"disk@{moment}").uid == uid
    else:
        assert refusal(connection, f"disk@{moment}") == (
            f"'disk' has no valid version at or before {moment} UTC; list the versions to see which there are"
        )


@pytest.mark.parametrize(
    ("created_at", "found"),
    [
        (datetime(2024, 1, 10, 23, 59, 59, 999_999, tzinfo=UTC), True),
        (datetime(2024, 1, 11, 0, 0, 0, 0, tzinfo=UTC), False),
    ],
)
def test_a_day_ends_at_midnight(connection: Connection, created_at: datetime, *, found: bool) -> None:
    uid = add(connection, created_at=created_at)
    if found:
        assert find_version(connection, "disk@2024-01-10").uid == uid
    else:
        assert "no valid version at or before 2024-01-10 UTC" in refusal(connection, "disk@2024-01-10")


def test_a_date_finds_the_newest_of_the_versions_before_it(connection: Connection) -> None:
    add(connection, created_at=NOON - timedelta(days=2))
    wanted = add(connection, created_at=NOON - timedelta(days=1))
    add(connection, created_at=NOON)
    assert find_version(connection, "disk@2024-01-09").uid == wanted


def test_a_date_skips_invalid_versions(connection: Connection) -> None:
    valid = add(connection, created_at=NOON - timedelta(days=5))
    add(connection, created_at=NOON - timedelta(days=1), status=VersionStatus.INVALID)
    add(connection, created_at=NOON, status=VersionStatus.INCOMPLETE)
    assert find_version(connection, "disk@2024-01-10").uid == valid


def test_dates_are_in_utc(connection: Connection) -> None:
    uid = add(connection, created_at=datetime(2024, 1, 11, 1, 30, tzinfo=timezone(timedelta(hours=2))))
    found = find_version(connection, "disk@2024-01-10")
    assert found.uid == uid
    assert found.created_at == datetime(2024, 1, 10, 23, 30, tzinfo=UTC)
    assert found.created_at.tzinfo is UTC


@pytest.mark.parametrize(
    "moment",
    ["", "Latest", "yesterday", "2024", "2024-01", "2024-13-01", "2024-02-30", "2024-01-10 12:00", "2024-01-10T12",
     "2024-01-10T25:00", "2024-01-10T12:00:00Z", "20240110", "9999-12-31"],
)  # fmt: skip
def test_an_invalid_moment_is_refused(connection: Connection, moment: str) -> None:
    add(connection)
    assert refusal(connection, f"disk@{moment}") == (
        f"'disk@{moment}' does not name a version; write `latest` or a time in UTC after the @, as YYYY-MM-DD or "
        "YYYY-MM-DDTHH:MM"
    )


# Listing


def test_an_empty_repository_lists_nothing(connection: Connection) -> None:
    assert list_versions(connection) == []


def test_versions_are_listed_by_name_then_date_then_order_of_creation(connection: Connection) -> None:
    b_late = add(connection, "b", NOON + timedelta(hours=1))
    b_early = add(connection, "b", NOON)
    a_first = add(connection, "a", NOON + timedelta(days=9))
    a_second = add(connection, "a", NOON + timedelta(days=9))
    assert [version.uid for version in list_versions(connection)] == [a_first, a_second, b_early, b_late]


def test_the_versions_of_one_name_can_be_listed(connection: Connection) -> None:
    add(connection, "a", tags=("x",))
    wanted = add(connection, "b", tags=("y",))
    add(connection, "B")
    assert [(version.uid, version.tags) for version in list_versions(connection, name="b")] == [(wanted, ("y",))]


def test_a_listed_version_has_all_its_fields(connection: Connection) -> None:
    made = create_version(
        connection,
        name="disk",
        snapshot_name="before the upgrade",
        size_bytes=(10 << 40) + 1,
        created_at=datetime(2024, 1, 10, 12, 0, 0, 123_456, tzinfo=UTC),
        tag_names=["weekly", "daily", "weekly"],
        expire_at=datetime(2025, 1, 1, tzinfo=UTC),
    )
    assert list_versions(connection) == [made]
    assert made == Version(
        id=made.id,
        uid=made.uid,
        created_at=datetime(2024, 1, 10, 12, 0, 0, 123_456, tzinfo=UTC),
        name="disk",
        snapshot_name="before the upgrade",
        size_bytes=10995116277761,
        status=VersionStatus.INCOMPLETE,
        protected=False,
        expire_at=datetime(2025, 1, 1, tzinfo=UTC),
        tags=("daily", "weekly"),
    )


def test_each_version_is_listed_with_its_own_tags(connection: Connection) -> None:
    add(connection, "a", tags=("z", "y"))
    add(connection, "b")
    add(connection, "c", tags=("y",))
    assert [version.tags for version in list_versions(connection)] == [("y", "z"), (), ("y",)]


def test_the_status_of_a_version_can_be_changed(connection: Connection) -> None:
    version = create_version(connection, name="disk", snapshot_name="", size_bytes=0, created_at=NOON)
    set_status(connection, version.id, VersionStatus.VALID)
    assert [listed.status for listed in list_versions(connection)] == [VersionStatus.VALID]
