"""Names that try to forge rows or control the terminal: how commands print them, in every form."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backyfs.cli.main import run
from backyfs.cli.output import pipe_field
from backyfs.metadata.records.versions import list_versions
from backyfs.text import is_control
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up, make_repository, opened

HOSTILE = (
    "new\nline", "a|b", "esc\x1b[2J", "cr\rx", "csi\x9b2J", "nel\x85x", "rlo\u202excod.exe", "lri\u2066x\u2069",
    "lrm\u200ex", "ls\u2028x", "del\x7f", "tab\tx", "tag\U000e0041", r"like\x0aan escape",
)  # fmt: skip
HARMLESS = ("disk", "wörld", r"C:\Users\x1", "a  b", "'\"$(x)`", "nbsp\xa0x", "joiner\u200dx", "50%", "\\")
ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")


def read_back(field):
    """Return the value of a field, read as docs/use/reports.md describes."""
    return ESCAPE.sub(lambda found: chr(int(found[1] or found[2] or found[3], 16)), field)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("names")
    file = make_repository(directory / "repository")
    image = random_image(directory / "image", BLOCK)
    with opened(file) as repository:
        for name in HOSTILE + HARMLESS:
            back_up(repository, image, name=name)
    file.write_text(file.read_text() + "[daily]\ninterval: 1d\nkeep: 3\nsla: 1h\n")
    return file


@pytest.fixture
def call(config, capfd):
    def call(*words):
        status = run(["-c", str(config), *words])
        captured = capfd.readouterr()
        assert status == 0, captured.err
        return captured.out

    return call


@given(st.text(st.characters(exclude_categories=())))
@example("\\x7c|")
@example("\\\\x7c")
@example("\\x7\x7f")
@example("\udcff")
def test_a_value_remains_one_field_and_can_be_read_back(text):
    field = pipe_field(text)
    assert "|" not in field
    assert not any(map(is_control, field))
    assert read_back(field) == text


@pytest.mark.parametrize("text", HARMLESS)
def test_a_harmless_value_is_printed_as_backy2_prints_it(text):
    assert pipe_field(text) == text


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("a\nb|c", r"a\x0ab\x7cc"),
        ("\x9b\u202e\U000e0041", r"\x9b\u202e\U000e0041"),
        (r"\x0a \x0A \u202e \u20", r"\x5cx0a \x0A \x5cu202e \u20"),
    ],
)
def test_other_values_are_escaped(text, field):
    assert pipe_field(text) == field


@pytest.mark.parametrize(
    "words",
    [["ls"], ["ls", "-f", "uid,name"], ["du"], ["stats"], ["stats", "-f", "uid,name"], ["due"], ["sla"], ["jobs"]],
)
def test_no_name_forges_a_row_or_a_field(call, words):
    lines = call("-m", *words).split("\n")
    assert lines.pop() == ""
    assert len({line.count("|") for line in lines}) == 1
    assert not any(is_control(char) for line in lines for char in line)
    if words[0] in {"ls", "du", "stats"}:
        assert len(lines) == 1 + len(HOSTILE + HARMLESS)


def test_names_can_be_read_back(call):
    header, *rows = call("-m", "ls", "-f", "uid,name").splitlines()
    assert header == "uid|name"
    assert {read_back(row.split("|")[1]) for row in rows} == {*HOSTILE, *HARMLESS}


def test_a_tag_forges_no_field(config, call):
    with opened(config) as repository, repository.database.read() as connection:
        uid = list_versions(connection)[0].uid
    call("add-tag", uid, '"a,b","c|d\u202e"')
    assert rf"{uid}|a,b,c\x7cd\u202e" in call("-m", "ls", "-f", "uid,tags").splitlines()


@pytest.mark.parametrize(
    "words", [["ls"], ["du", "--plot"], ["stats"], ["-v", "ls"], ["restore", "x\u202e@latest", "/x"]]
)
def test_a_table_does_not_control_the_terminal(config, capfd, words):
    run(["-c", str(config), *words])
    captured = capfd.readouterr()
    assert not any(is_control(char) for char in (captured.out + captured.err).replace("\n", ""))


def test_json_has_full_names_and_does_not_control_the_terminal(call):
    out = call("--json", "ls")
    assert not any(is_control(char) for char in out.replace("\n", ""))
    assert {one["name"] for one in json.loads(out)} == {*HOSTILE, *HARMLESS}


def test_the_path_of_a_configuration_is_printed_on_one_line(tmp_path, capfd):
    directory = tmp_path / "a\u202eb|c"
    words = ["init", "--data", str(tmp_path / "data"), "--db", str(tmp_path / "x.sqlite")]
    assert run(["-c", str(directory / "x.cfg"), "-m", *words]) == 0
    assert capfd.readouterr().out == f"{tmp_path}/a\\u202eb\\x7cc/x.cfg\n"


def test_a_traceback_does_not_control_the_terminal(capfd, tmp_path):
    assert run(["-c", str(tmp_path / "\x1b[2J\u202e"), "--debug", "ls"]) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert not any(is_control(char) for char in err.replace("\n", ""))
