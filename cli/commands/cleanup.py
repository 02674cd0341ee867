"""`backyfs cleanup`: delete what no version needs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from backyfs.cli.hooks import hooked
from backyfs.cli.invocation import OutputForm, stop_on_signals
from backyfs.cli.output import Row, print_object, print_rows
from backyfs.cli.sizes import human_size
from backyfs.engine.cleanup import GRACE_S, cleanup, plan_cleanup
from backyfs.engine.publish import keep_catalog

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command("cleanup")
@click.option("-n", "--dry-run", is_flag=True, help="Show how much there is to delete, and delete nothing.")
@click.option(
    "--dangerous-force",
    is_flag=True,
    help="Delete blocks stored in the last hour as well. Running backups store theirs once more then; nothing is lost.",
)
@click.pass_obj
@hooked("cleanup", "dry_run")
def command(invocation: Invocation, *, dry_run: bool, dangerous_force: bool) -> None:
    """Delete the stored blocks that no version needs any more.

    Other commands go on meanwhile, on all hosts, other cleanups as well. It can be ended at any time; the next one goes
    on. See docs/cleanup.md.
    """
    grace_s = 0 if dangerous_force else GRACE_S
    with invocation.open_repository() as repository, stop_on_signals() as stop:
        if dry_run:
            garbage = plan_cleanup(repository, grace_s=grace_s)
            row: Row = {
                "pages": garbage.pages,
                "blobs": garbage.blobs,
                "stored_bytes": garbage.stored_bytes,
                "young_blobs": garbage.young_blobs,
            }
        else:
            report = cleanup(
                repository,
                grace_s=grace_s,
                progress=invocation.progress(),
                stop=stop,
                # Else the catalog would name objects that are gone, where a migration has not told it yet.
                before_deleting=partial(keep_catalog, repository, stop=stop),
            )
            row = {
                "pages": report.pages,
                "blobs": report.blobs,
                "stored_bytes": report.stored_bytes,
                "duration_s": round(report.duration_s, 3),
            }
    if invocation.form is OutputForm.JSON:
        print_object(row)
    elif invocation.form is OutputForm.PIPE:
        print_rows(invocation, [row], list(row))
    elif dry_run:
        click.echo(f"{garbage.blobs} blobs would be deleted, {human_size(garbage.stored_bytes)}")
        if garbage.young_blobs:
            click.echo(f"{garbage.young_blobs} blobs were stored in the last hour and are kept for now")
    else:
        click.echo(
            f"{report.blobs} blobs deleted, {human_size(report.stored_bytes)} freed, in {report.duration_s:.1f} s"
        )
