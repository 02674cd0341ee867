"""Errors and remedies: how fields form a message, and what the library may put in one."""

from __future__ import annotations

import ast
import copy
import pickle
from string import Formatter

import pytest

from backyfs.cli.remedies import RENDERINGS, render, render_error, render_remedy
from backyfs.errors import (
    BackyfsError,
    ConfigError,
    ObjectMissingError,
    OddValueError,
    OutputError,
    StorageError,
    TargetError,
)
from backyfs.remedies import Advice, Remedy
from tests.unit.test_layers import MODULES


def test_a_message_consists_of_subject_fact_and_remedy() -> None:
    error = StorageError("is not empty", subject="directory /srv", remedy="name another one")
    assert str(error) == "directory /srv is not empty; name another one"
    assert error.statement == "directory /srv is not empty"
    assert (error.subject, error.fact) == ("directory /srv", "is not empty")


def test_a_fact_alone_is_enough_for_a_message() -> None:
    assert str(StorageError("is cut short")) == "is cut short"


def test_a_subject_may_end_in_a_colon() -> None:
    assert str(TargetError("Permission denied", subject="/dev/sdb:")) == "/dev/sdb: Permission denied"


def test_a_caller_can_assign_the_subject() -> None:
    error = StorageError("is cut short")
    error.subject = "blob 1f"
    assert str(error) == "blob 1f is cut short"


def test_a_text_that_already_names_the_subject_can_omit_it() -> None:
    error = StorageError("is empty", subject="blob 1f", remedy="look")
    assert error.without("blob 1f") == "is empty; look"
    assert error.without("blob 2f") == "blob 1f is empty; look"


def test_an_added_remedy_follows_the_existing_one() -> None:
    error = TargetError("is full", subject="/srv", remedy="make room")
    error.advise(Advice.CONTINUE_RESTORE(block=5))
    error.advise(Remedy("see the log"))
    text = "/srv is full; make room; the target is incomplete: "
    assert str(error) == f"{text}continue from block 5; see the log"
    assert render_error(error) == f"{text}add --continue-from 5 to continue; see the log"


def test_an_added_remedy_may_be_the_first() -> None:
    error = TargetError("is full", subject="/srv")
    error.advise(Advice.CONTINUE_RESTORE(block=5))
    assert str(error) == "/srv is full; the target is incomplete: continue from block 5"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigError("it is wrong"), "it is wrong"),
        (ConfigError("it is wrong", file="/etc/backyfs.cfg"), "/etc/backyfs.cfg: it is wrong"),
        (ConfigError("it is wrong", section="DEFAULTS"), "[DEFAULTS]: it is wrong"),
        (
            ConfigError("it is wrong", file="/etc/backyfs.cfg", line=7, section="DEFAULTS", key="logfile"),
            "/etc/backyfs.cfg, line 7: [DEFAULTS] logfile: it is wrong",
        ),
    ],
)
def test_a_mistake_in_the_configuration_begins_with_its_place(error: ConfigError, message: str) -> None:
    assert str(error) == message
    assert error.fact == "it is wrong"


def test_a_missing_object_is_the_subject_of_its_error() -> None:
    assert str(ObjectMissingError("1f")) == "blob 1f is missing from the storage"
    assert str(ObjectMissingError("catalog/index", "was deleted")) == "object catalog/index was deleted"


@pytest.mark.parametrize(
    "error",
    [
        BackyfsError("is full", subject="/srv", remedy=Advice.CONTINUE_RESTORE(block=5).then(Remedy("or not"))),
        ConfigError("it is wrong", file="/etc/backyfs.cfg", line=7, section="DEFAULTS", key="logfile"),
        ObjectMissingError("1f"),
        ObjectMissingError("catalog/index"),
        OddValueError("blobs", "size", "-1; a number from 0", "row with id 5"),
        OutputError(),
    ],
)
def test_an_error_survives_copying_and_pickling(error: BackyfsError) -> None:
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)
        assert other.args == error.args


def test_a_rendering_quotes_values_only_in_commands() -> None:
    remedy = Advice.UNMOUNT(path="/mnt/my image")
    assert str(remedy) == "unmount /mnt/my image first"
    assert render_remedy(remedy) == "run `backyfs umount '/mnt/my image'` first"
    assert render_remedy(Advice.RESTORE_AGAIN(step="make room")) == (
        "make room, then restore it again with --force, or to another disk"
    )


def test_anything_but_errors_and_remedies_is_printed_unchanged() -> None:
    assert render(5) == 5
    assert render(StorageError("is empty", remedy=Advice.SCRUB())) == "is empty; run `backyfs scrub`"
    assert render(Advice.SCRUB()) == "run `backyfs scrub`"


def _names_in(*templates: str) -> set[str]:
    return {name for template in templates for _, name, _, _ in Formatter().parse(template) if name}


@pytest.mark.parametrize("advice", Advice)
def test_every_advice_has_a_rendering(advice: Advice) -> None:
    assert RENDERINGS[advice]
    assert "--" not in advice.value
    assert "backyfs " not in advice.value


def _calls() -> list[tuple[str, Advice, set[str]]]:
    """Return every call of an advice: its place, the advice, and the names of its values."""
    found = []
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="Advice"), attr=name), keywords=keywords, args=[]):
                    names = {str(keyword.arg) for keyword in keywords}
                    found.append((f"{module}:{node.lineno}", Advice[name], names))
    return found


def test_every_advice_is_used_somewhere() -> None:
    assert {advice for _, advice, _ in _calls()} == set(Advice)


def test_every_call_of_an_advice_passes_the_values_in_its_text() -> None:
    wrong = [
        (place, advice.name, names)
        for place, advice, names in _calls()
        if names != _names_in(advice.value, RENDERINGS[advice])
    ]
    assert wrong == []
