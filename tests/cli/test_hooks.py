"""Hooks: when they run, what they receive, and what happens to a command whose hook fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backyfs.cli.invocation import Invocation, OutputForm
from backyfs.cli.logs import start_logging
from backyfs.cli.main import run
from backyfs.config import load_config
from backyfs.errors import HookError, IntegrityError, InterruptedByUser
from backyfs.hooks import run_hook
from tests.support.images import random_image
from tests.support.repositories import BLOCK, wait_for

DEADLINE_S = 30


@pytest.fixture
def notes(tmp_path):
    return tmp_path / "notes"


@pytest.fixture
def hooked(config, notes):
    """Configure hooks, each of which notes its name and status; return an invocation."""

    def hooked(**commands):
        lines = [f"{name}: {command}".replace("%", "%%") for name, command in commands.items()]
        config.write_text(config.read_text() + "\n".join(["[hooks]", *lines, ""]))
        return Invocation(
            config_file=str(config), form=OutputForm.TABLE, header=True, human_sizes=False, show_progress=False,
            log_option=None,
        )  # fmt: skip

    return hooked


def note(notes):
    return f'echo "$BACKYFS_HOOK $BACKYFS_STATUS" >> {notes}'


def all_hooks(notes):
    return {name: note(notes) for name in ("before_backup", "after_backup", "on_failure")}


def lines_of(notes):
    return notes.read_text().splitlines() if notes.exists() else []


def ended(pid):
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True


# Order


def test_hooks_run_before_and_after_the_command(hooked, notes):
    with hooked(**all_hooks(notes)).hooks("backup"):
        lines_of(notes).append("x")
        assert lines_of(notes) == ["before_backup starting"]
    assert lines_of(notes) == ["before_backup starting", "after_backup done"]


def test_a_failed_command_is_followed_by_both_hooks(hooked, notes):
    with pytest.raises(IntegrityError), hooked(**all_hooks(notes)).hooks("backup"):
        raise IntegrityError("is damaged")
    assert lines_of(notes) == ["before_backup starting", "after_backup failed", "on_failure failed"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, InterruptedByUser])
def test_an_interruption_is_not_a_failure_but_is_followed_by_both_hooks(hooked, notes, error):
    with pytest.raises(error), hooked(**all_hooks(notes)).hooks("backup"):
        raise error("interrupted")
    assert lines_of(notes) == ["before_backup starting", "after_backup interrupted", "on_failure interrupted"]


def test_a_before_hook_that_fails_stops_the_command(hooked, notes):
    invocation = hooked(**all_hooks(notes) | {"before_backup": "echo 'no such volume' >&2; exit 7"})
    with pytest.raises(HookError) as caught, invocation.hooks("backup"):
        pytest.fail("the command was run")
    assert str(caught.value) == "hook before_backup ended with status 7: no such volume; see [hooks]"
    assert caught.value.exit_status == 11
    assert lines_of(notes) == ["on_failure failed"]


def test_an_after_hook_that_fails_is_a_warning(hooked, notes, caplog):
    with hooked(**all_hooks(notes) | {"after_backup": "exit 3"}).hooks("backup"):
        pass
    assert lines_of(notes) == ["before_backup starting"]
    assert "hook after_backup ended with status 3; see [hooks]" in caplog.text


def test_a_failing_on_failure_hook_does_not_hide_the_error(hooked, caplog):
    with pytest.raises(IntegrityError), hooked(on_failure="exit 1").hooks("backup"):
        raise IntegrityError("is damaged")
    assert "hook on_failure ended with status 1" in caplog.text


def test_hooks_of_other_commands_do_not_run(hooked, notes):
    with hooked(before_restore=note(notes), after_restore=note(notes), on_failure=note(notes)).hooks("backup"):
        pass
    assert lines_of(notes) == []


def test_a_command_run_by_a_hook_runs_no_hooks(hooked, notes, monkeypatch):
    invocation = hooked(**all_hooks(notes))
    monkeypatch.setenv("BACKYFS_HOOK", "before_backup")
    with invocation.hooks("backup"):
        pass
    assert lines_of(notes) == []


# Facts that they receive


def test_facts_are_in_the_environment(hooked, notes, config):
    with hooked(after_backup=f"env | grep ^BACKYFS_ | sort > {notes}").hooks("backup", name="my disk") as facts:
        facts.add(uid="abc", bytes_written=5, tags=("a", "b"), snapshot_name=None)
    received = dict(line.split("=", 1) for line in lines_of(notes))
    assert float(received.pop("BACKYFS_DURATION_S")) >= 0
    assert received == {
        "BACKYFS_HOOK": "after_backup",
        "BACKYFS_COMMAND": "backup",
        "BACKYFS_STATUS": "done",
        "BACKYFS_EXIT_STATUS": "0",
        "BACKYFS_PID": str(os.getpid()),
        "BACKYFS_CONFIG": str(config),
        "BACKYFS_NAME": "my disk",
        "BACKYFS_UID": "abc",
        "BACKYFS_BYTES_WRITTEN": "5",
        "BACKYFS_TAGS": "a,b",
    }


def test_facts_are_json_on_stdin(hooked, notes):
    with hooked(after_backup=f"cat > {notes}").hooks("backup", name="wörld\n") as facts:
        facts.add(tags=("a", "b"), snapshot_name=None)
    received = json.loads(notes.read_text())
    assert (received["hook"], received["name"], received["tags"], received["snapshot_name"]) == (
        "after_backup", "wörld\n", ["a", "b"], None
    )  # fmt: skip


def test_a_failure_passes_on_its_error_and_status(hooked, notes):
    hook = f'echo "$BACKYFS_EXIT_STATUS $BACKYFS_ERROR" > {notes}'
    with pytest.raises(IntegrityError), hooked(on_failure=hook).hooks("scrub"):
        raise IntegrityError("is damaged")
    assert lines_of(notes) == ["20 is damaged"]


def test_the_name_of_a_version_is_not_run_as_a_command(hooked, notes):
    hook = f'printf %s "$BACKYFS_NAME" > {notes}'
    with hooked(before_backup=hook).hooks("backup", name="$(touch evil); `touch evil`"):
        pass
    assert notes.read_text() == "$(touch evil); `touch evil`"


# Output, time and processes


def test_output_of_hooks_goes_to_the_log(hooked, config, capfd):
    invocation = hooked(before_backup="echo out; echo; echo err >&2")
    start_logging(command="backup", verbose=False, debug=False, quiet=False)
    with invocation.hooks("backup"):
        pass
    log = (config.parent / "backyfs.log").read_text()
    assert re.findall(r"INFO (hook .*)", log) == [
        "hook before_backup begins", "hook before_backup: out", "hook before_backup: err"
    ]  # fmt: skip
    assert capfd.readouterr().out == ""


def test_a_hook_that_takes_too_long_is_killed_with_all_its_processes(tmp_path):
    command = f"sleep 600 & echo $! > {tmp_path}/pid; sleep 600"
    began = time.monotonic()
    with pytest.raises(HookError, match=r"hook before_rm was killed because it took more than 0\.5 s; see \[hooks\]"):
        run_hook("before_rm", command, {}, timeout_s=0.5)
    assert time.monotonic() - began < DEADLINE_S
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: ended(pid), "the process that the hook started has ended")


def test_processes_that_a_hook_leaves_running_are_not_waited_for(tmp_path):
    began = time.monotonic()
    run_hook("after_mount", f"sleep 600 & echo $! > {tmp_path}/pid", {}, timeout_s=DEADLINE_S)
    assert time.monotonic() - began < DEADLINE_S / 2
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_hook_that_reads_nothing_and_prints_a_lot_does_not_hang(tmp_path):
    facts = {"many": ["x" * 1000] * 100}
    much = "head -c 5000000 /dev/zero | tr '\\0' y; echo; echo last; exit 4"
    with pytest.raises(HookError, match="ended with status 4: last; see"):
        run_hook("before_rm", much, facts, timeout_s=DEADLINE_S)


def test_a_killed_hook_is_reported_with_its_signal():
    with pytest.raises(HookError, match="hook before_rm ended by signal 9; see"):
        run_hook("before_rm", "kill -9 $$", {}, timeout_s=DEADLINE_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_does_not_prevent_hooks_from_running(config, notes, number):
    config.write_text(
        config.read_text()
        + f"[hooks]\nbefore_backup: {note(notes)}\nafter_backup: {note(notes)}\non_failure: {note(notes)}\n"
    )
    program = (
        "import time\nfrom backyfs.cli.hooks import around\nfrom backyfs.config import load_config\n"
        f"config, _ = load_config({str(config)!r}, {{}})\n"
        "with around(config, 'backup', {}):\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        process.wait(DEADLINE_S)
    assert lines_of(notes) == ["before_backup starting", "after_backup interrupted", "on_failure interrupted"]


# The commands


def events(notes):
    return [json.loads(line) for line in lines_of(notes)]


def take_all(notes):
    return f"(cat; echo) >> {notes}"


def test_backup_passes_on_what_it_did(hooked, notes, config, tmp_path, capsys):
    hooked(before_backup=take_all(notes), after_backup=take_all(notes))
    image = random_image(tmp_path / "image", 2 * BLOCK + 1)
    assert run(["-c", str(config), "-m", "backup", str(image), "disk", "-s", "snap"]) == 0
    uid = capsys.readouterr().out.split()[0]
    before, after = events(notes)
    assert (before["name"], before["source"], before["snapshot_name"]) == ("disk", str(image), "snap")
    assert "uid" not in before
    assert (after["uid"], after["status"], after["size_bytes"], after["bytes_written"]) == (
        uid, "done", 8193, 8193
    )  # fmt: skip


def test_a_failing_hook_prevents_a_backup(hooked, config, tmp_path, capsys):
    hooked(before_backup="exit 1")
    image = random_image(tmp_path / "image", BLOCK)
    assert run(["-c", str(config), "backup", str(image), "disk"]) == 11
    assert capsys.readouterr().err.splitlines()[-1] == (
        "backyfs: error: hook before_backup ended with status 1; see [hooks]"
    )
    assert run(["-c", str(config), "-m", "-s", "ls"]) == 0
    assert capsys.readouterr().out == ""


def test_a_failing_restore_runs_its_hook(hooked, notes, config):
    hooked(on_failure=take_all(notes))
    assert run(["-c", str(config), "restore", "disk@latest", "/nowhere"]) == 4
    [failure] = events(notes)
    assert (failure["hook"], failure["command"], failure["version"], failure["target"]) == (
        "on_failure", "restore", "disk@latest", "/nowhere"
    )  # fmt: skip
    assert failure["error"] == "no version is named 'disk'; `backyfs ls` lists the versions"


def test_rm_passes_on_which_versions_it_removed(hooked, notes, config):
    hooked(before_rm=f"echo $BACKYFS_VERSIONS > {notes}; exit 1")
    assert run(["-c", str(config), "rm", "disk@latest", "abcd"]) == 11
    assert lines_of(notes) == ["disk@latest,abcd"]


def test_hooks_of_a_mount_run_when_it_begins_and_ends(hooked, notes, config, tmp_path):
    hooked(before_mount=take_all(notes), after_mount=take_all(notes))
    point = tmp_path / "mnt"
    point.mkdir()
    backyfs = str(Path(sys.executable).with_name("backyfs"))
    subprocess.run([backyfs, "-c", config, "mount", point], check=True)
    try:
        assert [one["hook"] for one in events(notes)] == ["before_mount"]
    finally:
        subprocess.run([backyfs, "-c", config, "umount", point], check=True)
    wait_for(lambda: len(events(notes)) == 2, "the hook after the mount has run")
    assert [(one["hook"], one["status"], one["mountpoint"]) for one in events(notes)] == [
        ("before_mount", "starting", str(point)),
        ("after_mount", "done", str(point)),
    ]


# The configuration


def test_the_hooks_section_is_not_a_scheduler(hooked, config):
    hooked(before_backup="true", timeout="5m", after_rm="")
    loaded, warnings = load_config(str(config), {})
    assert (loaded.hooks.commands, loaded.hooks.timeout_s) == ((("before_backup", "true"),), 300)
    assert (loaded.schedulers, warnings) == ((), ())


def test_a_hook_that_does_not_exist_is_a_warning(hooked, config):
    hooked(befor_backup="true")
    assert "did you mean before_backup?" in load_config(str(config), {})[1][0]


def test_there_are_no_hooks_by_default(config):
    loaded, _ = load_config(str(config), {})
    assert (loaded.hooks.commands, loaded.hooks.timeout_s) == ((), 60)
