"""Write and read the recovery page: a key as text to type from paper, with a checksum in each group.

Eight groups contain four bytes each, and the ninth the beginning of the key's check value. A group is eight characters
of Crockford's base 32: its bytes and a CRC-8 over group number and bytes. A wrong character or two swapped groups are
always detected, and the error names the group.
"""

from __future__ import annotations

import re

from backyfs.errors import KeyMaterialError
from backyfs.keys import KEY_BYTES, key_check

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)} | {"I": 1, "L": 1, "O": 0}
_GROUP_BYTES = 4
_GROUP_LETTERS = 8
_POLYNOMIAL = 0x07
GROUPS = KEY_BYTES // _GROUP_BYTES + 1

_LINE = re.compile(r"\s*(\d+)\s*[:.)]\s*(.*?)\s*")


def write_groups(key: bytes) -> tuple[str, ...]:
    """Return the groups of a key: `0AB1-2CDE` each."""
    whole = key + key_check(key)[:_GROUP_BYTES]
    return tuple(
        _write(number, whole[_GROUP_BYTES * (number - 1) : _GROUP_BYTES * number]) for number in range(1, GROUPS + 1)
    )


def write_page(key: bytes) -> str:
    """Return the lines of a page that contain the key."""
    return "".join(f"{number}: {group}\n" for number, group in enumerate(write_groups(key), start=1))


def read_page(text: str) -> bytes:
    """Return the key of a page. Lines that do not begin with a number and a colon are ignored.

    Lower case, spaces and hyphens do not matter. O counts as 0, and I and L count as 1.

    Raises:
        KeyMaterialError: a group is missing, duplicate, or has a mistake. The message names it.
    """
    groups: dict[int, bytes] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        digits = match[1]
        number = int(digits) if len(digits) <= 2 else 0
        if not 1 <= number <= GROUPS:
            raise KeyMaterialError(f"has a group {digits}; its groups are 1 to {GROUPS}", subject="the recovery page")
        if number in groups:
            raise KeyMaterialError(
                f"has group {number} twice", subject="the recovery page", remedy="remove one of them"
            )
        groups[number] = _read(number, match[2])
    missing = [str(number) for number in range(1, GROUPS + 1) if number not in groups]
    if missing:
        raise KeyMaterialError(
            f"lacks group {', '.join(missing)}",
            subject="the recovery page",
            remedy="each group is a line, as `1: 0AB1-2CDE`",
        )
    key = b"".join(groups[number] for number in range(1, GROUPS))
    if key_check(key)[:_GROUP_BYTES] != groups[GROUPS]:
        raise KeyMaterialError(
            "do not belong together",
            subject="the groups of the recovery page",
            remedy="are all of them from the same page?",
        )
    return key


def _write(number: int, content: bytes) -> str:
    value = int.from_bytes(content + bytes([_crc(number, content)]), "big")
    letters = "".join(_ALPHABET[value >> 5 * place & 31] for place in reversed(range(_GROUP_LETTERS)))
    return f"{letters[:4]}-{letters[4:]}"


def _read(number: int, text: str) -> bytes:
    letters = re.sub(r"[\s-]", "", text).upper()
    if len(letters) != _GROUP_LETTERS:
        raise KeyMaterialError(
            f"has {len(letters)} characters and not {_GROUP_LETTERS}",
            subject=f"group {number} of the recovery page",
            remedy="compare it with the paper",
        )
    value = 0
    for letter in letters:
        if letter not in _VALUES:
            raise KeyMaterialError(
                f"has a character that is in no group, {letter!r}",
                subject=f"group {number} of the recovery page",
                remedy="compare it with the paper",
            )
        value = value << 5 | _VALUES[letter]
    content, crc = (value >> 8).to_bytes(_GROUP_BYTES, "big"), value & 255
    if crc != _crc(number, content):
        raise KeyMaterialError(
            "has a mistake: its checksum is wrong",
            subject=f"group {number} of the recovery page",
            remedy="compare it with the paper",
        )
    return content


def _crc(number: int, content: bytes) -> int:
    crc = number
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (_POLYNOMIAL if crc & 128 else 0)) & 255
    return crc
