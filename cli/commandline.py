"""The command line as it may be logged: without what is secret in it."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from backyfs.cli.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

_HIDDEN = "***"
# Programs that print a key or passphrase may be given the way to it, or be `echo` and the key itself.
_SECRET_OPTION = re.compile(r"--[a-z-]*(command|passphrase|password|secret|token|key)")
# user:password@ of a URL; user and password may hold an @, and where the host was forgotten there is none at all.
_USER_INFO = re.compile(r"([:/]/[^:\s]*):.*@|(://[^:/@\s]+):(?!\d{1,5}(?:[/?\s]|$)).*")
# The same where :// was forgotten. NAME@latest is not one, whatever is in NAME.
_WITHOUT_SLASHES = re.compile(r"((?:postgres|mysql|mariadb)[a-z0-9_+]*:[^:\s]*):\S*@")  # postgresql:user:password@
_WITHOUT_ENGINE = re.compile(r"(?<!\S)([^:/\s]+):[^/\s]*@(?=[^/\s]+/)")                # user:password@host/
_PARAMETER = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token|key)[^=&]*=)[^&]*", re.IGNORECASE)  # ?password=
_KEY = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])")  # an encryption key


def shown_command_line(words: Iterable[str]) -> str:
    """Return the words after `backyfs` as a shell takes them, on one line; secrets become ***."""
    shown = []
    hides_next = False
    for word in words:
        option, equals, _ = word.partition("=")
        is_secret = _SECRET_OPTION.fullmatch(option) is not None
        if hides_next:
            shown.append(_HIDDEN)
        elif is_secret and equals:
            shown.append(f"{option}={_HIDDEN}")
        else:
            shown.append(shlex.quote(without_secrets(word)))
        hides_next = is_secret and not equals and not hides_next
    return printable(" ".join(["backyfs", *shown]))


def without_secrets(word: str) -> str:
    """Return text without the passwords of URLs in it, and without keys; they become ***."""
    word = _USER_INFO.sub(_without_password, word)
    for pattern in (_WITHOUT_SLASHES, _WITHOUT_ENGINE):
        word = pattern.sub(rf"\1:{_HIDDEN}@", word)
    word = _PARAMETER.sub(rf"\g<1>{_HIDDEN}", word)
    return _KEY.sub(_HIDDEN, word)


def _without_password(found: re.Match[str]) -> str:
    return f"{found[1]}:{_HIDDEN}@" if found[1] is not None else f"{found[2]}:{_HIDDEN}"
