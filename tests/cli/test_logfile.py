"""The log file while commands run: renamed, removed, full, or a FIFO; and what is recorded about each command."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess

import pytest

from backyfs.cli.commandline import shown_command_line
from backyfs.cli.logfile import LogFile
from tests.support.images import random_image
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, back_up, opened, wait_for
from tests.support.stored import blob_of, file_of

DEADLINE_S = 120
KEY = "ab" * 32


@pytest.fixture
def log():
    """Return the logger of the program."""
    root = logging.getLogger("backyfs")
    root.setLevel(logging.INFO)
    root.propagate = False
    return root


@pytest.fixture
def handler(log, tmp_path):
    handler = LogFile(str(tmp_path / "log"))
    log.addHandler(handler)
    return handler


class Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


@pytest.fixture
def messages(log):
    messages = Messages()
    log.addHandler(messages)
    return messages.texts


# Rotation


def test_a_renamed_log_file_is_replaced(log, handler, tmp_path):
    log.info("one")
    (tmp_path / "log").rename(tmp_path / "log.1")
    log.info("two")
    log.info("three")
    assert (tmp_path / "log.1").read_text() == "one\n"
    assert (tmp_path / "log").read_text() == "two\nthree\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_removed_log_file_is_replaced(log, handler, tmp_path):
    log.info("one")
    (tmp_path / "log").unlink()
    log.info("two")
    assert (tmp_path / "log").read_text() == "two\n"


def test_a_log_file_created_by_logrotate_is_used(log, handler, tmp_path):
    (tmp_path / "log").rename(tmp_path / "log.1")
    (tmp_path / "log").touch(mode=0o640)
    log.info("one")
    assert (tmp_path / "log").read_text() == "one\n"


def test_a_truncated_log_file_continues_at_its_new_end(log, handler, tmp_path):
    log.info("one")
    os.truncate(tmp_path / "log", 0)
    log.info("two")
    assert (tmp_path / "log").read_text() == "two\n"


def test_if_no_new_file_can_be_created_the_old_one_is_still_written(log, handler, tmp_path):
    (tmp_path / "log").rename(tmp_path / "log.1")
    (tmp_path / "log").mkdir()
    log.info("one")
    assert (tmp_path / "log.1").read_text() == "one\n"


def test_a_mount_in_the_background_logs_to_the_new_file(config, tmp_path):
    with opened(config) as repository:
        version = back_up(repository, random_image(tmp_path / "image", BLOCK)).version
        damaged = file_of(repository, blob_of(repository, version, 0))
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    subprocess.run([BACKYFS, "-c", config, "mount", mountpoint], check=True, capture_output=True)
    try:
        (config.parent / "backyfs.log").rename(tmp_path / "rotated")
        damaged.unlink()
        with pytest.raises(OSError, match="Input/output error"):
            (mountpoint / "by_version_uid" / version.uid / "data").read_bytes()
        wait_for((config.parent / "backyfs.log").exists, "the log is opened again")
    finally:
        subprocess.run([BACKYFS, "-c", config, "umount", mountpoint], check=True, capture_output=True)
    assert "is missing from the storage" in (config.parent / "backyfs.log").read_text()
    assert "is missing from the storage" not in (tmp_path / "rotated").read_text()


# Where it cannot be written


def test_a_full_disk_gives_one_warning_and_no_traceback(log, messages, tmp_path, capfd):
    (tmp_path / "log").symlink_to("/dev/full")
    log.addHandler(LogFile(str(tmp_path / "log")))
    log.info("one")
    log.info("two")
    assert messages == ["one", f"cannot write to the log file {tmp_path}/log: No space left on device", "two"]
    assert capfd.readouterr().err == ""


def test_messages_to_a_fifo_without_a_reader_are_lost_with_one_warning(log, messages, tmp_path):
    os.mkfifo(tmp_path / "log")
    log.addHandler(LogFile(str(tmp_path / "log")))
    log.info("one")
    log.info("two")
    assert messages == ["one", f"cannot write to the log file {tmp_path}/log: it is a FIFO without a reader", "two"]


def test_a_fifo_gets_messages_while_it_has_a_reader(log, messages, tmp_path):
    os.mkfifo(tmp_path / "log")
    log.addHandler(LogFile(str(tmp_path / "log")))
    log.info("lost")
    for text in (b"one\n", b"two\n"):
        reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
        log.info(text.decode().strip())
        assert os.read(reader, 100) == text
        os.close(reader)
        log.info("lost as well")
    assert len([line for line in messages if line.endswith("without a reader")]) == 3


def test_commands_do_not_wait_for_a_slow_reader(log, messages, tmp_path):
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        log.addHandler(LogFile(str(tmp_path / "log")))
        for _ in range(100):
            log.info("x" * 10_000)
    finally:
        os.close(reader)
    assert f"cannot write to the log file {tmp_path}/log: it is a FIFO whose reader is too slow" in messages


@pytest.mark.parametrize("words", [["ls"], ["check-config"], ["backup", "{image}", "disk"]])
def test_a_fifo_without_a_reader_does_not_stop_a_command(config, tmp_path, words):
    image = random_image(tmp_path / "image", BLOCK)
    (config.parent / "backyfs.log").unlink(missing_ok=True)
    os.mkfifo(config.parent / "backyfs.log")
    words = [str(image) if word == "{image}" else word for word in words]
    done = subprocess.run(
        [BACKYFS, "-c", config, *words], capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr


# Records of commands


def records_of(config):
    """Return the record of each ended command, without times and process ids."""
    lines = (config.parent / "backyfs.log").read_text().splitlines()
    return [re.sub(r"after [\d.]+ s", "after N s", line.partition(" INFO ")[2]) for line in lines if " INFO " in line]


def test_each_command_is_recorded_with_its_result(call, config):
    assert call("-q", "ls")[0] == 0
    assert call("restore", "x@latest", "/nowhere")[0] == 4
    assert records_of(config) == [
        f"backyfs -c {config} -q ls",
        "ls ended with status 0 after N s",
        f"backyfs -c {config} restore x@latest /nowhere",
        "restore ended with status 4 after N s",
    ]


def test_a_backup_is_recorded_with_what_it_stored(call, config, tmp_path):
    uid = call("-m", "backup", random_image(tmp_path / "image", BLOCK), "my disk")[1].split()[0]
    began, ended = records_of(config)
    assert began == f"backyfs -c {config} -m backup {tmp_path}/image 'my disk'"
    assert ended.startswith(
        f"backup ended with status 0 after N s, uid {uid}, size_bytes 4096, bytes_read 4096, bytes_written 4096"
    )


def test_a_record_has_its_facts_as_json_fields(call, config, tmp_path):
    config.write_text(config.read_text().replace("block_size:", "log_format: json\nblock_size:", 1))
    uid = call("-m", "backup", random_image(tmp_path / "image", BLOCK), "disk")[1].split()[0]
    ended = json.loads((config.parent / "backyfs.log").read_text().splitlines()[-1])
    assert (ended["exit_status"], ended["uid"], ended["bytes_written"]) == (0, uid, 4096)
    assert ended["duration_s"] >= 0


def test_records_are_not_printed_on_stderr(call):
    assert call("-d", "ls")[2] == ""


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["ls"], "backyfs ls"),
        (["backup", "/dev/vg/web 1", "a\nb"], r"backyfs backup '/dev/vg/web 1' 'a\x0ab'"),
        (["init", "--db", "postgresql://ada:se:cr@t@host/db"], "backyfs init --db 'postgresql://ada:***@host/db'"),
        (["init", "--db=mysql://ada:secret@host/db"], "backyfs init '--db=mysql://ada:***@host/db'"),
        (
            ["db", "copy", "postgresql://ada@h/db?password=secret&sslmode=off", "sqlite:///x"],
            "backyfs db copy 'postgresql://ada@h/db?password=***&sslmode=off' sqlite:///x",
        ),
        (["rekey", "--old-key-command", f"echo {KEY}"], "backyfs rekey --old-key-command ***"),
        (["rekey", "--old-passphrase-command=echo secret", "x"], "backyfs rekey --old-passphrase-command=*** x"),
        (["key", "add", KEY, "--key-file", "/k"], "backyfs key add '***' --key-file /k"),
        (["backup", "s3://access:secret@host/bucket", "x"], "backyfs backup 's3://access:***@host/bucket' x"),
        (["init", "--db", "mysql://a/b:secret@host/db"], "backyfs init --db 'mysql://a/b:***@host/db'"),
        (["init", "--db", "postgresql://ada:secret"], "backyfs init --db 'postgresql://ada:***'"),
        (["init", "--db", "postgresql:ada:secret@host"], "backyfs init --db 'postgresql:ada:***@host'"),
        (["init", "--db", "ada:secret@host/db"], "backyfs init --db 'ada:***@host/db'"),
        (["init", "--db", "postgresql://host:5432/db"], "backyfs init --db postgresql://host:5432/db"),
        (["restore", "vm:disk@latest", "/x"], "backyfs restore vm:disk@latest /x"),
        (["backup", "rbd://pool/image@snapshot", "x"], "backyfs backup rbd://pool/image@snapshot x"),
        (["backup", "\udcff", "x"], r"backyfs backup '\xdcff' x"),
    ],
)
def test_a_command_line_is_shown_without_its_secrets(words, shown):
    assert shown_command_line(words) == shown
