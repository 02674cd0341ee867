"""The program: global options, the commands, and how an error ends it."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from backyfs import __version__
from backyfs.cli import process
from backyfs.cli.commandline import without_secrets
from backyfs.cli.invocation import Invocation, OutputForm
from backyfs.cli.logs import log_end, log_lost_metrics, log_lost_output, start_logging
from backyfs.cli.metrics import Record
from backyfs.cli.options import OptionalValue, real_path
from backyfs.cli.remedies import render_error
from backyfs.cli.stdout import check_printed, drop_stdout, drop_text, expect_printed, printing
from backyfs.errors import BackyfsError, IntegrityError, InterruptedByUser, OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.shell_completion import CompletionItem

    from backyfs.cli.stdout import Printed

# name -> module below backyfs.cli.commands, and the line that `backyfs --help` shows
_COMMANDS = {
    "init": ("init", "Create a new repository."),
    "backup": ("backup", "Back up an image or block device as a new version."),
    "restore": ("restore", "Write a version to a file or block device."),
    "ls": ("ls", "List the versions."),
    "mount": ("mount", "Mount all versions as a read-only file system."),
    "umount": ("umount", "Unmount what `mount` mounted."),
    "attach": ("attach", "Mount the file systems in a version, read-only."),
    "detach": ("detach", "Undo `attach`."),
    "rm": ("rm", "Remove versions."),
    "protect": ("protect", "Keep versions from being removed."),
    "unprotect": ("unprotect", "Allow versions to be removed again."),
    "add-tag": ("add_tag", "Add tags to a version."),
    "remove-tag": ("remove_tag", "Remove tags from a version."),
    "expire": ("expire", "Set or remove the date when a version expires."),
    "due": ("due", "List the backups that are due."),
    "sla": ("sla", "List backups that break their schedule."),
    "forget": ("forget", "Remove the versions that no schedule needs."),
    "cleanup": ("cleanup", "Delete the stored blocks that no version needs any more."),
    "scrub": ("scrub", "Read stored blocks back and check them."),
    "repair": ("repair", "Store damaged blocks again, from other copies."),
    "du": ("du", "Show how much space versions take."),
    "stats": ("stats", "Show statistics of past backups."),
    "diff-meta": ("diff_meta", "Compare two versions block by block."),
    "jobs": ("jobs", "List the running commands, on all hosts."),
    "export": ("export", "Write versions to a file, without their blocks."),
    "import": ("import_", "Store versions that were exported."),
    "recover": ("recover", "Rebuild the database from the storage and the key."),
    "catalog": ("catalog", "Manage the copy of the metadata in the storage."),
    "initdb": ("initdb", "Create the repository of an existing configuration."),
    "check-config": ("check_config", "Check configuration, key, database, storage and FUSE."),
    "upgrade": ("upgrade", "Upgrade the database schema."),
    "key": ("key", "Manage keys, passphrases and recovery pages."),
    "rekey": ("rekey", "Replace the key that opens the repository."),
    "migrate-encryption": ("migrate_encryption", "Re-encrypt stored blocks."),
    "db": ("db", "Copy the database to another engine."),
    "completion": ("completion", "Print a completion script for a shell."),
}
_ALIASES = {"fuse": "mount"}
_COMPLETE_VARIABLE = "_BACKYFS_COMPLETE"  # holds the shell that asks; set by the scripts of `completion`


class _LazyGroup(click.Group):
    """Commands that are imported when they run, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _COMMANDS.get(_ALIASES.get(cmd_name, cmd_name))
        if entry is None:
            return None
        command: click.Command = importlib.import_module(f"backyfs.cli.commands.{entry[0]}").command
        if ctx.resilient_parsing:  # a shell asks what it can complete
            from backyfs.cli.completion import offer_values  # noqa: PLC0415 - of no use to any command

            offer_values(command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        # The inherited one imports every command, for its line of help.
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - of no use to any command

        names = [CompletionItem(name, help=entry[1]) for name, entry in _COMMANDS.items()]
        return [name for name in names if name.value.startswith(incomplete)] or click.Command.shell_complete(
            self, ctx, incomplete
        )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[1]) for name, entry in _COMMANDS.items()])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c",
    "--configfile",
    cls=OptionalValue,
    type=click.Path(readable=False),
    callback=real_path,
    metavar="FILE",
    help="Configuration to use instead of the usual places.",
)
@click.option("-v", "--verbose", is_flag=True, help="Print more detail.")
@click.option("-d", "--debug", is_flag=True, help="Print everything, with tracebacks.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only; with -m or --json also the result.")
@click.option("-m", "--machine-output", is_flag=True, help="Print fields separated by |, as backy2 does.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-s", "--skip-header", is_flag=True, help="Print no header line.")
@click.option("-r", "--human-readable", is_flag=True, help="Print sizes with units.")
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@click.option(
    "--metrics-file",
    type=click.Path(readable=False),
    callback=real_path,
    metavar="FILE",
    help="Write Prometheus metrics to FILE when done.",
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
@click.pass_context
def cli(
    ctx: click.Context,
    *,
    configfile: str | None,
    verbose: bool,
    debug: bool,
    quiet: bool,
    machine_output: bool,
    as_json: bool,
    skip_header: bool,
    human_readable: bool,
    no_progress: bool,
    metrics_file: str | None,
) -> None:
    """Back up block devices and disk images, and mount every backup.

    Global options go before the command. VERSION is a uid, the first 4 or more digits of one, NAME@latest, or
    NAME@YYYY-MM-DD[THH:MM] in UTC.
    """
    if machine_output and as_json:
        raise UsageError("-m and --json are two forms of output; give one of them")
    form = OutputForm.JSON if as_json else OutputForm.PIPE if machine_output else OutputForm.TABLE
    record = ctx.ensure_object(Record)
    record.metrics_file = metrics_file
    record.command = ctx.invoked_subcommand or ""
    if quiet and form is OutputForm.TABLE:
        drop_text()
    ctx.obj = record.invocation = Invocation(
        words=record.words,
        command=record.command,
        config_file=configfile,
        form=form,
        header=not skip_header,
        human_sizes=human_readable,
        log_option="--debug" if debug else "--verbose" if verbose else "--quiet" if quiet else None,
        show_progress=not (no_progress or quiet or form is not OutputForm.TABLE),
    )
    start_logging(
        command=record.command,
        verbose=verbose,
        debug=debug,
        quiet=quiet or form is not OutputForm.TABLE,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit with its status."""
    process.begin()
    process.end(run(arguments) if _COMPLETE_VARIABLE not in os.environ else _complete(os.environ[_COMPLETE_VARIABLE]))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status. An error is printed to stderr in one line."""
    record = Record(words=tuple(sys.argv[1:] if arguments is None else arguments))
    with printing() as printed:
        status = _end(record)
    with contextlib.suppress(KeyboardInterrupt):  # the command has ended, and so has its status
        if status != OutputError.exit_status:
            _tell_lost_output(printed)
        _write_metrics(record, status)
        record.log_result(status)
    return status


def _write_metrics(record: Record, status: int) -> None:
    """Write the metrics. The command has ended, and nothing that happens here changes its status."""
    try:
        record.write_metrics(status)
    except Exception as error:  # noqa: BLE001 - the last place where an error can be reported
        log_lost_metrics(error)


def _end(record: Record) -> int:
    try:
        return _invoke(record)
    except click.exceptions.Exit as ended:  # --help and --version
        record.metrics_file = None
        return _status_of_help(ended)
    except click.exceptions.NoArgsIsHelpError as asked:
        asked.show()
        return UsageError.exit_status
    except click.ClickException as error:
        log_end(_in_a_line(error), UsageError.exit_status)
        return UsageError.exit_status
    except BrokenPipeError:
        drop_stdout()
        return 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last place where an error can be reported
        return _tell(error)


def _status_of_help(ended: click.exceptions.Exit) -> int:
    try:
        expect_printed()
    except OutputError as error:
        return _tell(error)
    return ended.exit_code


def _complete(shell: str) -> int:
    from backyfs.cli.completion import answer  # noqa: PLC0415 - of no use to any command

    return answer(cli, shell, sys.argv[1:])


def _invoke(record: Record) -> int:
    # Not `cli.main`, which reports an error if the reader stops early (`| head`).
    with cli.make_context("backyfs", list(record.words), obj=record) as context:
        status: Any = cli.invoke(context)
    found_damage = record.invocation is not None and record.invocation.odd_rows
    return (status if isinstance(status, int) else 0) or (IntegrityError.exit_status if found_damage else 0)


def _tell_lost_output(printed: Printed) -> None:
    try:
        check_printed(printed)
    except OutputError as error:
        log_lost_output(error)


def _in_a_line(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = "backyfs" if context is None else context.command_path
    message = without_secrets(error.format_message().rstrip("."))  # it quotes arguments
    return f"{message}; see `{path} --help`"


def _is_lost_directory(error: BaseException) -> bool:
    """Return whether a relative path could not be made absolute: only getcwd(2) raises this without a file name."""
    return isinstance(error, FileNotFoundError) and error.filename is None


def _tell(error: BaseException) -> int:
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        message, status = "interrupted", InterruptedByUser.exit_status
    elif isinstance(error, BackyfsError):
        message, status = render_error(error), error.exit_status
    elif _is_lost_directory(error):
        message, status = "the current directory was removed; change to another one, or give absolute paths", 1
    else:
        message = f"unexpected {type(error).__name__}: {error}; run it again with --debug to see where, and report it"
        status = BackyfsError.exit_status
    log_end(message, status, error=error)
    return status
