r"""Parse a line of bash up to the cursor: its words, and the quotes in which the last one ends.

Bash inserts a completion unchanged, and pressing Enter runs the line. Names of versions can contain anything, so they
are quoted for their position: outside of quotes, in "", in '' and in $'', each of which has its own rules.

Neither shlex nor click can replace this. They do not report in which quotes a line ends, and know neither $'' nor
COMP_WORDBREAKS, which decides how much of a word bash keeps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TAKEN_ALONG = "@$"  # readline's rl_special_prefixes, as set by bash: they are part of the word to replace
_ANSI, _DOUBLE, _SINGLE = "$'", '"', "'"
_OPENING = re.compile(r"""\$?['"]""")
_NOT_SAFE = re.compile(r"[^\w@%+=:,./^-]", re.ASCII)  # characters that may be syntax for bash
_ESCAPED_IN_DOUBLE = re.compile(r'[\\"$`]')
_UNKNOWN = "\0"  # names do not contain it, so a word with it has no completions


@dataclass(slots=True)
class BashLine:
    """A parsed line."""

    words: tuple[str, ...] = ()  # complete words, without quotes
    last: str = ""               # the word to complete
    kept: int = 0                # number of its characters that bash does not replace
    quote: str = ""              # the opening quotes in which it ends; empty: none
    expands: bool = False        # it has a $ or ` that bash would expand
    _begun: bool = False
    _kept_before: int = 0        # `kept` in front of the quotes

    @classmethod
    def of(cls, line: str, breaks: str) -> BashLine:
        """Parse a line; `breaks` are the characters of COMP_WORDBREAKS."""
        read = cls()
        at = 0
        while at < len(line):
            at += read._take(line[at:], breaks)
        return read

    def _take(self, rest: str, breaks: str) -> int:
        """Parse the beginning of the rest of the line; return the number of characters."""
        if rest[0] == "\\" and self.quote != _SINGLE:
            return self._take_escape(rest[1:2])
        return self._take_in_quotes(rest[0]) if self.quote else self._take_plain(rest, breaks)

    def _take_escape(self, char: str) -> int:
        """Parse a backslash and the character after it, if there is one."""
        if self.quote == _DOUBLE and char and not _ESCAPED_IN_DOUBLE.match(char):
            return self._add("\\")
        if self.quote == _ANSI and char not in "\\'\"":
            return self._add(_UNKNOWN, 2)
        return self._add(char, 2)

    def _take_in_quotes(self, char: str) -> int:
        if char == self.quote[-1]:
            self.quote, self.kept = "", self._kept_before  # for readline, only an open quote begins a word
            return 1
        self.expands |= self.quote == _DOUBLE and char in "$`"
        return self._add(char)

    def _take_plain(self, rest: str, breaks: str) -> int:
        opening = _OPENING.match(rest)
        if opening is not None:
            self.quote, self.kept, self._kept_before, self._begun = opening[0], len(self.last), self.kept, True
            if opening[0] == '$"':
                self.quote = _DOUBLE
            return len(opening[0])
        if rest[0].isspace():
            self.words += (self.last,) if self._begun else ()
            self.last, self.kept, self.expands, self._begun = "", 0, False, False
            return 1
        self.expands |= rest[0] in "$`"
        if rest[0] in breaks:
            self.kept = len(self.last) + (rest[0] not in _TAKEN_ALONG)
        return self._add(rest[0])

    def _add(self, text: str, length: int = 1) -> int:
        self.last += text
        self._begun = True
        return length


def quoted(text: str, quote: str) -> str:
    """Return text for insertion within these quotes, which stay open."""
    if quote == _DOUBLE:
        # In double quotes, an exclamation mark still recalls a command, and a backslash before it would be kept.
        return _ESCAPED_IN_DOUBLE.sub(r"\\\g<0>", text).replace("!", "\"'!'\"")
    if quote == _SINGLE:
        return text.replace("'", r"'\''")
    if quote == _ANSI:
        return text.replace("\\", r"\\").replace("'", r"\'")
    return _NOT_SAFE.sub(lambda found: f"\\{found[0]}" if found[0].isascii() else found[0], text)
