"""The units of contrib/systemd with the configuration that we ship, over several weeks.

The commands of the units run in this process. Time passes by making everything stored older.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from backyfs.cli.main import run
from backyfs.metadata.db.tables import blobs, versions
from backyfs.metadata.records.versions import list_versions
from tests.contrib.unitfile import command_lines, settings
from tests.support.images import random_bytes, random_image
from tests.support.repositories import BLOCK, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.model import Version

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "reference" / "configuration.md"
NIGHTS = 70
BLOCKS = 6
WEB = "web-01"
# Minutes by which RandomizedDelaySec= moves a night. No two neighbours are equal, so nothing depends on a second.
DELAYS = (0, 17, 3, 29, 11, 22, 6)


class Machine:
    """A machine with our units, and the repository that they use."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.etc = directory / "etc"
        (self.etc / "backyfs" / "sources").mkdir(parents=True)
        self.config = make_repository(directory / "repository")
        self.image = random_image(directory / "image", BLOCKS * BLOCK)
        self._capsys = capsys
        self._night = 0

    def add_source(self, instance: str, text: str = "") -> None:
        (self.etc / "backyfs" / "sources" / instance).write_text(f"SOURCE={self.image}\n{text}")

    def call(self, *words: str) -> tuple[int, str]:
        """Run a command; return its status and what it printed."""
        status = run(["-c", str(self.config), *words])
        captured = self._capsys.readouterr()
        return status, captured.out + captured.err

    def start(self, unit: str, instance: str = "") -> str:
        """Run the commands of a unit; return their output."""
        [[program, *words]] = command_lines(unit, instance, self.etc)
        assert program == "/usr/local/bin/backyfs"
        status, printed = self.call(*words)
        assert status == 0, printed
        return printed

    def listed(self, *words: str) -> list[str]:
        status, printed = self.call("-m", "-s", *words)
        assert status == 0, printed
        return printed.splitlines()

    def pass_a_day(self) -> None:
        delays = (DELAYS[(self._night + after) % len(DELAYS)] for after in (1, 0))
        later, earlier = (timedelta(minutes=delay) for delay in delays)
        self._night += 1
        step = timedelta(days=1) + later - earlier
        with opened(self.config) as repository, repository.database.write() as connection:
            for version in list_versions(connection):
                row = update(versions).where(versions.c.id == version.id)
                connection.execute(row.values(created_at=version.created_at - step))
            # A cleanup treats all blobs older than a day alike.
            connection.execute(update(blobs).values(created_at=datetime.now(UTC) - timedelta(days=1)))

    def change_the_disk(self) -> None:
        with self.image.open("r+b") as file:
            file.seek(self._night % BLOCKS * BLOCK)
            file.write(random_bytes(BLOCK, seed=self._night + 1))

    def versions(self) -> list[Version]:
        with opened(self.config) as repository, repository.database.read() as connection:
            return list_versions(connection)


@pytest.fixture
def machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    machine = Machine(tmp_path, capsys)
    machine.add_source(WEB)
    return machine


def of_the_template(config: Path) -> str:
    """Return the configuration that `init` wrote, with its schedulers uncommented."""
    text, count = re.subn(
        r"# (\[(?:daily|weekly|monthly)\])\n# (interval: \w+)\n# (keep: \d+)\n# (sla: \w+)\n",
        r"\1\n\2\n\3\n\4\n",
        config.read_text(),
    )
    assert count == 3
    return text


def of_the_manual(config: Path) -> str:
    """Return the configuration that `init` wrote, with the schedulers of the example in the manual."""
    scheduler = r"\[(?:hourly|daily|weekly|monthly)\]\ninterval: \w+\nkeep: \d+\nsla: \w+\n"
    found = re.findall(scheduler, MANUAL.read_text(encoding="utf-8"))
    assert len(found) == 3
    return config.read_text() + "\n" + "\n".join(found)


def kept(config: Path) -> dict[str, int]:
    """Return how many backups each of the default schedulers keeps."""
    with opened(config) as repository:
        schedulers = repository.config.schedulers
    return {scheduler.name: scheduler.keep for scheduler in schedulers if scheduler.name != "hourly"}


@pytest.mark.parametrize("shipped", [of_the_template, of_the_manual])
def test_after_weeks_the_schedules_have_their_backups_and_there_are_no_breaches(
    machine: Machine, shipped: Callable[[Path], str]
) -> None:
    machine.config.write_text(shipped(machine.config))
    keep = kept(machine.config)
    for night in range(NIGHTS):
        if night:
            machine.pass_a_day()
        machine.change_the_disk()
        machine.start("backyfs-backup@.service", WEB)
        machine.start("backyfs-forget.service")
        assert machine.listed("due") == []
        breaches = [line for line in machine.listed("sla") if "Too few backups" not in line]
        assert breaches == [], f"in night {night}"
    assert machine.listed("sla") == []
    of_web = machine.versions()
    assert {version.name for version in of_web} == {WEB}
    newest = {tag: [one.uid for one in of_web if tag in one.tags][-count:] for tag, count in keep.items()}
    assert {tag: len(uids) for tag, uids in newest.items()} == keep
    assert {one.uid for one in of_web} == {uid for uids in newest.values() for uid in uids}
    assert newest["daily"] == [one.uid for one in of_web][-keep["daily"] :]

    printed = machine.start("backyfs-cleanup.service")
    assert int(printed.split(" blobs deleted")[0]) > 0
    assert ": none damaged" in machine.start("backyfs-scrub.service")
    restored = machine.image.with_name("restored")
    assert machine.call("restore", of_web[-1].uid, str(restored))[0] == 0
    assert restored.read_bytes() == machine.image.read_bytes()


def test_a_missed_night_is_due_and_a_breach(machine: Machine) -> None:
    machine.config.write_text(of_the_template(machine.config))
    machine.start("backyfs-backup@.service", WEB)
    for _ in range(2):
        machine.pass_a_day()
    assert machine.listed("due", "-f", "name,schedulers") == [f"{WEB}|daily"]
    assert any("daily: Latest backup is too old" in line for line in machine.listed("sla"))


def test_nights_before_the_schedules_are_configured_count_afterwards(machine: Machine) -> None:
    text = machine.config.read_text()
    for _ in range(11):
        machine.start("backyfs-backup@.service", WEB)
        machine.pass_a_day()
    assert [version.tags for version in machine.versions()] == [("daily",)] * 11
    machine.config.write_text(text + "\n[daily]\ninterval: 1d\nkeep: 8\nsla: 6h\n")
    machine.start("backyfs-forget.service")
    assert len(machine.versions()) == 8


@pytest.mark.parametrize("instance", [WEB, "db.example", "vg0-root_2:a", "web\\x2d01"])
def test_the_instance_is_the_literal_name_of_the_backup(machine: Machine, instance: str) -> None:
    machine.add_source(instance)
    machine.start("backyfs-backup@.service", instance)
    assert [version.name for version in machine.versions()] == [instance]
    for unit in ("backyfs-backup@.service", "backyfs-backup@.timer"):
        [description] = [value for key, value in settings(unit) if key == "Description"]
        assert "%i" in description


def test_the_file_of_a_source_can_set_other_tags_and_more_options(machine: Machine) -> None:
    machine.config.write_text(of_the_template(machine.config))
    machine.add_source("db", 'OPTIONS="--tag hourly,extra --expire +30d"\n')
    machine.start("backyfs-backup@.service", "db")
    [version] = machine.versions()
    assert version.tags == ("daily", "extra", "hourly", "monthly", "weekly")
    assert version.expire_at is not None
