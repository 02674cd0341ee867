"""Foreign files in the place of objects: commands end and say what is damaged."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from backyfs.engine.catalog.publish import publish
from tests.support.images import random_image
from tests.support.obstacles import put_in_place
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, back_up, opened

DEADLINE_S = 120
DAMAGE = 20


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ("??/??/*.blob", "scrub --all"),
        ("??/??/*.blob", "restore {uid} {home}/target"),
        ("??/??/*.blob", "cleanup --full"),
        ("catalog/versions/*", "catalog check"),
        ("catalog/versions/*", "recover --to sqlite:///{home}/new.sqlite"),
    ],
    ids=["scrub", "restore", "cleanup", "catalog", "recover"],
)
def test_no_command_waits_for_a_fifo_in_the_place_of_an_object(
    config: Path, tmp_path: Path, objects: str, words: str
) -> None:
    with opened(config) as repository:
        uid = back_up(repository, random_image(tmp_path / "image", 3 * BLOCK)).version.uid
        publish(repository)
    place = min((config.parent / "data").glob(objects))
    put_in_place(place, "a FIFO")
    # In a separate process: opening a FIFO blocks, and this used to ignore Ctrl-C.
    done = subprocess.run(
        [BACKYFS, "-c", str(config), *words.format(uid=uid, home=tmp_path).split()],
        capture_output=True, text=True, check=False, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == DAMAGE, done.stderr
    assert f"{place} is a FIFO; move it away" in done.stdout + done.stderr
