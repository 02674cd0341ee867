"""`backyfs du`: show how much space versions take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import complete_versions
from backyfs.cli.canvas import stdout_canvas
from backyfs.cli.charts import Bar, bars
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import chosen_columns, fields_option, print_labelled
from backyfs.cli.stdout import run_for_output
from backyfs.cli.text import printable, stored_text
from backyfs.engine.versions.du import disk_usage
from backyfs.moments import date_text
from backyfs.reports.du import COLUMNS, ENCRYPTION, LABELS, PIPE_COLUMNS, SIZES, as_rows
from backyfs.text import human_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.cli.invocation import Invocation
    from backyfs.engine.versions.du import SpaceReport

_LABEL = 24  # characters of a name beside its bar


@click.command()
@click.argument("versions", metavar="[VERSION]...", nargs=-1, shell_complete=complete_versions)
@fields_option
@click.option("--plot", is_flag=True, help="Also draw a chart.")
@click.pass_context
@run_for_output
def command(context: click.Context, /, versions: tuple[str, ...], *, fields: str | None, plot: bool) -> None:
    """Show how much space versions take, in bytes: all of them, or each VERSION.

    Real counts data, Null counts holes. Dedup Others is data that other versions also have; Dedup Own repeats within
    the version; Individual occurs only once. Est. Space is the version's share of all data that it uses; Est. Space
    freed is what its removal would free. These count bytes before compression. Stored is the size of the version's
    objects in the storage; it is empty if that is not known. Further fields: date, name, uid; and Encryption Versions:
    how many blocks have which encryption version, as 0:12,2:300.
    """
    invocation: Invocation = context.obj
    usual = PIPE_COLUMNS if invocation.form is OutputForm.PIPE else COLUMNS
    columns = usual if fields is None else chosen_columns(fields, tuple(LABELS))
    versions = tuple(text for text in versions if text)  # an empty one counts as none, as in backy2
    for text in versions:
        stored_text(context, context.command.params[0], text)
    with invocation.open_repository() as repository:
        report = disk_usage(
            repository,
            versions,
            measure_stored="Stored" in columns or invocation.form is OutputForm.JSON or plot,
            count_encryption=ENCRYPTION in columns,
            progress=invocation.progress(),
        )
    labels = {label: LABELS[label] for label in columns}
    print_labelled(invocation, as_rows(report), labels, columns, sizes=SIZES)
    if plot and invocation.form is not OutputForm.JSON:
        _plot(report.versions)


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
    click.echo(f"{alone} this version only   {shared} also in other versions   {holes} holes   (stored / real)")


def _note(report: SpaceReport) -> str:
    stored = "?" if report.stored_bytes is None else human_size(report.stored_bytes)
    return f"{stored} / {human_size(report.real_bytes)}"
