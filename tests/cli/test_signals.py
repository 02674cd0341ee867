"""Signals while commands run: which ones end a command, what its hooks see, and how it reports its progress."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from backyfs.engine.catalog.publish import publish
from tests.support.images import random_image
from tests.support.program import BACKYFS
from tests.support.repositories import make_repository, opened, wait_for_job

DEADLINE_S = 120
BLOCK = 64 << 10
ENDINGS = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM]


@pytest.fixture
def config(tmp_path):
    """Make a repository whose storage is so slow that nothing ends before a test wants it to."""
    config = make_repository(tmp_path / "repository", block_size=BLOCK)
    limit = f"[DataBackend]\nbandwidth_write: {BLOCK}\nbandwidth_read: {BLOCK}"
    config.write_text(config.read_text().replace("[DataBackend]", limit))
    return config


@pytest.fixture
def image(tmp_path):
    return random_image(tmp_path / "image", 64 << 20)


@pytest.fixture
def notes(tmp_path):
    return tmp_path / "notes"


@pytest.fixture
def gate(tmp_path):
    """Make a FIFO. Opening it for reading blocks until the test opens it for writing."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def set_hooks(config, **hooks):
    config.write_text("\n".join([config.read_text(), "[hooks]", *(f"{name}: {hooks[name]}" for name in hooks), ""]))


def note(notes):
    return f'echo "$BACKYFS_HOOK $BACKYFS_STATUS" >> {notes}'


