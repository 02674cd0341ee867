r"""Text that others chose, such as the name of a version or a label in an image, where it could do harm.

A terminal obeys control characters, and shows text in another order after a bidirectional control. A program that
reads lines takes more than a newline for the end of one. A shell runs what is not quoted.
"""

from __future__ import annotations

import shlex
import unicodedata

# Controls (C0, DEL, C1), invisible formatting (bidirectional controls among them), lone surrogates, and separators of
# lines and paragraphs.
_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # formatting that Persian and many emoji are spelled with


def steers(char: str) -> bool:
    """Tell whether a character steers a terminal, or ends a line for some programs, instead of being shown."""
    return not char.isprintable() and unicodedata.category(char) in _STEERING and char not in _JOINERS


def escaped(char: str) -> str:
    r"""Return a character as `\x0a`, `\u202e` or `\U000e0001`."""
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def shell_word(text: str) -> str:
    r"""Return a word of a command line for people to copy: whatever it holds, the shell takes it for text.

    Where something in it cannot be printed this is `$'...'`, in bytes, which bash, zsh, ksh and busybox know.
    """
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_in_ansi_quotes, text))}'"


def shell_words(*words: str) -> str:
    """Return a whole command, each word quoted where it has to be."""
    return " ".join(map(shell_word, words))


def _in_ansi_quotes(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    if char.isprintable():
        return char
    # Three octal digits: a hexadecimal escape would take a digit that follows in some shells.
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", _errors_of(char)))


def _errors_of(char: str) -> str:
    """Return how a lone surrogate becomes bytes: one that stands for a byte of a path becomes that byte."""
    return "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
