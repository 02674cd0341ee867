"""Text chosen by others: characters that control a terminal, and words for a shell."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backyfs.text import escaped, human_size, is_control, shell_word, shell_words


@pytest.mark.parametrize(
    "char",
    [
        "\0", "\t", "\n", "\r", "\x1b", "\x7f", "\x80", "\x85", "\x9b", "\x9f", "\xad", "\u061c", "\u200b", "\u200e",
        "\u200f", "\u2028", "\u2029", "\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068",
        "\u2069", "\u206a", "\ufeff", "\ufff9", "\U000e0001", "\udc80",
    ],
)  # fmt: skip
def test_a_character_that_terminals_obey_is_a_control_character(char):
    assert is_control(char)


@pytest.mark.parametrize("char", [*" a~|\\'\"$`", "\xa0", "ö", "€", "\u3000", "\u200c", "\u200d", "🙂", "\ue000"])
def test_a_character_that_terminals_show_is_not_a_control_character(char):
    assert not is_control(char)


@pytest.mark.parametrize(
    ("char", "expected"), [("\n", r"\x0a"), ("\x9b", r"\x9b"), ("\u202e", r"\u202e"), ("\U000e0001", r"\U000e0001")]
)
def test_the_letter_of_an_escape_determines_its_number_of_digits(char, expected):
    assert escaped(char) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("/mnt/disk", "/mnt/disk"),
        ("my disk", "'my disk'"),
        ("x;touch P;#", "'x;touch P;#'"),
        ("$(id)", "'$(id)'"),
        ("", "''"),
        ("a\nb", r"$'a\012b'"),
        ("\x1b'\\", r"$'\033\'\\'"),
        ("\udcff1", r"$'\3771'"),
        ("\u202e", r"$'\342\200\256'"),
    ],
)
def test_a_word_is_quoted_if_necessary(text, word):
    assert shell_word(text) == word


def test_every_word_of_a_command_is_quoted_if_necessary():
    assert shell_words("umount", "/a b", "/c") == "umount '/a b' /c"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 20, "1.0 MiB"), (5 << 40, "5.0 TiB"),
        (1 << 60, "1.0 EiB"), (1 << 71, "2048.0 EiB"), (-2048, "-2.0 KiB"), (0.4, "0 B"),
    ],
)  # fmt: skip
def test_a_size_has_a_unit_that_makes_it_short(size_bytes, text):
    assert human_size(size_bytes) == text
    assert human_size(size_bytes, "") == text.replace(" ", "")


WORD = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=12)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@settings(max_examples=40, deadline=None)
@given(words=st.lists(WORD, min_size=1, max_size=20))
def test_a_shell_reads_a_quoted_word_as_the_original_text(shell, words):
    program = shutil.which(shell)
    assert program is not None, f"{shell} is not installed"
    words = [*words, "\udcff\u202e'\\\n!$(id)"]
    command = [program, "-c", f"printf '%s\\0' {shell_words(*words)}"]
    done = subprocess.run(command, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    expected = [b"".join(char.encode("utf-8", _how(char)) for char in word) for word in words]
    assert done.stdout.split(b"\0")[:-1] == expected


def _how(char):
    return "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
