"""Show the command line in the log without the secrets in it."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from backyfs.cli.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

_HIDDEN = "***"
# A command that prints a key or passphrase may show where it is, or may even be `echo` and the key itself.
_SECRET_OPTION = re.compile(r"--[a-z-]*(command|passphrase|password|secret|token|key)")
# user:password@ in a URL. User and password can contain an @; if the host was forgotten, there is no @ at all.
_USER_INFO = re.compile(r"([:/]/[^:\s]*):.*@|(://[^:/@\s]+):(?!\d{1,5}(?:[/?\s]|$)).*")
# The same without ://. NAME@latest must not match, whatever NAME contains.
_WITHOUT_SLASHES = re.compile(r"((?:postgres|mysql|mariadb)[a-z0-9_+]*:[^:\s]*):\S*@")  # postgresql:user:password@
_WITHOUT_ENGINE = re.compile(r"(?<!\S)([^:/\s]+):[^/\s]*@(?=[^/\s]+/)")                # user:password@host/
_PARAMETER = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token|key)[^=&]*=)[^&]*", re.IGNORECASE)  # ?password=
_KEY = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])")  # an encryption key


def shown_command_line(words: Iterable[str]) -> str:
    """Return the command line of `backyfs`, quoted for a shell, on one line. Secrets become ***."""
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
    """Return text with passwords in URLs, and keys, replaced by ***."""
    word = _USER_INFO.sub(_without_password, word)
    for pattern in (_WITHOUT_SLASHES, _WITHOUT_ENGINE):
        word = pattern.sub(rf"\1:{_HIDDEN}@", word)
    word = _PARAMETER.sub(rf"\g<1>{_HIDDEN}", word)
    return _KEY.sub(_HIDDEN, word)


def _without_password(found: re.Match[str]) -> str:
    return f"{found[1]}:{_HIDDEN}@" if found[1] is not None else f"{found[2]}:{_HIDDEN}"
