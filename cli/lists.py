"""Parse lists such as `a,b`: one line of CSV. White space around items is dropped."""

from __future__ import annotations

import re

# A quoted item, in which "" means a quote, or an unquoted one, which may be empty. Then a comma or the end.
_ITEM = re.compile(r'\s*(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>(?:[^",\r\n][^,\r\n]*?)?))\s*(?P<comma>,|\Z)')


def split_list(text: str) -> tuple[str, ...]:
    """Return the items of a list. A quoted item may contain a comma, and items can be empty.

    The module `csv` would treat the blank before a quoted item, as in `a, "b,c"`, as a part of it.

    Raises:
        ValueError: a quote is not closed or has text after it, or the text has several lines.
    """
    items: list[str] = []
    position = 0
    while True:
        found = _ITEM.match(text, position)
        if found is None:
            raise ValueError(f"{text!r} is not a list")
        quoted = found["quoted"]
        items.append((found["plain"] if quoted is None else quoted.replace('""', '"')).strip())
        if not found["comma"]:
            return tuple(items)
        position = found.end()
