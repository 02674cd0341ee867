"""`backyfs catalog`: the copy of the metadata in the storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import Row, print_object, print_rows
from backyfs.errors import CatalogError

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.engine.catalog.check import Difference

_COLUMNS = ("name", "fact")


@click.group("catalog")
def command() -> None:
    """Look after the catalog: the copy of the metadata in the storage, from which `recover` rebuilds the database.

    Commands keep it up to date by themselves.
    """


@command.command()
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Write all of it again, also into a storage that lost its catalog and its marker.",
)
@click.pass_obj
def push(invocation: Invocation, *, everything: bool) -> None:
    """Write to the catalog what it lacks, and delete what is not in the database any more.

    For a repository that comes from backy2, and after warnings that something could not be written.
    """
    from backyfs.engine.catalog.check import remove_stale_objects  # noqa: PLC0415 - SQLAlchemy is slow to load
    from backyfs.engine.catalog.publish import publish  # noqa: PLC0415

    with invocation.open_repository(insist=everything) as repository, invocation.control() as control:
        report = publish(repository, everything=everything, control=control)
        deleted = report.deleted + remove_stale_objects(repository, also_damaged=everything, control=control)
    row: Row = {"versions": report.versions, "pages": report.pages, "deleted": deleted}
    if invocation.form is OutputForm.JSON:
        print_object(row)
    elif invocation.form is OutputForm.PIPE:
        print_rows(invocation, [row], list(row))
    else:
        click.echo(
            f"{report.versions} versions and {report.pages} pages were written, and {deleted} objects deleted."
        )


@command.command()
@click.pass_obj
def check(invocation: Invocation) -> None:
    """Compare the catalog with the database; the exit status is 20 if they differ.

    `backyfs catalog push --all` writes it anew.
    """
    from backyfs.engine.catalog.check import CatalogCheck  # noqa: PLC0415 - SQLAlchemy is slow to load

    found: list[Difference] = []
    with invocation.open_repository() as repository, invocation.control() as control:
        report = CatalogCheck(repository, control=control, tell=found.append).run()
    rows: list[Row] = [{"name": one.name, "fact": one.fact} for one in found]
    number = None if report.index is None else report.index.number
    if invocation.form is OutputForm.JSON:
        print_object({"versions": report.versions, "pages": report.pages, "index_number": number}, differences=rows)
    elif rows or invocation.form is OutputForm.PIPE:
        print_rows(invocation, rows, _COLUMNS)
    else:
        click.echo(
            f"The catalog has all {report.versions} versions and {report.pages} pages as the database has them; its "
            f"index is number {number}."
        )
    if found:
        raise CatalogError(
            f"{len(found)} objects of the catalog are not as the database says; `backyfs catalog push` writes what is "
            "known to be missing, and with --all everything"
        )
