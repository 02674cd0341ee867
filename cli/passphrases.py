"""Ask for passphrases on the terminal, and define options that name a key or passphrase."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from backyfs.errors import MissingKeyError, UsageError
from backyfs.model import KeySource, PassphraseSource

if TYPE_CHECKING:
    from backyfs.keys.slots import Secret

_Command = TypeVar("_Command", bound=Callable[..., Any])


def asking() -> Callable[[], str] | None:
    """Return a function that asks for the passphrase of a repository; None if stdin is not a terminal."""
    stdin = sys.stdin  # None or closed if the program was started without one
    return _ask if stdin is not None and not stdin.closed and stdin.isatty() else None


def secret_options(prefix: str = "") -> Callable[[_Command], _Command]:
    """Return the options that name a key or passphrase; `read_secret` takes their values."""
    what = f"the {prefix.rstrip('-')} " if prefix else "the "
    options = (
        click.option(
            f"--{prefix}key-file", metavar="FILE", help=f"Take {what}key from FILE, - for stdin: 64 hex digits."
        ),
        click.option(
            f"--{prefix}key-command", metavar="COMMAND", help=f"Take {what}key from the output of COMMAND."
        ),
        click.option(
            f"--{prefix}passphrase-file", metavar="FILE", help=f"Take {what}passphrase from FILE, - for stdin."
        ),
        click.option(
            f"--{prefix}passphrase-command",
            metavar="COMMAND",
            help=f"Take {what}passphrase from the output of COMMAND.",
        ),
    )

    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def read_secret(
    *,
    key_file: str | None,
    key_command: str | None,
    passphrase_file: str | None,
    passphrase_command: str | None,
) -> Secret | None:
    """Return the key or passphrase that the options name; None if they name none.

    Raises:
        UsageError: they name more than one.
        MissingKeyError: it cannot be read.
    """
    from backyfs import keys  # noqa: PLC0415 - cryptography is slow to load
    from backyfs.keys.slots import Secret  # noqa: PLC0415

    given = [text for text in (key_file, key_command, passphrase_file, passphrase_command) if text is not None]
    if len(given) > 1:
        raise UsageError("several options name a key or passphrase", remedy="give one of them")
    if key_file is not None or key_command is not None:
        return Secret(key=keys.read_key(KeySource(file=_stdin_or(key_file), command=key_command)))
    if passphrase_file is not None or passphrase_command is not None:
        source = PassphraseSource(file=_stdin_or(passphrase_file), command=passphrase_command)
        return Secret(passphrase=keys.read_passphrase(source))
    return None


def _stdin_or(file: str | None) -> str | None:
    return "/dev/stdin" if file == "-" else file


def ask_new() -> Secret:
    """Ask twice for a new passphrase.

    Raises:
        MissingKeyError: there is no terminal.
    """
    from backyfs.keys.slots import Secret  # noqa: PLC0415 - cryptography is slow to load

    _require_terminal()
    return Secret(passphrase=_prompt("New passphrase", confirm=True))


def ask_old() -> Secret:
    """Ask for the old key or passphrase.

    Raises:
        MissingKeyError: there is no terminal.
    """
    from backyfs import keys  # noqa: PLC0415 - cryptography is slow to load
    from backyfs.keys.slots import Secret  # noqa: PLC0415

    _require_terminal()
    text = _prompt("Old key or passphrase")
    try:
        return Secret(key=keys.read_key(KeySource(hex_digits=text)))
    except MissingKeyError:
        return Secret(passphrase=text)


def _require_terminal() -> None:
    if asking() is None:
        raise MissingKeyError(
            "no key or passphrase was given, and there is no terminal to ask for one",
            remedy="give an option that names it",
        )


def _ask() -> str:
    return _prompt("Passphrase")


def _prompt(words: str, *, confirm: bool = False) -> str:
    text: str = click.prompt(words, hide_input=True, confirmation_prompt=confirm, err=True)
    return text
