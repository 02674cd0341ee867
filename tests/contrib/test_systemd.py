"""The units of contrib/systemd: whether systemd accepts them, and whether our commands accept their arguments.

systemd does not run for this. The units are read from copies that name the tested program, next to empty targets, so
the units of this machine have no influence.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from backyfs.cli.main import cli
from tests.contrib.unitfile import UNITS, settings
from tests.support.program import BACKYFS

if TYPE_CHECKING:
    from collections.abc import Callable

    Analyze = Callable[..., subprocess.CompletedProcess[str]]

NAMES = sorted(path.name for path in UNITS.iterdir() if path.suffix in {".service", ".timer"})
SERVICES = [name for name in NAMES if name.endswith(".service")]
INSTALLED = "/usr/local/bin/backyfs"  # in the units
TARGETS = ("basic", "multi-user", "network-online", "remote-fs", "shutdown", "sysinit", "timers")  # that units require
INSTANCE = "mnt-my\\x2dbackups"  # as systemd-escape --path /mnt/my-backups
# In tenths, by `systemd-analyze security` of systemd 252. The README states the same number.
EXPOSURE = {
    "backyfs-backup@.service": 23,
    "backyfs-cleanup.service": 19,
    "backyfs-forget.service": 19,
    "backyfs-mount@.service": 40,
    "backyfs-scrub.service": 19,
}
# They give a service a separate mount namespace, systemd.exec(5), so nobody else would see a mount made in it.
PRIVATE_MOUNTS = {
    "BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "ExtensionDirectories", "ExtensionImages",
    "InaccessiblePaths", "LogNamespace", "MountAPIVFS", "MountFlags", "MountImages", "NoExecPaths", "PrivateDevices",
    "PrivateIPC", "PrivateMounts", "PrivateNetwork", "PrivatePIDs", "PrivateTmp", "PrivateUsers", "ProcSubset",
    "ProtectControlGroups", "ProtectHome", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables",
    "ProtectProc", "ProtectSystem", "ReadOnlyPaths", "ReadWritePaths", "RootDirectory", "RootImage",
    "TemporaryFileSystem",
}  # fmt: skip


def calls(name: str) -> list[list[str]]:
    """Return the words after `backyfs` of every command of a unit, as systemd would fill them in."""
    found = []
    for key, value in settings(name):
        if key.startswith("Exec"):
            filled = value.replace("%f", "/mnt/my-backups").replace("%I", "web").replace("%i", "web")
            filled = filled.replace("$OPTIONS", "").replace("${SOURCE}", "/dev/vg0/web").replace('"$$0"', "/mnt")
            found += [shlex.split(words) for words in re.findall(rf"{INSTALLED} ([^;']*)", filled)]
    return found


@pytest.fixture
def analyze(tmp_path: Path) -> Analyze:
    """Return a function that runs systemd-analyze on the copy of a unit."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    for target in TARGETS:
        (tmp_path / f"{target}.target").write_text(f"[Unit]\nDescription={target}\nDefaultDependencies=no\n")
    for name in NAMES:
        (tmp_path / name).write_text((UNITS / name).read_text().replace(INSTALLED, BACKYFS))
        if "@" in name:
            (tmp_path / name.replace("@", f"@{INSTANCE}")).symlink_to(name)

    def analyze(verb: str, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, verb, *options, str(tmp_path / name.replace("@", f"@{INSTANCE}"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "SYSTEMD_UNIT_PATH": str(tmp_path)},
        )

    return analyze


@pytest.mark.parametrize("name", NAMES)
def test_systemd_accepts_every_unit(analyze: Analyze, name: str) -> None:
    done = analyze("verify", name, "--man=no")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_not_more_exposed_than_the_readme_says(analyze: Analyze, name: str) -> None:
    done = analyze("security", name, "--offline=true", "--no-pager", f"--threshold={EXPOSURE[name]}")
    assert done.returncode == 0, done.stdout
    (line,) = (line for line in (UNITS / "README.md").read_text().splitlines() if line.startswith(f"| `{name}`"))
    assert f"| {EXPOSURE[name] / 10} |" in line


def test_a_mistake_in_a_unit_would_be_detected(analyze: Analyze, tmp_path: Path) -> None:
    copy = tmp_path / "backyfs-mount@.service"
    copy.write_text(copy.read_text().replace("NoNewPrivileges=", "NoNewPriviliges="))
    assert "NoNewPriviliges" in analyze("verify", copy.name, "--man=no").stdout
    copy.write_text("[Service]\nExecStart=/bin/true\n")
    assert analyze("security", copy.name, "--offline=true", "--no-pager", "--threshold=50").returncode != 0


@pytest.mark.parametrize("name", SERVICES)
def test_our_commands_accept_the_arguments_of_every_service(name: str) -> None:
    found = calls(name)
    assert found
    for words in found:
        command_name = next(word for word in words if not word.startswith("-"))
        position = words.index(command_name)
        cli.make_context("backyfs", words[: position + 1])
        command = cli.get_command(click.Context(cli), command_name)
        assert command is not None
        command.make_context(command_name, words[position + 1 :])


def test_a_mount_is_visible_on_the_whole_host() -> None:
    assert PRIVATE_MOUNTS.isdisjoint(key for key, _ in settings("backyfs-mount@.service"))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_sees_the_processes_of_other_commands(name: str) -> None:
    # A job whose process is invisible counts as dead.
    assert {"ProtectProc", "ProcSubset", "PrivatePIDs"}.isdisjoint(key for key, _ in settings(name))


@pytest.mark.parametrize(("ended", "unmounted"), [("exited", False), ("killed", True), ("dumped", True)])
def test_only_a_mount_whose_process_was_killed_is_cleared(tmp_path: Path, ended: str, *, unmounted: bool) -> None:
    program = tmp_path / "backyfs"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    (line,) = (value for key, value in settings("backyfs-mount@.service") if key == "ExecStopPost")
    assert line.startswith("-")  # its failure is not a failure of the service
    words = shlex.split(line[1:].replace("$$", "$").replace("%f", "/mnt/my-backups").replace(INSTALLED, str(program)))
    done = subprocess.run(words, env={"EXIT_CODE": ended}, capture_output=True, text=True, check=True)
    assert done.stdout == ("umount -- /mnt/my-backups\n" if unmounted else "")


def test_every_timer_has_its_service() -> None:
    timers = {name.removesuffix(".timer") for name in NAMES if name.endswith(".timer")}
    assert timers == {name.removesuffix(".service") for name in SERVICES} - {"backyfs-mount@"}


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_mentions_every_unit(name: str) -> None:
    assert f"`{name}`" in (UNITS / "README.md").read_text()