@contextmanager
def running(config, *words, ignored=()):
    """Run a command; end it in any case."""

    def ignore():
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    process = subprocess.Popen(
        [BACKYFS, "-c", config, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=ignore,  # noqa: PLW1509 - nothing here has threads
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(text, process):
    """Read stderr until a line contains a text."""
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"the command ended before it said {text!r}")


def wait_for_note(notes, text):
    end = time.monotonic() + DEADLINE_S
    while not (notes.exists() and text in notes.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)


def statuses(config):
    from backyfs.metadata.records.versions import list_versions

    with opened(config) as repository, repository.database.read() as connection:
        return [version.status.value for version in list_versions(connection)]


@pytest.mark.parametrize("number", ENDINGS)
def test_a_backup_ended_by_a_signal_runs_its_after_hook(config, image, notes, number):
    set_hooks(config, before_backup=note(notes), after_backup=note(notes), on_failure=note(notes))
    with running(config, "backup", image, "disk") as process:
        wait_for_job(config, "backup")
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 130
    assert notes.read_text().splitlines() == [
        "before_backup starting", "after_backup interrupted", "on_failure interrupted"
    ]  # fmt: skip
    assert statuses(config) == ["incomplete"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_an_ignored_signal_does_not_end_a_backup(config, image, number):
    with running(config, "backup", image, "disk", ignored=[number]) as process:
        wait_for_job(config, "backup")
        process.send_signal(number)
        process.send_signal(signal.SIGTERM)
        wait_for("ending after SIGTERM", process)
        assert process.wait(DEADLINE_S) == 130


@pytest.mark.parametrize("number", ENDINGS)
def test_an_interrupted_before_hook_is_followed_by_the_after_hook(config, image, notes, gate, number):
    set_hooks(
        config,
        before_backup=f"echo frozen >> {notes}; read line < {gate}; {note(notes)}",
        after_backup=f"echo thawed >> {notes}; {note(notes)}",
    )
    with running(config, "backup", image, "disk") as process:
        wait_for_note(notes, "frozen")
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 130
    assert notes.read_text().splitlines() == ["frozen", "thawed", "after_backup interrupted"]
    assert statuses(config) == []


def test_an_interrupted_before_hook_can_undo_what_it_did(config, image, notes):
    hook = f"trap 'echo undone >> {notes}; exit' TERM; sleep 600 & echo begun >> {notes}; wait"
    set_hooks(config, before_backup=hook, after_backup=note(notes))
    with running(config, "backup", image, "disk") as process:
        wait_for_note(notes, "begun")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 130
    assert notes.read_text().splitlines() == ["begun", "undone", "after_backup interrupted"]


def test_a_before_hook_that_ignores_an_interruption_is_killed(config, image, notes):
    hook = f"trap '' TERM; echo $$ > {notes}; while :; do sleep 600; done"
    set_hooks(config, before_backup=hook)
    with running(config, "backup", image, "disk") as process:
        wait_for_note(notes, "\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 130
    assert not Path("/proc", notes.read_text().strip()).exists()


@pytest.mark.parametrize("number", ENDINGS)
def test_an_after_hook_is_not_interrupted(config, notes, gate, number, tmp_path):
    set_hooks(config, after_backup=f"echo thawing >> {notes}; read line < {gate}; {note(notes)}")
    with running(config, "backup", random_image(tmp_path / "small", 100), "disk") as process:
        wait_for_note(notes, "thawing")
        process.send_signal(number)
        wait_for(f"{number.name} does not interrupt the hooks that follow the command", process)
        process.send_signal(number)
        wait_for(f"{number.name} does not interrupt the hooks that follow the command", process)
        gate.write_text("go on\n")
        assert process.wait(DEADLINE_S) == 0
    assert notes.read_text().splitlines() == ["thawing", "after_backup done"]
    assert statuses(config) == ["valid"]


@pytest.mark.parametrize("options", [[], ["-q"], ["-m"], ["--json"], ["--no-progress"]], ids=" ".join)
def test_a_backup_prints_its_progress_on_usr1(config, image, options):
    with running(config, *options, "backup", image, "disk") as process:
        wait_for_job(config, "backup")
        line = ""
        while "Backing up" not in line:
            process.send_signal(signal.SIGUSR1)
            line = process.stderr.readline()
            assert line, f"the command has ended with {process.wait()}"
        assert re.fullmatch(r"backyfs: Backing up disk: \d+\.\d%( .*)?\n", line)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 130


def test_a_restore_prints_its_progress_on_usr1(config, tmp_path):
    unlimited = config.read_text()
    config.write_text(re.sub("bandwidth_write: .*\n", "", unlimited))
    image = random_image(tmp_path / "image", 32 << 20)
    subprocess.run([BACKYFS, "-c", config, "backup", image, "disk"], check=True, capture_output=True)
    with running(config, "restore", "disk@latest", tmp_path / "restored") as process:
        wait_for_job(config, "restore")
        line = ""
        while "Restoring" not in line:
            process.send_signal(signal.SIGUSR1)
            line = process.stderr.readline()
            assert line, f"the command has ended with {process.wait()}"
        assert re.fullmatch(r"backyfs: Restoring disk.*: \d+\.\d%( .*)?\n", line)


def test_usr1_does_not_end_a_command_that_has_no_progress_to_report(config, notes, gate, tmp_path):
    set_hooks(config, before_backup=f"echo begun >> {notes}; read line < {gate}")
    with running(config, "backup", random_image(tmp_path / "small", 100), "disk") as process:
        wait_for_note(notes, "begun")
        process.send_signal(signal.SIGUSR1)
        wait_for("backup is running and has no progress to report at the moment", process)
        gate.write_text("go on\n")
        assert process.wait(DEADLINE_S) == 0
    assert statuses(config) == ["valid"]


@pytest.mark.parametrize(
    "words",
    [
        ["-c", "{gate}", "ls"],
        ["-c", "{config}", "backup", "{image}", "disk", "--hints", "{gate}"],
        ["-c", "{config}", "import", "{gate}"],
        ["-c", "{config}", "key", "add", "x", "--passphrase-file", "{gate}"],
        ["-c", "{config}", "key", "add", "x", "--from-recovery", "{gate}", "--key-file", "{image}"],
        ["-c", "{config}", "recover", "--key-file", "{gate}", "--to", "{gate}.sqlite", "{storage}"],
    ],
    ids=["configuration", "hints", "export", "passphrase", "recovery page", "key of a recovery"],
)
def test_reading_from_a_silent_fifo_can_be_interrupted(config, image, gate, words):
    with opened(config) as repository:
        publish(repository)
    places = {"config": config, "image": image, "gate": gate, "storage": config.parent / "data"}
    process = subprocess.Popen(
        [BACKYFS, *(word.format(**places) for word in words)], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    writer = None
    try:
        deadline = time.monotonic() + DEADLINE_S
        while writer is None:
            assert time.monotonic() < deadline
            assert process.poll() is None
            try:
                writer = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody reads it yet
                time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait()
        if writer is not None:
            os.close(writer)
    assert process.returncode == 130
    assert b"interrupted" in err
