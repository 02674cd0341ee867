"""The log: where it goes, in which form, and how much."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess

import pytest

from backyfs.errors import StorageError
from backyfs.remedies import Advice
from tests.support.images import random_image
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK

MISSING = "no version is named 'x'; `backyfs ls` lists the versions"


def log_of(config):
    return (config.parent / "backyfs.log").read_text()


def problems_of(config):
    """Return the lines of the log except those about the beginning and end of commands."""
    return [line for line in log_of(config).splitlines() if " INFO " not in line and '"info"' not in line]


def use_json(config):
    config.write_text(config.read_text().replace("block_size:", "log_format: json\nblock_size:", 1))


def warn(config):
    """Make every command warn about the configuration."""
    config.write_text(config.read_text().replace("block_size:", "blok_size: 1\nblock_size:", 1))


# Text


def test_the_error_that_ends_a_command_is_in_the_log_file_too(call, config):
    status, _, err = call("restore", "x@latest", "/nowhere")
    assert (status, err) == (4, f"backyfs: error: {MISSING}\n")
    [line] = problems_of(config)
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d [\d:,]+ \[{os.getpid()}\] ERROR {re.escape(MISSING)}", line)


def test_an_unexpected_error_is_in_the_log_file_too(call, config, monkeypatch):
    def fail(*_):
        raise RuntimeError("broken\nin two")

    monkeypatch.setattr("backyfs.cli.commands.ls.print_rows", fail)
    status, _, err = call("ls")
    assert status == 100
    assert err == (
        "backyfs: error: unexpected RuntimeError: broken\\x0ain two; run it again with --debug to see where, "
        "and report it\n"
    )
    assert "ERROR unexpected RuntimeError: broken\\x0ain two" in log_of(config)


def test_a_command_writes_each_line_once(call, config):
    call("backup", random_image(config.parent / "image", BLOCK), "disk")
    call("restore", "x@latest", "/nowhere")
    assert log_of(config).count(MISSING) == 1


@pytest.mark.parametrize("use", [lambda _: None, use_json], ids=["text", "JSON"])
def test_a_remedy_logged_by_the_library_names_options_of_the_command_line(call, config, use):
    use(config)
    call("ls")
    error = StorageError("is empty", subject="/srv", remedy=Advice.SCRUB())
    logging.getLogger("backyfs.storage").warning("%s; %s", error, Advice.UPGRADE_DATABASE())
    [line] = problems_of(config)
    assert "/srv is empty; run `backyfs scrub`; run `backyfs upgrade`" in line


def test_an_error_in_the_global_options_is_reported(call):
    status, _, err = call("-m", "--json", "ls")
    assert (status, err) == (1, "backyfs: error: -m and --json are two forms of output; give one of them\n")


@pytest.mark.parametrize(
    ("options", "is_printed"),
    [([], True), (["-v"], True), (["-d"], True), (["-q"], False), (["-m"], False), (["--json"], False),
     (["-m", "-v"], True)],
)  # fmt: skip
def test_options_choose_how_much_is_printed(call, config, options, is_printed):
    warn(config)
    status, _, err = call(*options, "ls")
    assert status == 0
    assert ("did you mean block_size?" in err) is is_printed


@pytest.mark.parametrize("option", ["-q", "-m", "--json"])
def test_errors_are_always_printed(call, option):
    assert call(option, "restore", "x@latest", "/nowhere")[2] == f"backyfs: error: {MISSING}\n"


def test_warnings_are_in_the_file_even_if_they_are_not_printed(call, config):
    warn(config)
    call("-q", "ls")
    assert "WARNING" in log_of(config)


@pytest.mark.parametrize(("options", "shown"), [([], False), (["-v"], False), (["-d"], True)])
def test_a_traceback_is_shown_only_with_debug(call, config, options, shown):
    _, _, err = call(*options, "restore", "x@latest", "/nowhere")
    assert ("Traceback" in err) is shown
    assert "Traceback" not in log_of(config)


def test_an_unwritable_log_file_ends_the_command(call, config):
    config.write_text(config.read_text().replace("backyfs.log", "none/backyfs.log"))
    status, _, err = call("ls")
    assert status == 1
    assert "none/backyfs.log cannot be written: No such file or directory; name another file" in err


# JSON


def test_json_goes_to_stderr_and_file(call, config):
    use_json(config)
    status, _, err = call("restore", "x@latest", "/nowhere")
    assert status == 4
    [printed] = map(json.loads, err.splitlines())
    [written] = map(json.loads, problems_of(config))
    assert printed == written
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", printed.pop("time"))
    assert printed == {
        "level": "error",
        "message": MISSING,
        "command": "restore",
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "logger": "backyfs",
        "exit_status": 4,
    }


def test_a_name_with_a_line_break_is_on_one_line_of_json(call, config):
    use_json(config)
    call("restore", "a\nb@latest", "/nowhere")
    [line] = problems_of(config)
    assert "'a\\nb'" in json.loads(line)["message"]


def test_a_traceback_is_a_json_field(call, config):
    use_json(config)
    _, _, err = call("--debug", "restore", "x@latest", "/nowhere")
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["level"] for line in lines[-2:]] == ["debug", "error"]
    assert lines[-2]["traceback"].startswith("Traceback")


# The journal


def journal(path, config, *words, **environ):
    """Run a command whose stderr is a file that JOURNAL_STREAM names, truthfully or not."""
    with open(path, "wb") as stderr:
        about = os.fstat(stderr.fileno())
        stream = environ.pop("stream", f"{about.st_dev}:{about.st_ino}")
        subprocess.run(
            [BACKYFS, "-c", config, *words],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, "JOURNAL_STREAM": stream},
            check=False,
        )
    return path.read_text()


def test_the_journal_gets_levels_and_no_name(config, tmp_path):
    warn(config)
    first, second = journal(tmp_path / "err", config, "restore", "x@latest", "/nowhere").splitlines()
    assert first.startswith(f"<4>{config}, line ")
    assert second == f"<3>{MISSING}"


def test_every_line_of_a_traceback_has_its_level(config, tmp_path):
    text = journal(tmp_path / "err", config, "--debug", "restore", "x@latest", "/nowhere")
    assert "<7>Traceback" in text
    assert all(re.match("<[3467]>", line) for line in text.splitlines())


def test_a_stream_of_another_program_is_not_taken_for_the_journal(config, tmp_path):
    assert journal(tmp_path / "err", config, "restore", "x@latest", "/nowhere", stream="8:1") == (
        f"backyfs: error: {MISSING}\n"
    )


def test_the_journal_gets_json_too(config, tmp_path):
    use_json(config)
    text = journal(tmp_path / "err", config, "restore", "x@latest", "/nowhere")
    assert text.startswith('<3>{"time": ')
    assert json.loads(text[3:])["message"] == MISSING
