"""Check that text from users can be stored, and make text printable."""

from __future__ import annotations

import click


def stored_text(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    """Return an argument that will be stored in the database. A click callback.

    Raises:
        click.BadParameter: it has bytes that are not UTF-8, which databases do not accept.
    """
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter(f"{text!r} is not UTF-8; give a name in UTF-8.") from error
    return text


def printable(text: str) -> str:
    r"""Return text on one line, without characters that control the terminal: a newline becomes `\x0a`."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
