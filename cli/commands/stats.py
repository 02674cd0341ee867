"""`backyfs stats`: show what backups did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import complete_versions
from backyfs.cli.canvas import stdout_canvas
from backyfs.cli.charts import titled
from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import OptionalValue
from backyfs.cli.output import Row, chosen_columns, fields_option, print_labelled
from backyfs.cli.sizes import human_size
from backyfs.cli.stdout import run_for_output
from backyfs.cli.text import stored_text
from backyfs.errors import VersionNotFoundError
from backyfs.metadata.records.stats import find_statistics, list_all_statistics, list_statistics
from backyfs.metadata.records.versions import find_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation
    from backyfs.metadata.db.database import Connection
    from backyfs.model import StatisticsRecord, VersionUid

_LABELS = {
    "date": "date",
    "uid": "uid",
    "name": "name",
    "size bytes": "size_bytes",
    "size blocks": "size_blocks",
    "bytes read": "bytes_read",
    "blocks read": "blocks_read",
    "bytes written": "bytes_written",
    "blocks written": "blocks_written",
    "bytes dedup": "bytes_dedup",
    "blocks dedup": "blocks_dedup",
    "bytes sparse": "bytes_sparse",
    "blocks sparse": "blocks_sparse",
    "duration (s)": "duration_s",
    "Stored": "stored",
}
# A field of backy2 that its help does not list. It prints an object of SQLAlchemy, the same for every backup.
_METADATA = "metadata"
_METADATA_TEXT = "MetaData()"
_BACKY2 = tuple(label for label in _LABELS if label != "Stored")
_SIZES = tuple(label for label in _LABELS if "bytes" in label or label == "Stored")
_MIN_PREFIX = 4  # as of the uids of versions that are there


@click.command()
@click.argument("version", required=False, callback=stored_text, shell_complete=complete_versions)
@fields_option
@click.option(
    "-l", "--limit", cls=OptionalValue, type=click.IntRange(min=0), metavar="N", help="Show the newest N only."
)
@click.option("--plot", is_flag=True, help="Draw charts of growth, deduplication and rates besides.")
@click.pass_obj
@run_for_output
def command(
    invocation: Invocation, version: str | None, *, fields: str | None, limit: int | None, plot: bool
) -> None:
    """Show what backups did, the oldest first: all of them, or those of VERSION.

    Statistics stay when versions are removed. `date`, in UTC, is when the backup ended; `read` is what was read
    from the source, `written` what was new, `dedup` what was known, `sparse` zeros. These count bytes before
    compression; Stored is what the new blocks take in the storage, empty where that is not known.
    """
    usual = _BACKY2 if invocation.form is OutputForm.PIPE else tuple(_LABELS)
    columns = usual if fields is None else chosen_columns(fields, (*_LABELS, _METADATA))
    with invocation.open_repository() as repository, repository.database.read() as connection:
        if not version:
            records = list_all_statistics(connection, limit=limit)
        else:
            records = list_statistics(connection, _find(connection, version), limit=limit)
    as_json = invocation.form is OutputForm.JSON
    rows = [_row(record, whole_seconds=not as_json) for record in records]
    if not as_json:
        rows = [row | {_METADATA: _METADATA_TEXT} for row in rows]
    print_labelled(invocation, rows, {**_LABELS, _METADATA: _METADATA}, columns, sizes=_SIZES)
    if plot and not as_json:
        _plot(records)


def _find(connection: Connection, wanted: str) -> VersionUid:
    """Return the uid that is meant, of a version that is there or of one that is gone and has statistics still."""
    try:
        return find_version(connection, wanted).uid
    except VersionNotFoundError:
        found = find_statistics(connection, wanted) if len(wanted) >= _MIN_PREFIX else []
        if len(found) != 1:
            raise
        return found[0]


def _row(record: StatisticsRecord, *, whole_seconds: bool) -> Row:
    return {
        "date": record.created_at,
        "uid": record.version_uid,
        "name": record.version_name,
        "size_bytes": record.version_size_bytes,
        "size_blocks": record.version_size_blocks,
        "bytes_read": record.bytes_read,
        "blocks_read": record.blocks_read,
        "bytes_written": record.bytes_written,
        "blocks_written": record.blocks_written,
        "bytes_dedup": record.bytes_deduplicated,
        "blocks_dedup": record.blocks_deduplicated,
        "bytes_sparse": record.bytes_sparse,
        "blocks_sparse": record.blocks_sparse,
        "duration_s": int(record.duration_s) if whole_seconds else round(record.duration_s, 3),
        "stored": record.bytes_stored,
    }


def _plot(records: Sequence[StatisticsRecord]) -> None:
    canvas = stdout_canvas()
    growth, total = [], 0
    for record in records:
        total += record.bytes_written
        growth.append(float(total))
    charts = (
        ("Growth: new bytes so far", growth, _size),
        ("Deduplication: known bytes of those that are no zeros", [_known(record) for record in records], _percent),
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
