r"""Escape text that others chose, such as the name of a version or a label in an image. Write sizes for people.

Terminals obey control characters and reorder text after a bidirectional control. Some programs split lines at other
characters than a newline. A shell runs unquoted text.
"""

from __future__ import annotations

import shlex
import unicodedata

# Controls (C0, DEL, C1), invisible formatting (bidirectional controls among them), lone surrogates, and separators of
# lines and paragraphs.
_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_JOINERS = "\u200c\u200d"  # formatting that Persian and many emoji are spelled with


def is_control(char: str) -> bool:
    """Return whether a character controls a terminal, or ends a line for some programs, instead of being shown."""
    return not char.isprintable() and unicodedata.category(char) in _STEERING and char not in _JOINERS


def escaped(char: str) -> str:
    r"""Return a character as `\x0a`, `\u202e` or `\U000e0001`."""
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def shell_word(text: str) -> str:
    r"""Return a word quoted for a command line that people copy, so that the shell takes it literally.

    A word with unprintable characters becomes `$'...'` with escaped bytes, which bash, zsh, ksh and busybox support.
    """
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_in_ansi_quotes, text))}'"


def shell_words(*words: str) -> str:
    """Return a whole command, with each word quoted if necessary."""
    return " ".join(map(shell_word, words))


def human_size(size_bytes: float, separator: str = " ") -> str:
    """Return a size with the unit that makes it a number below 1,024: `1.5 GiB`."""
    for unit in _UNITS:
        if abs(size_bytes) < 1024 or unit == _UNITS[-1]:
            break
        size_bytes /= 1024
    return f"{size_bytes:.{0 if unit == 'B' else 1}f}{separator}{unit}"


def _in_ansi_quotes(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    if char.isprintable():
        return char
    # Three octal digits: in some shells, a hexadecimal escape would swallow a digit that follows it.
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", _errors_of(char)))


def _errors_of(char: str) -> str:
    """Return how to encode a lone surrogate: one that represents a byte of a path becomes that byte again."""
    return "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
