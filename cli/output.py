"""Print rows of fields as a table, separated by |, or as JSON."""

from __future__ import annotations

import codecs
import json
import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.lists import split_list
from backyfs.cli.options import OptionalValue
from backyfs.cli.text import printable
from backyfs.errors import UsageError
from backyfs.moments import time_text
from backyfs.reports.values import to_json
from backyfs.text import escaped, human_size, is_control

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from backyfs.cli.invocation import Invocation
    from backyfs.reports.values import Field, Object, Row

fields_option = click.option(
    "-f",
    "--fields",
    cls=OptionalValue,
    metavar="A,B",
    help="Show these columns, in this order, instead of all.",
)

_LIKE_AN_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")

_WIDE = 10_000  # columns of a table in a file, so that nothing is cut off


def print_rows(
    invocation: Invocation, rows: Sequence[Row], columns: Sequence[str], *, sizes: Collection[str] = ()
) -> None:
    """Print rows in the requested form.

    `columns` are the fields of table and pipe-separated output, in order. JSON has all fields of a row. `sizes` are
    fields in bytes whose names do not say so.
    """
    if invocation.form is OutputForm.JSON:
        _print_json(rows)
    elif invocation.form is OutputForm.PIPE:
        if invocation.header:
            click.echo("|".join(columns))
        for row in rows:
            click.echo("|".join(pipe_field(_text(row[column])) for column in columns))
    else:
        _print_table(invocation, rows, columns, sizes)


def print_labelled(
    invocation: Invocation,
    rows: Sequence[Row],
    labels: Mapping[str, str],
    columns: Sequence[str],
    *,
    sizes: Collection[str],
) -> None:
    """Print rows whose columns are not named like their fields: `labels` maps names of columns to fields."""
    if invocation.form is not OutputForm.JSON:
        rows = [{label: row[field] for label, field in labels.items()} for row in rows]
    print_rows(invocation, rows, columns, sizes=sizes)


def chosen_columns(fields: str | None, columns: Sequence[str]) -> Sequence[str]:
    """Return the columns in `--fields`, or all columns if it was not given.

    Raises:
        UsageError: there is no such column, or it is not a list.
    """
    if fields is None:
        return columns
    try:
        chosen = split_list(fields)
    except ValueError as error:
        raise UsageError("is not a list of fields", subject=repr(fields), remedy="give them as a,b") from error
    unknown = [field for field in chosen if field not in columns]
    if unknown:
        raise UsageError(f"there is no field {unknown[0]!r}", remedy=f"the fields are {', '.join(columns)}")
    return chosen


def print_object(value: Object) -> None:
    """Print one value as a JSON object."""
    _print_json(value)


def print_report(
    invocation: Invocation, value: Object, lines: Iterable[str], columns: Sequence[str] | None = None
) -> None:
    """Print a report of one object: `lines` are for people; `columns` are the fields of `-m`, by default all.

    Text in `lines` that others chose is `printable` already.
    """
    if invocation.form is OutputForm.JSON:
        print_object(value)
    elif invocation.form is OutputForm.PIPE:
        row: Row = {name: value[name] for name in columns or value}  # type: ignore[misc]  # these are not lists of rows
        print_rows(invocation, [row], list(row))
    else:
        for line in lines:
            click.echo(line)


def _print_table(
    invocation: Invocation, rows: Sequence[Row], columns: Sequence[str], sizes: Collection[str]
) -> None:
    from rich import box  # noqa: PLC0415 - rich is slow to load
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, show_header=invocation.header, pad_edge=False)
    for column in columns:
        numeric = bool(rows) and type(rows[0][column]) is int
        # Headers as Text too: for a str, rich loads the names of all emoji.
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Text, not str: names can contain markup of rich, and control characters.
        table.add_row(*(Text(printable(_table_text(invocation, name, row[name], sizes))) for name in columns))
    console = Console(width=None if sys.stdout.isatty() else _WIDE, soft_wrap=False)
    with console.capture() as drawn:  # rich itself would exit with status 1 when the reader has gone
        console.print(table)
    click.echo(drawn.get(), nl=False)


def pipe_field(text: str) -> str:
    r"""Return text as a field of pipe-separated output: no value ends a field, forges a row or controls a terminal.

    Such characters and `|` become `\x0a`, `\u202e` or `\U000e0001`. Everything else is printed as by backy2, except a
    backslash before text that looks like such an escape: it becomes `\x5c`, so that the original text can be recovered.
    """
    text = _LIKE_AN_ESCAPE.sub(r"\\x5c", text)
    return "".join(escaped(char) if char == "|" or is_control(char) else char for char in text)


def _table_text(invocation: Invocation, name: str, field: Field, sizes: Collection[str]) -> str:
    if invocation.human_sizes and (name.endswith("bytes") or name in sizes) and isinstance(field, int):
        return human_size(field)
    return _text(field)


def _text(field: Field) -> str:
    """Return a field as backy2 prints it: unquoted, empty for None, 0 and 1 for booleans, times without a zone."""
    if field is None:
        return ""
    if isinstance(field, bool):
        return str(int(field))
    if isinstance(field, datetime):
        return time_text(field)
    if isinstance(field, (str, int, float)):
        return str(field)
    if isinstance(field, dict):
        return ",".join(f"{number}:{count}" for number, count in field.items())
    return ",".join(field)


def _print_json(value: Object | Sequence[Row]) -> None:
    # In other charsets, use JSON's escapes, because those of the stream are not JSON.
    text = json.dumps(to_json(value), indent=2, ensure_ascii=codecs.lookup(sys.stdout.encoding).name != "utf-8")
    # Of the characters that control a terminal, `json` escapes only C0; remaining newlines are its own. Bytes of a
    # path that are not UTF-8 are lone surrogates here.
    click.echo("".join(_json_escaped(char) if char != "\n" and is_control(char) else char for char in text))


def _json_escaped(char: str) -> str:
    return json.dumps(char)[1:-1]
