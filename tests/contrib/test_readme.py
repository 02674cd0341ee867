"""The commands in README do what it says, exactly as written, on an image instead of a disk."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from backyfs.cli.main import cli
from tests.support.attaching import MIB, cleared, left_of
from tests.support.images import ext4_image
from tests.support.program import why_not_loop, why_not_mount

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PATIENCE_S = 120
FSTAB = "/dev/vg0/root / ext4 defaults 0 1\n"


def command_lines(section: str) -> list[str]:
    """Return the indented lines of a section of README, in order; a line that ends in \\ is joined with the next."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    joined = text.replace("\\\n", " ")
    return re.findall(r"^ {4}(.*)$", joined, re.MULTILINE)


class Shell:
    """The shell of a new user: a directory with HOME and configuration, and a file system in place of the disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "disk" / "etc").mkdir(parents=True)
        (directory / "disk" / "etc" / "fstab").write_text(FSTAB)
        (directory / "home").mkdir()
        image = ext4_image(directory / "disk.img", directory / "disk", 8 * MIB)
        self.places = {"/dev/vg0/web-snapshot": str(image), "/mnt/web": str(directory / "mnt")}
        given = {name: value for name, value in os.environ.items() if not name.startswith(("BACKYFS_", "XDG_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        config_file = directory / "repository" / "backyfs.cfg"
        self.environment = given | {"HOME": str(directory / "home"), "PATH": path, "BACKYFS_CONFIG": str(config_file)}
        # For root, `init` uses the system directories, which tests leave alone.
        self.places["backyfs init"] = f"backyfs init --data {directory}/data --db {directory}/backyfs.sqlite"

    def run(self, section: str) -> str:
        """Run the commands of a section of README; return their output. Each must succeed."""
        printed = ""
        for line in command_lines(section):
            command = line
            for place, ours in self.places.items():
                command = re.sub(rf"{re.escape(place)}(?![\w-])", ours, command)
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=self.directory / "home",
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=PATIENCE_S,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}"
            printed += done.stdout
        return printed


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with cleared(tmp_path):
        yield Shell(tmp_path)


@pytest.mark.slow
def test_the_first_backup(shell: Shell) -> None:
    printed = shell.run("First backup")
    assert f"{shell.directory}/repository/backyfs.key" in printed  # the key file, which README asks users to copy
    assert re.search(rf"^.* web +[0-9]+ +{8 * MIB} +[0-9a-f-]{{36}} +1 ", printed, re.MULTILINE), printed


@pytest.mark.root
@pytest.mark.slow
def test_the_first_file_back(shell: Shell) -> None:
    reason = why_not_mount() or why_not_loop()
    if reason is not None:
        pytest.skip(reason)
    shell.run("First backup")
    shell.run("First file back")
    assert (shell.directory / "home" / "fstab").read_text() == FSTAB
    assert left_of(shell.directory) == []


def test_the_sections_contain_the_commands_that_the_tests_run() -> None:
    words = [line.split()[:2] for section in ("First backup", "First file back") for line in command_lines(section)]
    assert words == [
        ["backyfs", "init"],
        ["backyfs", "backup"],
        ["backyfs", "ls"],
        ["backyfs", "attach"],
        ["cp", "-a"],
        ["backyfs", "detach"],
    ]


@pytest.mark.parametrize("line", re.findall(r"^ {4}(backyfs .*)$", README, re.MULTILINE))
def test_our_program_accepts_every_command(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    name = next(word for word in words if cli.get_command(click.Context(cli), word) is not None)
    position = words.index(name)
    cli.make_context("backyfs", words[: position + 1])
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, words[position + 1 :])


def test_the_debian_packages_are_the_same_as_in_the_setup() -> None:
    script = (ROOT / "contrib" / "setup.sh").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^packages=\(\n(.*?)^\)", script, re.MULTILINE | re.DOTALL)
    (line,) = (line for line in command_lines("Install") if line.startswith("apt-get install "))
    named = {word for word in shlex.split(line) if not word.startswith("-")} - {"apt-get", "install"}
    assert named == {*shlex.split(listed, comments=True), "python3-dev", "python3-venv"}


def test_the_two_commands_to_try_are_make_targets() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = [shlex.split(line, comments=True) for line in command_lines("See it work")]
    assert commands == [["make", "demo"], ["make", "test"]]
    assert {target for _, target in commands} <= targets
