"""Every parser on its corpus, and on what chance makes of it: an error of ours, or something, in bounded memory."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.parsers import EXPECTED, MOST_CONTENT, PARSERS

if TYPE_CHECKING:
    from collections.abc import Callable

# For a long run by chance: BACKYFS_EXAMPLES=100000 .venv/bin/python -m pytest tests/fuzz
MANY = int(os.environ.get("BACKYFS_EXAMPLES", "0"))
EXAMPLES = 150
CORPUS = Path(__file__).parent / "corpus"
MOST_MEMORY = 64 << 20  # of what is made of 64 KiB; a partition table is read from an image of 1 MiB
INTERESTING = (
    b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\xff" * 8, b"\x00\x00\x00\x80", b"-1", b"9" * 30, b"1e999", b"NaN",
    b"null", b"true", b"[" * 200, b'{"a":' * 200, b"\\ud800", b"../../x",
    b"\x00/", b"%(x)s", b"\r", b"\n", b"\xe2\x80\xae",
)  # fmt: skip


def samples(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


@st.composite
def mutated(draw: st.DrawFn, corpus: list[bytes]) -> bytes:
    """Take a sample, and change it at some places."""
    content = bytearray(draw(st.sampled_from(corpus)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 16))
        match draw(st.integers(0, 5)):
            case 0:
                content[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case 1:
                del content[at : at + length]
            case 2:
                content[at:at] = draw(st.sampled_from(INTERESTING))
            case 3:
                content[at : at + length] = draw(st.sampled_from(INTERESTING))
            case 4:
                del content[at:]
            case 5:
                other = draw(st.sampled_from(corpus))
                start = draw(st.integers(0, len(other)))
                content[at:] = other[start:]
    return bytes(content[:MOST_CONTENT])


def parse(parser: Callable[[bytes], object], content: bytes) -> bool:
    """Parse it; return whether it was right."""
    try:
        parser(content)
    except EXPECTED:
        return False
    return True


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_each_corpus_has_what_is_right_and_what_is_wrong(name: str) -> None:
    found = [parse(PARSERS[name], content) for content in samples(name)]
    assert True in found
    assert len(found) > 1


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_whatever_a_parser_is_given_it_returns_or_raises_an_error_of_ours(name: str) -> None:
    @settings(
        max_examples=MANY or EXAMPLES, derandomize=not MANY, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(content=mutated(samples(name)) | st.binary(max_size=300))
    def check(content: bytes) -> None:
        parse(PARSERS[name], content)

    check()


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_what_is_made_of_little_takes_little_memory(name: str) -> None:
    bomb = bytes(range(256)) * (MOST_CONTENT // 256)
    for content in (*samples(name), bomb, b"0" * MOST_CONTENT, b"[" * MOST_CONTENT, b"\n" * MOST_CONTENT):
        tracemalloc.start()
        try:
            parse(PARSERS[name], content)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MOST_MEMORY
