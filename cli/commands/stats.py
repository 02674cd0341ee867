"""`backyfs stats`: show statistics of past backups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import complete_versions
from backyfs.cli.canvas import stdout_canvas
from backyfs.cli.charts import titled
from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import OptionalValue
from backyfs.cli.output import chosen_columns, fields_option, print_labelled
from backyfs.cli.stdout import run_for_output
from backyfs.cli.text import stored_text
from backyfs.engine.versions.requests import requests_of_backups
from backyfs.engine.versions.statistics import backup_statistics
from backyfs.reports.stats import LABELS, PIPE_COLUMNS, SIZES, as_rows
from backyfs.text import human_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation
    from backyfs.model import StatisticsRecord
    from backyfs.reports.values import Row

# A field of backy2 that its help does not list. It prints an object of SQLAlchemy, the same for every backup.
_METADATA = "metadata"
_METADATA_TEXT = "MetaData()"


@click.command()
@click.argument("version", required=False, callback=stored_text, shell_complete=complete_versions)
@fields_option
@click.option(
    "-l", "--limit", cls=OptionalValue, type=click.IntRange(min=0), metavar="N", help="Show the newest N only."
)
@click.option("--plot", is_flag=True, help="Also draw charts of growth, deduplication and rates.")
@click.pass_obj
@run_for_output
def command(
    invocation: Invocation, version: str | None, *, fields: str | None, limit: int | None, plot: bool
) -> None:
    """Show statistics of past backups, the oldest first: of all of them, or of those of VERSION.

    Statistics stay when versions are removed. `date`, in UTC, is when the backup ended; `read` is what was read from
    the source, `written` what was new, `dedup` what was known, `sparse` zeros. These count bytes before compression.
    `Stored` is what the new blocks take in the storage; it is empty if that is not known.
    """
    usual = PIPE_COLUMNS if invocation.form is OutputForm.PIPE else tuple(LABELS)
    as_json = invocation.form is OutputForm.JSON
    columns = usual if fields is None else chosen_columns(fields, (*LABELS, _METADATA))
    with invocation.open_repository() as repository:
        records = backup_statistics(repository, version or None, limit=limit)
        requests = requests_of_backups(repository, records) if as_json else {}
    rows = as_rows(records, requests)
    if not as_json:
        rows = [_as_backy2(row, record) for row, record in zip(rows, records, strict=True)]
    print_labelled(invocation, rows, {**LABELS, _METADATA: _METADATA}, columns, sizes=SIZES)
    if plot and not as_json:
        _plot(records)


def _as_backy2(row: Row, record: StatisticsRecord) -> Row:
    return row | {"duration_s": int(record.duration_s), _METADATA: _METADATA_TEXT}


def _plot(records: Sequence[StatisticsRecord]) -> None:
    canvas = stdout_canvas()
    growth, total = [], 0
    for record in records:
        total += record.bytes_written
        growth.append(float(total))
    charts = (
        ("Growth: new bytes so far", growth, _size),
        ("Deduplication: share of known bytes, without zeros", [_known(record) for record in records], _percent),
        ("Rate of reading", [_rate(record) for record in records], lambda rate: f"{_size(rate)}/s"),
    )
    for title, values, show in charts:
        click.echo()
        for line in titled(title, values, show, canvas.width, canvas.glyphs):
            click.echo(line)
    click.echo(f"{len(records)} backups, the oldest at the left")


def _known(record: StatisticsRecord) -> float | None:
    both = record.bytes_deduplicated + record.bytes_written
    return 100 * record.bytes_deduplicated / both if both else None


def _rate(record: StatisticsRecord) -> float | None:
    return record.bytes_read / record.duration_s if record.duration_s > 0 else None


def _size(size_bytes: float) -> str:
    return human_size(int(size_bytes))


def _percent(share: float) -> str:
    return f"{share:.0f} %"
