"""Remedies as the command line prints them: each names commands and options that exist."""

from __future__ import annotations

import re

import click
import pytest

from backyfs.cli.main import cli
from backyfs.cli.remedies import RENDERINGS, render_remedy
from backyfs.engine.catalog.check import Difference
from backyfs.engine.catalog.index import Fault
from backyfs.remedies import Advice
from backyfs.reports.catalog import difference_rows

_COMMAND = re.compile(r"`backyfs ([^`]+)`")
_OPTION = re.compile(r"(?<!\S)\(?(--?[a-z][a-z0-9-]*)")
# Commands that can end with an error whose remedy is an option of the same command.
COMMANDS = {
    Advice.MAKE_REPOSITORY: ["backup"],
    Advice.MAKE_REPOSITORY_ELSEWHERE: ["init"],
    Advice.CONTINUE_BACKUP: ["backup"],
    Advice.REMOVE_YOUNG: ["rm"],
    Advice.REMOVE_LAST: ["rm"],
    Advice.CONTINUE_SCRUB: ["scrub"],
    Advice.SEARCH_SOURCE: ["repair"],
    Advice.NAME_REPAIR_SOURCE: ["repair"],
    Advice.MIGRATE_ENCRYPTION_TO_BACKY2: ["export"],
    Advice.REMOVE_USED_KEY_SLOT: ["key remove"],
    Advice.GIVE_OLD_KEY: ["rekey"],
    Advice.GIVE_BACKY2_KEY: ["recover"],
    Advice.GIVE_CATALOG_KEY: ["recover"],
    Advice.CONFIGURE_SCHEDULER: ["due", "sla", "forget"],
    Advice.WRITE_CATALOG_OR_ALL: ["catalog push"],
    Advice.LEAVE_DAMAGED_KEYS: ["rekey"],
    Advice.OVERWRITE_TARGET: ["restore"],
    Advice.OVERWRITE_OR_NAME_TARGET: ["restore"],
    Advice.RESTORE_AGAIN: ["restore"],
    Advice.CONTINUE_RESTORE: ["restore"],
    Advice.CONTINUE_RESTORE_OF_PART: ["restore"],
    Advice.CONTINUE_EARLIER: ["restore"],
    Advice.RESTORE_PART: ["restore"],
    Advice.MOUNT_FOR_REPAIR: ["mount"],
    Advice.NAME_OVERLAY: ["mount"],
    Advice.UNMOUNT_OR_NAME_OVERLAY: ["mount"],
    Advice.DROP_OR_NAME_OVERLAY: ["mount"],
    Advice.LEAVE_OUT_OVERLAY: ["mount"],
}


def _options_of(words: list[str]) -> set[str]:
    """Return the options that a command line may have: of the program, the command and its subcommand."""
    context = click.Context(cli)
    commands: list[click.Command] = [cli]
    for word in words:
        if isinstance(commands[-1], click.Group):
            command = commands[-1].get_command(context, word)
            assert command is not None, f"there is no command {word}"
            commands.append(command)
    parameters = [parameter for command in commands for parameter in command.params]
    return {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("advice", Advice)
def test_a_printed_remedy_names_commands_and_options_that_exist(advice: Advice) -> None:
    text = RENDERINGS[advice]
    for line in _COMMAND.findall(text):
        assert set(_OPTION.findall(line)) <= _options_of(line.split()), line
    bare = set(_OPTION.findall(_COMMAND.sub("", text)))
    assert bool(bare) == (advice in COMMANDS), "an option without a command needs an entry in COMMANDS"
    for name in COMMANDS.get(advice, []):
        assert bare <= _options_of(name.split())


def test_catalog_problems_are_listed_with_the_command_that_fixes_them() -> None:
    difference = Difference(name="catalog/repository", fault=Fault("is an older one", Advice.LIST_KEY_SLOTS()))
    assert difference_rows([difference], render_remedy) == [
        {"name": "catalog/repository", "fact": "is an older one; `backyfs key list` shows them"}
    ]
