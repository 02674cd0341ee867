"""Test data, storages that keep nothing, and limits, as operators see them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time

import pytest

from tests.support.images import random_image
from tests.support.program import BACKYFS
from tests.support.repositories import make_repository, wait_for_job

BLOCK = 256 << 10
MIB = 1 << 20


@pytest.fixture
def config(tmp_path):
    """Make a repository without encryption, which stores as many bytes as it reads."""
    return make_repository(tmp_path / "repository", block_size=BLOCK, encrypted=False)


def limit(config, *lines):
    """Set limits of the storage."""
    config.write_text(config.read_text().replace("[DataBackend]", "\n".join(["[DataBackend]", *lines])))


def seconds(function):
    started = time.monotonic()
    function()
    return time.monotonic() - started


def test_test_data_can_be_backed_up_and_restored(call, tmp_path):
    status, out, _ = call("--json", "backup", "null://1000k", "test")
    report = json.loads(out)
    assert (status, report["size_bytes"], report["blocks_written"]) == (0, 1_024_000, 4)
    assert call("restore", "test@latest", tmp_path / "out")[0] == 0
    content = (tmp_path / "out").read_bytes()
    assert len(content) == 1_024_000
    assert content[512 * 7 : 512 * 7 + 8] == b"\7" + bytes(7)


def test_test_data_are_the_same_each_time(call):
    call("backup", "null://1M", "test")
    report = json.loads(call("--json", "backup", "null://2MB", "test")[1])
    assert (report["blocks_deduplicated"], report["blocks_written"]) == (4, 4)


def test_an_invalid_size_is_reported(call):
    status, _, err = call("backup", "null://10X", "test")
    assert status == 7
    assert err == (
        "backyfs: error: null://10X does not give a size; write a whole number of bytes, perhaps with k, M, G, T or P: "
        "null://10G\n"
    )


def test_a_backup_and_a_restore_say_that_the_storage_keeps_nothing(config, call, tmp_path):
    config.write_text(re.sub(r"type: file\n(.*\n)*?path: .*\n", "type: null\n", config.read_text()))
    status, out, err = call("backup", "null://1M", "test")
    assert status == 0
    assert "new 1.0 MiB" in out
    assert err == (
        "backyfs: the storage is of type null and keeps nothing: what is backed up cannot be restored\n"
    )
    status, _, err = call("restore", "test@latest", tmp_path / "out")
    assert status == 20
    assert "was not kept: a storage of type null keeps nothing" in err


def test_a_backup_writes_and_a_restore_reads_at_the_limit(config, call, tmp_path):
    image = random_image(tmp_path / "image", 4 * MIB)
    limit(config, f"bandwidth_write: {2 * MIB}", f"bandwidth_read: {2 * MIB}")
    assert seconds(lambda: call("backup", image, "disk")) > 1.9
    assert seconds(lambda: call("restore", "disk@latest", tmp_path / "out")) > 1.9
    assert (tmp_path / "out").read_bytes() == image.read_bytes()
    assert seconds(lambda: call("backup", image, "disk")) < 1.9  # known blocks are not written again


def test_backups_and_restores_work_with_one_read_and_one_write_at_a_time(config, call, tmp_path):
    image = random_image(tmp_path / "image", 4 * MIB + 5)
    limit(config, "simultaneous_writes: 1", "simultaneous_reads: 1")
    config.write_text(config.read_text() + "[io_file]\nsimultaneous_reads: 1\n")
    assert call("backup", image, "disk")[0] == 0
    assert call("restore", "disk@latest", tmp_path / "out")[0] == 0
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_command_that_would_wait_for_hours_can_be_interrupted_immediately(config, call, tmp_path, command, number):
    call("backup", "null://8M", "test")
    limit(config, "bandwidth_write: 1024", "bandwidth_read: 1024")
    words = ["backup", "null://16M", "test"] if command == "backup" else ["restore", "test@latest", tmp_path / "out"]
    process = subprocess.Popen([BACKYFS, "-c", config, *words], stderr=subprocess.PIPE, text=True)
    wait_for_job(config, command)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=60) == 130  # a block takes more than an hour
    _, errors = process.communicate()
    assert "interrupted" in errors
    assert "Traceback" not in errors
