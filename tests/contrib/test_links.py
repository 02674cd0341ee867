"""Links and references have targets: between pages, to headings, and from code, tests and messages to pages."""

from __future__ import annotations

import os
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NOT_OURS = re.compile(r"\.(git|venv|hypothesis|.*_cache)|__pycache__|build|dist|images|corpus|.*\.egg-info")
TEXTS = {"", ".cfg", ".json", ".mako", ".md", ".py", ".service", ".sh", ".timer", ".toml", ".txt", ".yaml"}

FENCE = re.compile(r"^ *```.*?^ *```[^\n]*$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)|^\[[^\]]+\]: +(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
NAMED_PAGE = re.compile(r"(?<![\w./-])docs/[\w./-]+\.(?:md|json)\b")
NAMED_HEADING = re.compile(r'"([^"\n]+)"\s+in\s+`?(docs/[\w./-]+\.md)\b')


def files() -> Iterator[Path]:
    """Yield the text files of the checkout that git does not ignore; symbolic links are not followed."""
    for directory, below, names in os.walk(ROOT):
        if "pyvenv.cfg" in names:  # a virtual environment, whatever its name
            below.clear()
            continue
        below[:] = sorted(name for name in below if not NOT_OURS.fullmatch(name))
        for name in sorted(names):
            file = Path(directory, name)
            if file.suffix in TEXTS and not file.is_symlink() and "fixtures" not in file.relative_to(ROOT).parts[:-2]:
                yield file


FILES = tuple(files())
PAGES = tuple(file for file in FILES if file.suffix == ".md")


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


def links(text: str) -> list[str]:
    """Return the targets of links in a page that are in the checkout."""
    prose = CODE_SPAN.sub("", FENCE.sub("", text))
    targets = (found[1] or found[2] for found in LINK.finditer(prose))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    counts: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{counts[slug]}" if counts[slug] else slug)
        counts[slug] += 1
    return frozenset(found)


def broken(page: Path, text: str) -> list[str]:
    """Return the broken links in the text of a page."""
    wrong = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        file = Path(os.path.normpath(page.parent / path)) if path else page
        if not file.exists() or (anchor and (file.suffix != ".md" or anchor not in anchors(file))):
            wrong.append(target)
    return wrong


def missing(text: str) -> list[str]:
    """Return the pages and headings that a text names but that do not exist."""
    wrong = [path for path in NAMED_PAGE.findall(text) if not (ROOT / path).is_file()]
    for heading, path in NAMED_HEADING.findall(text):
        page = ROOT / path
        if page.is_file() and heading not in HEADING.findall(page.read_text(encoding="utf-8")):
            wrong.append(f"{heading} in {path}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_in_a_page_has_a_target(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_every_page_that_a_file_names_exists() -> None:
    wrong = {named(file): missing(file.read_text(encoding="utf-8")) for file in FILES if file != Path(__file__)}
    assert {name: paths for name, paths in wrong.items() if paths} == {}


def test_pages_code_tests_and_hidden_files_are_all_checked() -> None:
    names = set(map(named, FILES))
    assert {"README.md", "docs/reference/format.md", "cli/commands/scrub.py", "tests/cli/test_claim.py"} <= names
    assert {"migrations/present.py", "Makefile", ".ci/run", "contrib/systemd/README.md"} <= names


@pytest.mark.parametrize("index", [DOCS / "README.md", DOCS / "internals" / "adr" / "README.md"], ids=named)
def test_an_index_lists_every_page_below_it_once(index: Path) -> None:
    below = {page for page in PAGES if page.is_relative_to(index.parent) and page != index}
    if index.parent == DOCS:
        below -= {page for page in below if page.parent.name == "adr" and page.name != "README.md"}
    found = Counter(index.parent / target for target in links(index.read_text(encoding="utf-8")))
    assert {page for page, count in found.items() if page in below and count == 1} == below


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("see [the index](../../docs/README.md) and [this](#links)", []),
        ("see [nothing](nothing.md)", ["nothing.md"]),
        ("a link [over two\nlines](nothing.md)", ["nothing.md"]),
        ("see [an absolute path](/docs/README.md)", ["/docs/README.md"]),
        ("see [a missing heading](#elsewhere)", ["#elsewhere"]),
        ("see [a heading of another page](../../docs/reference/format.md#identity)", []),
        ("see [another](../../docs/reference/format.md#nothing)", ["../../docs/reference/format.md#nothing"]),
        ("see [elsewhere](https://example.org/nothing.md)", []),
        ("by [reference][1]\n\n[1]: nothing.md", ["nothing.md"]),
        ("`[code](nothing.md)` and\n```\n[code](nothing.md)\n```\n", []),
    ],
)
def test_a_broken_link_is_found(tmp_path: Path, text: str, wrong: list[str]) -> None:
    page = tmp_path / "docs" / "internals" / "page.md"
    page.parent.mkdir(parents=True)
    page.write_text(f"# Links\n\n{text}\n")
    (tmp_path / "docs" / "README.md").write_text("# Index\n")
    (tmp_path / "docs" / "reference").mkdir()
    (tmp_path / "docs" / "reference" / "format.md").write_text("# Formats\n\n## Identity\n")
    assert broken(page, page.read_text()) == wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("see docs/reference/format.md", []),
        ("see docs/format.md.", ["docs/format.md"]),
        ("`docs/output.schema.json`", ["docs/output.schema.json"]),
        ('"Going back" in docs/operate/upgrade.md', []),
        ('see "Going ahead" in `docs/operate/upgrade.md`', ["Going ahead in docs/operate/upgrade.md"]),
        ("https://example.org/docs/nothing.md", []),
    ],
)
def test_a_missing_page_is_found(text: str, wrong: list[str]) -> None:
    assert missing(text) == wrong
