"""The text of the program and the manual avoids phrases that read as translated (docs/internals/style.md, "English").

`LEFT` is the most that each part of the tree may still contain. Lower a number when you have rewritten some; the
test fails if a part gains one. To see which are left: `python -m tests.contrib.test_english PART`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PHRASES = {
    "anew": "again",
    "meanwhile": "in the meantime",
    "besides": "also, in addition",
    "(?<!there )(is|are|was|were) no(?! longer| more)": "is not a",
    "but for": "except for",
    "so many": "give the number",
    "as far as": "if, where",
    "(is|are|was|were) to": "must, should, will",
    "of (its|their) own": "separate",
    "told": "reported, printed, warned",
    "tells?": "reports, prints, says",
    "those that": "repeat the noun",
    "whoever": "anyone who",
    "by itself": "automatically",
    "to be had": "available",
}

LEFT = {
    "backyfs": 3,
    "backyfs/config": 1,
    "backyfs/engine": 13,
    "backyfs/metadata": 3,
    "backyfs/repository": 0,
    "backyfs/storage": 2,
    "cli": 1,
    "docs/internals": 7,
    "docs/reference": 1,
}

_PATTERN = re.compile("|".join(rf"(?<![\w-]){phrase}(?![\w-])" for phrase in PHRASES))
_LINE_END = re.compile(r"\s*\n\s*(#:? )?")  # a phrase may continue on the next line of a comment
_TEXT = {".py", ".md", ".sh", ".toml", ".yml"}
_WRITTEN_BEFORE = {"CHANGELOG.md"}


def phrases_in(text: str) -> list[str]:
    """Return the phrases in a text, with some context on each side."""
    line = _LINE_END.sub(" ", text)
    return [line[max(0, hit.start() - 30) : hit.end() + 30] for hit in _PATTERN.finditer(line.lower())]


def parts() -> dict[str, list[Path]]:
    """Return the text files of each part: a package of `backyfs/`, or a directory below the root."""
    found: dict[str, list[Path]] = {}
    for top in ("backyfs", "benchmarks", "cli", "contrib", "docs", "migrations", "tests"):
        for file in sorted((ROOT / top).rglob("*")):
            names = file.relative_to(ROOT).parts
            linked = names[:2] in {("backyfs", "cli"), ("backyfs", "migrations")}
            if file.suffix not in _TEXT or linked or "fixtures" in names or file == Path(__file__).resolve():
                continue
            depth = 2 if len(names) > 2 and top in {"backyfs", "docs", "tests"} else 1
            found.setdefault("/".join(names[:depth]), []).append(file)
    found["."] = [file for file in sorted(ROOT.glob("*.md")) if file.name not in _WRITTEN_BEFORE]
    return found


def test_no_part_gains_a_phrase_that_reads_as_translated() -> None:
    found = {
        part: sum(len(phrases_in(file.read_text(encoding="utf-8"))) for file in files)
        for part, files in parts().items()
    }
    assert {part: count for part, count in found.items() if count > LEFT.get(part, 0)} == {}


def test_the_rule_itself_finds_violations() -> None:
    assert [hit.strip() for hit in phrases_in("# it is no\n# list.")] == ["# it is no list."]
    assert len(phrases_in("He was told to seal it anew, as far as that is to be done.")) == 4
    assert phrases_in("There is no list; reseal_anew() is no longer called, and has its own name.") == []


if __name__ == "__main__":
    for name, files in parts().items():
        if sys.argv[1:] in ([], [name]):
            for each in files:
                hits = phrases_in(each.read_text(encoding="utf-8"))
                sys.stdout.writelines(f"{each.relative_to(ROOT)}: ...{phrase}...\n" for phrase in hits)
