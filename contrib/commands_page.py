"""Print docs/reference/commands.md: every command with its arguments and options, from the program's own help.

    .venv/bin/python contrib/commands_page.py > docs/reference/commands.md

A test fails if the page is not what the program's help says.
"""

import inspect
import sys
from collections.abc import Iterator

import click

from backyfs.cli.main import cli

HEAD = """# Commands

`contrib/commands_page.py` generates this page from the program; `backyfs COMMAND --help` prints the same text. `fuse`
is another name of `mount`. See also the [exit statuses](exit-codes.md), the [JSON output](json.md) and the columns of
[reports](../use/reports.md).
"""


def page() -> Iterator[str]:
    """Yield the lines of the page."""
    with click.Context(cli, info_name="backyfs") as context:
        yield from HEAD.splitlines()
        yield ""
        yield "## backyfs"
        yield from described(context, cli)
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None
            yield from one_command(click.Context(command, info_name=name, parent=context), command)


def one_command(context: click.Context, command: click.Command) -> Iterator[str]:
    """Yield the section of a command, and those of the commands below it."""
    yield ""
    yield f"## {context.command_path.removeprefix('backyfs ')}"
    yield from described(context, command)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from one_command(click.Context(below, info_name=name, parent=context), below)


def described(context: click.Context, command: click.Command) -> Iterator[str]:
    """Yield usage, explanation and options of a command."""
    pieces = command.collect_usage_pieces(context)
    yield ""
    yield f"    {context.command_path} {' '.join(pieces)}"
    yield ""
    yield from inspect.cleandoc(command.help or "").replace("\b\n", "").splitlines()
    records = [
        record
        for parameter in command.params
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)) is not None
    ]
    if records:
        yield ""
        yield "| option | meaning |"
        yield "| --- | --- |"
        for record in records:
            option, text = (part.replace("|", "\\|") for part in record)
            yield f"| `{option}` | {text} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join(page()) + "\n")
