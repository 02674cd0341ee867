"""`backyfs du`: show how much space versions take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import complete_versions
from backyfs.cli.canvas import stdout_canvas
from backyfs.cli.charts import Bar, bars
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import Row, chosen_columns, fields_option, print_labelled
from backyfs.cli.sizes import human_size
from backyfs.cli.stdout import run_for_output
from backyfs.cli.text import printable, stored_text
from backyfs.engine.versions.du import SpaceReport, space_of_versions
from backyfs.metadata.maps.usage import encryption_of_blocks
from backyfs.metadata.records.versions import find_version
from backyfs.moments import date_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation

_BACKY2 = ("Real", "Null", "Dedup Own", "Dedup Others", "Individual", "Est. Space", "Est. Space freed")
_LABELS = {
    "date": "date",
    "name": "name",
    "uid": "uid",
    "Real": "real",
    "Null": "null",
    "Dedup Own": "dedup_own",
    "Dedup Others": "dedup_others",
    "Individual": "individual",
    "Est. Space": "est_space",
    "Est. Space freed": "est_space_freed",
    "Stored": "stored",
    "Encryption Versions": "encryption_versions",  # to be asked for
}
_SIZES = (*_BACKY2, "Stored")
_LABEL = 24  # characters of a name beside its bar


@click.command()
@click.argument("versions", metavar="[VERSION]...", nargs=-1, shell_complete=complete_versions)
@fields_option
@click.option("--plot", is_flag=True, help="Draw a chart besides.")
@click.pass_context
@run_for_output
def command(context: click.Context, /, versions: tuple[str, ...], *, fields: str | None, plot: bool) -> None:
    """Show how much space versions take, in bytes: all of them, or each VERSION.

    Real is what is no hole, Null holes. Dedup Others is what other versions have, too; Dedup Own repeats within
    the version; Individual what is there once only. Est. Space is the version's share of what it uses together
    with others, Est. Space freed what its removal would free. These count bytes before compression; Stored is
    what the objects of the version take in the storage, empty where that is not known. Further fields: date,
    name, uid; and Encryption Versions: how many blocks have which encryption version, as 0:12,2:300.
    """
    invocation: Invocation = context.obj
    usual = _BACKY2 if invocation.form is OutputForm.PIPE else ("date", "name", *_SIZES)
    columns = usual if fields is None else chosen_columns(fields, tuple(_LABELS))
    versions = tuple(text for text in versions if text)  # backy2 takes an empty one for none
    for text in versions:
        stored_text(context, context.command.params[0], text)
    asks_storage = "Stored" in columns or invocation.form is OutputForm.JSON or plot
    with invocation.open_repository() as repository, repository.database.read() as connection:
        wanted = {find_version(connection, text).id for text in versions} or None
        reports = space_of_versions(
            connection,
            repository.block_size,
            wanted=wanted,
            object_size=repository.blocks.storage.size if asks_storage else None,
            progress=invocation.progress(),
        )
        rows = [_row(report) for report in reports]
        if "Encryption Versions" in columns:
            counts = encryption_of_blocks(connection, (report.version for report in reports))
            rows = [row | {"encryption_versions": count} for row, count in zip(rows, counts, strict=True)]
    labels = {label: _LABELS[label] for label in columns}
    print_labelled(invocation, rows, labels, columns, sizes=_SIZES)
    if plot and invocation.form is not OutputForm.JSON:
        _plot(reports)


def _row(report: SpaceReport) -> Row:
    return {
        "uid": report.version.uid,
        "name": report.version.name,
        "date": report.version.created_at,
        "real": report.real_bytes,
        "null": report.null_bytes,
        "dedup_own": report.dedup_own_bytes,
        "dedup_others": report.dedup_others_bytes,
        "individual": report.individual_bytes,
        "est_space": report.estimated_bytes,
        "est_space_freed": report.freed_bytes,
        "stored": report.stored_bytes,
    }


def _plot(reports: Sequence[SpaceReport]) -> None:
    canvas = stdout_canvas()
    rows = [
        Bar(
            label=f"{printable(report.version.name)[:_LABEL]} {date_text(report.version.created_at)}",
            parts=(report.real_bytes - report.dedup_others_bytes, report.dedup_others_bytes, report.null_bytes),
            note=_note(report),
        )
        for report in reports
    ]
    alone, shared, holes = canvas.glyphs.parts
    click.echo()
    for line in bars(rows, canvas.width, canvas.glyphs):
        click.echo(line)
    click.echo(f"{alone} this version only   {shared} other versions, too   {holes} holes   (stored / real)")


def _note(report: SpaceReport) -> str:
    stored = "?" if report.stored_bytes is None else human_size(report.stored_bytes)
    return f"{stored} / {human_size(report.real_bytes)}"
