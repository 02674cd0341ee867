"""`backyfs upgrade`: upgrade the database to this program's schema, or show what that would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.options import real_path
from backyfs.cli.output import print_object
from backyfs.cli.text import printable
from backyfs.errors import UsageError
from backyfs.reports.upgrade import as_object, plan_as_object

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.engine.setup.upgrade import UpgradePlan, UpgradeReport

_WAIT_S = 300  # as backyfs.engine.setup.upgrade.DEFAULT_WAIT_S, which is slow to load for --help


@click.command()
@click.option("--check", is_flag=True, help="Only report whether an upgrade is needed: status 0 if not, 1 if it is.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=_WAIT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for running commands.",
)
@click.option(
    "--copy-to", callback=real_path, metavar="DIRECTORY", help="Where to put the copy of the metadata."
)
@click.option(
    "--ignore-processes",
    is_flag=True,
    help="Do not wait for backy2 processes that hold no lock: they use another database.",
)
@click.pass_obj
def command(
    invocation: Invocation, *, check: bool, dry_run: bool, wait: float, copy_to: str | None, ignore_processes: bool
) -> int:
    """Upgrade the database to the schema of this program, as every other command does automatically.

    A copy of the metadata is made first. Stored blocks are never touched.
    """
    from backyfs.engine.setup.upgrade import plan_upgrade, upgrade  # noqa: PLC0415 - SQLAlchemy is slow to load

    if check and dry_run:
        raise UsageError("--check and --dry-run exclude each other; give one of them")
    config = invocation.load_config()
    if check or dry_run:
        plan = plan_upgrade(config, copy_to=copy_to)
        _print_plan(invocation, plan, in_full=dry_run)
        return 1 if check and plan is not None else 0
    with invocation.control() as control:
        report = upgrade(
            config,
            wait_s=wait,
            copy_to=copy_to,
            ignore_processes=ignore_processes,
            control=control,
        )
    _print_report(invocation, report)
    return 0


def _print_plan(invocation: Invocation, plan: UpgradePlan | None, *, in_full: bool) -> None:
    if invocation.form is OutputForm.JSON:
        print_object(plan_as_object(plan))
    elif invocation.form is OutputForm.PIPE:
        click.echo("current" if plan is None else "older")
    elif plan is None:
        click.echo("The database is up to date.")
    else:
        click.echo(f"{printable(plan.database)} must be upgraded: it has the schema of {plan.from_schema}.")
        if in_full:
            _print_steps(plan)


def _print_steps(plan: UpgradePlan) -> None:
    if plan.running:
        click.echo("It would wait for the end of:")
        for one in plan.running:
            click.echo(f"  {printable(one)}")
    click.echo(f"A copy of the metadata would be written to {printable(plan.copy)}.")
    if plan.versions is not None:
        click.echo(f"{plan.versions} versions with {plan.blocks} blocks would be taken over; stored blocks stay.")
    click.echo(f"The schema would become {plan.to_revision}.")


def _print_report(invocation: Invocation, report: UpgradeReport | None) -> None:
    if invocation.form is OutputForm.JSON:
        print_object(as_object(report))
    elif invocation.form is OutputForm.TABLE:
        if report is None:
            click.echo("The database is up to date.")
        elif report.adopted is not None:
            adopted = report.adopted
            blocks = f"{adopted.blocks} blocks of {adopted.blobs} blobs"
            click.echo(f"{adopted.versions} versions with {blocks} were taken over.")
