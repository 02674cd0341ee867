"""`backyfs completion`: print a completion script for a shell."""

from __future__ import annotations

import click

from backyfs.cli.shells import SHELLS
from backyfs.cli.stdout import run_for_output


@click.command()
@click.argument("shell", type=click.Choice(tuple(SHELLS)))
@run_for_output
def command(shell: str) -> None:
    """Print a script that lets SHELL complete commands, options, files, and uids and names of versions.

    In bash: eval "$(backyfs completion bash)", in ~/.bashrc. The first lines of each script say where it goes.
    """
    click.echo(SHELLS[shell].script, nl=False)
