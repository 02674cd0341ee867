"""Unit files as systemd reads them, with only the features used in contrib/systemd."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

UNITS = Path(__file__).resolve().parents[2] / "contrib" / "systemd"


def settings(name: str) -> list[tuple[str, str]]:
    """Return keys and values of a unit, in order."""
    lines = (UNITS / name).read_text().splitlines()
    pairs = (line.partition("=") for line in lines if not line.startswith(("#", "[")))
    return [(key, value) for key, equals, value in pairs if equals]


def specified(text: str, instance: str) -> str:
    """Fill in the specifiers of an instance, systemd.unit(5): %I is unescaped, %i is not."""
    plain = re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), instance.replace("-", "/"))
    values = {"%i": instance, "%I": plain, "%f": f"/{plain.lstrip('/')}", "%%": "%"}
    return re.sub(r"%.", lambda found: values[found[0]], text)


def command_lines(name: str, instance: str, etc: Path) -> list[list[str]]:
    """Return the words of every ExecStart= of a unit, systemd.service(5); `etc` stands for /etc.

    A word `$NAME` becomes the words of the variable, `${NAME}` a part of one word. Files take precedence over the unit.
    """
    given: dict[str, str] = {}
    from_files: dict[str, str] = {}
    for key, value in settings(name):
        if key == "Environment":
            given |= _assignments(shlex.split(specified(value, instance)))
        elif key == "EnvironmentFile":
            file = etc / specified(value, instance).removeprefix("/etc/")
            from_files |= _assignments(
                word for line in file.read_text().splitlines() for word in shlex.split(line, comments=True)
            )
    environment = given | from_files
    lines = [value for key, value in settings(name) if key == "ExecStart"]
    return [
        [filled for word in shlex.split(line) for filled in _filled(word, instance, environment)] for line in lines
    ]


def _assignments(words: Iterable[str]) -> dict[str, str]:
    pairs = (word.partition("=") for word in words)
    return {name: value for name, _, value in pairs}


def _filled(word: str, instance: str, environment: dict[str, str]) -> list[str]:
    if word.startswith("$") and word[1:].isidentifier():
        return environment.get(word[1:], "").split()
    return [re.sub(r"\$\{(\w+)\}", lambda found: environment.get(found[1], ""), specified(word, instance))]
