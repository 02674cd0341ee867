"""`backyfs catalog`: the copy of the metadata in the storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.failures import raise_all
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_object, print_report, print_rows
from backyfs.cli.remedies import render_remedy
from backyfs.reports.catalog import COLUMNS, checked_as_object, difference_rows, pushed_as_object

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.engine.catalog.check import Difference


@click.group("catalog")
def command() -> None:
    """Manage the catalog: the copy of the metadata in the storage, from which `recover` rebuilds the database.

    Commands keep it up to date automatically.
    """


@command.command()
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Write all of it again, even into a storage that lost its catalog and its marker.",
)
@click.pass_obj
def push(invocation: Invocation, *, everything: bool) -> None:
    """Write to the catalog what it lacks, and delete what is no longer in the database.

    Run this for a repository that comes from backy2, and after warnings that something could not be written.
    """
    from backyfs.engine.catalog.check import push_catalog  # noqa: PLC0415 - SQLAlchemy is slow to load

    with invocation.open_repository(insist=everything) as repository, invocation.control() as control:
        report = push_catalog(repository, everything=everything, control=control)
    line = f"{report.versions} versions and {report.pages} pages were written, and {report.deleted} objects deleted."
    print_report(invocation, pushed_as_object(report), [line])


@command.command()
@click.pass_obj
def check(invocation: Invocation) -> None:
    """Compare the catalog with the database; the exit status is 20 if they differ.

    `backyfs catalog push --all` writes it again.
    """
    from backyfs.engine.catalog.check import CatalogCheck  # noqa: PLC0415 - SQLAlchemy is slow to load

    found: list[Difference] = []
    with invocation.open_repository() as repository, invocation.control() as control:
        report = CatalogCheck(repository, control=control, on_difference=found.append).run()
    if invocation.form is OutputForm.JSON:
        print_object(checked_as_object(report, found, render_remedy))
    elif found or invocation.form is OutputForm.PIPE:
        print_rows(invocation, difference_rows(found, render_remedy), COLUMNS)
    else:
        number = None if report.index is None else report.index.number
        click.echo(
            f"The catalog has all {report.versions} versions and {report.pages} pages as the database has them; its "
            f"index is number {number}."
        )
    raise_all(report.errors)
