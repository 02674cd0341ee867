"""Moments and tags: from what people write to what is stored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backyfs.cli.moments import MOMENT
from backyfs.cli.tags import TAGS
from backyfs.model import NAME_LENGTH
from backyfs.moments import date_text, time_name, time_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-12-31", datetime(2026, 12, 31, tzinfo=UTC)),
        ("2026-12-31 23:59", datetime(2026, 12, 31, 23, 59, tzinfo=UTC)),
        ("2026-12-31 23:59:58", datetime(2026, 12, 31, 23, 59, 58, tzinfo=UTC)),
        ("2026-12-31T23:59", datetime(2026, 12, 31, 23, 59, tzinfo=UTC)),
        ("2026-12-31T23:59:58", datetime(2026, 12, 31, 23, 59, 58, tzinfo=UTC)),
        ("2028-02-29", datetime(2028, 2, 29, tzinfo=UTC)),
    ],
)
def test_a_date_is_in_utc(text: str, expected: datetime) -> None:
    assert MOMENT.convert(text, None, None) == expected


@pytest.mark.parametrize(
    ("text", "later"),
    [
        ("+90s", timedelta(seconds=90)),
        ("+5m", timedelta(minutes=5)),
        ("+36h", timedelta(hours=36)),
        ("+30d", timedelta(days=30)),
        ("+2w", timedelta(weeks=2)),
        ("+0d", timedelta(0)),
    ],
)
def test_a_plus_counts_from_now(text: str, later: timedelta) -> None:
    before = datetime.now(UTC)
    assert before + later <= MOMENT.convert(text, None, None) <= datetime.now(UTC) + later


@pytest.mark.parametrize(
    "text",
    ["", "tomorrow", "2027-02-29", "2026-12-31 24:00", "2026-12-31T23:59:58Z", "31.12.2026", "30d", "-30d", "+30y",
     "+999999w", "+9999999d", "+\u0663d", "\udcff"],
)  # fmt: skip
def test_the_error_for_an_invalid_date_shows_a_valid_one(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is not a date; give YYYY-MM-DD, .*, or \+30d"):
        MOMENT.convert(text, None, None)


@given(st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(microsecond=0)))
@example(datetime(1, 1, 1, tzinfo=UTC))
@example(datetime.max.replace(microsecond=0, tzinfo=UTC))
def test_a_date_as_shown_can_be_entered(moment: datetime) -> None:
    assert MOMENT.convert(time_text(moment), None, None) == moment
    assert MOMENT.convert(date_text(moment), None, None).date() == moment.date()


def test_a_year_has_four_digits_in_every_form() -> None:
    moment = datetime(1, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    assert date_text(moment) == "0001-02-03"
    assert time_text(moment) == "0001-02-03 04:05:06"
    assert time_text(moment, separator="T", to="minutes") == "0001-02-03T04:05"
    assert time_name(moment) == "0001-02-03T04-05-06"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("daily", ("daily",)),
        ("a,b", ("a", "b")),
        ('keep,"we,ird"', ("keep", "we,ird")),
        ('"say ""yes"""', ('say "yes"',)),
        ("a b, c", ("a b", "c")),
        (" a\t,\n\u00a0b\n", ("a", "b")),
        ('a, "b,c" , d', ("a", "b,c", "d")),
        ('" a "," "" "', ("a", '"')),
        ('5" disk,x', ('5" disk', "x")),
        ("\u00fcml,\u65e5", ("\u00fcml", "\u65e5")),
        ("x" * NAME_LENGTH, ("x" * NAME_LENGTH,)),
    ],
)
def test_tags_are_a_line_of_csv(text: str, expected: tuple[str, ...]) -> None:
    assert TAGS.convert(text, None, None) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "a,", ",a", "a, ,b", "a,,b", '""', '" "', "x" * (NAME_LENGTH + 1), "\udcff", 'a,"b', '"a" b', '"a"b',
     "a\nb"],
)  # fmt: skip
def test_invalid_tags_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"give (them|tags) as a,b"):
        TAGS.convert(text, None, None)
