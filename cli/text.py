"""Text that comes from people: what of it can be stored, and how it is shown."""

from __future__ import annotations

import click


def stored_text(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    """Return an argument that goes into the database; the callback of its declaration.

    Raises:
        click.BadParameter: it has bytes that are not in UTF-8; no database takes them.
    """
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter(f"{text!r} is not in UTF-8; give a name that is.") from error
    return text


def printable(text: str) -> str:
    r"""Return text on one line, without characters that control the terminal: a newline becomes `\x0a`."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
