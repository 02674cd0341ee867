"""Inode numbers exist as long as the kernel remembers them, and are never reused."""

from __future__ import annotations

import pytest

from backyfs.model import VersionUid
from backyfs.mount.inodes import Inodes
from backyfs.mount.tree import Data, Top, VersionDirectory

ROOT = 1
DATA = Data(VersionUid("a"))
OTHER = VersionDirectory(VersionUid("a"))


def test_the_root_has_the_first_number_and_keeps_it() -> None:
    inodes = Inodes(ROOT)
    assert inodes.node(ROOT) is Top.ROOT
    inodes.forget(ROOT, 1_000_000)
    assert inodes.node(ROOT) is Top.ROOT
    assert inodes.number(Top.ROOT) == ROOT


def test_a_node_keeps_its_number_while_the_kernel_remembers_it() -> None:
    inodes = Inodes(ROOT)
    number = inodes.number(DATA)
    inodes.count(number)
    inodes.count(number)
    inodes.forget(number, 1)
    assert inodes.number(DATA) == number
    assert inodes.node(number) == DATA


def test_a_forgotten_number_is_gone_and_not_reused() -> None:
    inodes = Inodes(ROOT)
    number = inodes.number(DATA)
    inodes.count(number)
    before = len(inodes)
    inodes.forget(number, 1)
    assert len(inodes) == before - 1
    with pytest.raises(LookupError):
        inodes.node(number)
    assert inodes.number(OTHER) != number
    assert inodes.number(DATA) != number


def test_a_number_the_kernel_never_got_can_be_dropped() -> None:
    inodes = Inodes(ROOT)
    number = inodes.number(DATA)
    inodes.drop_uncounted(number)
    with pytest.raises(LookupError):
        inodes.node(number)


def test_a_number_the_kernel_got_is_not_dropped() -> None:
    inodes = Inodes(ROOT)
    number = inodes.number(DATA)
    inodes.count(number)
    inodes.drop_uncounted(number)
    assert inodes.node(number) == DATA


def test_forgetting_an_unknown_number_changes_nothing() -> None:
    inodes = Inodes(ROOT)
    known = len(inodes)
    coming = inodes.number(DATA) + 1
    inodes.forget(coming, 5)
    assert len(inodes) == known + 1
    assert inodes.number(OTHER) == coming
    inodes.count(coming)  # the five lookups are not subtracted from this one
    assert inodes.node(coming) == OTHER
    inodes.forget(coming, 1)
    with pytest.raises(LookupError):
        inodes.node(coming)
