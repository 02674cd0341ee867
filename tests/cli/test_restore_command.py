"""`backyfs restore` with each of its options and to each kind of target, as operators call it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from pathlib import Path

import pytest
from sqlalchemy import update

from backyfs.cli.remedies import render_error
from backyfs.engine.restore.restore import RestoreOptions, restore
from backyfs.errors import IntegrityError, InterruptedByUser, TargetError, UsageError
from backyfs.metadata.db.tables import blobs, versions
from backyfs.model import VersionStatus
from backyfs.targets.file import FileTarget
from backyfs.work.run import Control
from tests.support.audit import audit, count_jobs
from tests.support.images import random_bytes, random_image, sparse_image
from tests.support.jobs import stopping_after
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, back_up, wait_for, wait_for_progress
from tests.support.stored import blob_of, file_of, flip_a_byte
from tests.unit.test_sources import loop_device

MIB = 1 << 20
INTERRUPTED = r"interrupted; the target is incomplete: continue from block (\d+)"
SIZE = 20 * BLOCK + 512  # blocks 0 to 20, of which 8 to 15 are a hole
CONTENT = random_bytes(8 * BLOCK) + bytes(8 * BLOCK) + random_bytes(4 * BLOCK + 512, 1)
OLD = random_bytes(24 * BLOCK, 9)


@pytest.fixture
def version(repository, tmp_path):
    pieces = {0: CONTENT[: 8 * BLOCK], 16 * BLOCK: CONTENT[16 * BLOCK :]}
    return back_up(repository, sparse_image(tmp_path / "image", SIZE, pieces)).version


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def old(out):
    """Make an existing target that is larger than the image."""
    out.write_bytes(OLD)
    return out


@pytest.fixture
def without_fingerprints(repository, version):
    """Make the blobs look like those of backy2 before a scrub has read them."""
    with repository.database.write() as connection:
        connection.execute(update(blobs).values(fingerprint=None))
    return version


def replaced(content, position, piece):
    return content[:position] + piece + content[position + len(piece) :]


def damage(repository, version, index):
    flip_a_byte(file_of(repository, blob_of(repository, version, index)))


def installed(config, *words, **options):
    return subprocess.run(
        [BACKYFS, "-c", config, *map(str, words)], capture_output=True, check=False, timeout=60, **options
    )


# --force, --sparse


def test_without_force_an_existing_target_is_left_unchanged(call, version, old):
    status, _, err = call("restore", version.uid, old)
    assert status == TargetError.exit_status == 8
    assert err == f"backyfs: error: {old} already exists; name another target, or add --force to overwrite it\n"
    assert old.read_bytes() == OLD


@pytest.mark.parametrize("words", [["--force"], ["-f"], ["-f", "-s"], ["-f", "--verify"]])
def test_a_replaced_file_keeps_none_of_its_old_content(call, version, old, words):
    assert call("restore", *words, version.uid, old)[0] == 0
    assert old.read_bytes() == CONTENT


@pytest.mark.parametrize("words", [[], ["-s"], ["--sparse", "--verify"]])
def test_a_new_file_has_holes_with_and_without_sparse(call, version, out, words):
    assert call("restore", *words, version.uid, f"file://{out}")[0] == 0
    assert out.read_bytes() == CONTENT
    assert out.stat().st_blocks * 512 <= 16 * BLOCK


@pytest.mark.parametrize(("words", "hole"), [([], bytes(8 * BLOCK)), (["-s"], OLD[8 * BLOCK : 16 * BLOCK])])
@pytest.mark.parametrize("mode", [["-f"], ["--differential"], ["-c", "0"], ["-f", "--verify"]])
def test_a_device_keeps_old_data_in_holes_only_with_sparse(call, version, old, words, hole, mode):
    with loop_device(old) as device:
        assert call("restore", *words, *mode, version.uid, device)[0] == 0
        content = Path(device).read_bytes()
    assert content == replaced(CONTENT, 8 * BLOCK, hole) + OLD[SIZE:]


@pytest.mark.parametrize("options", [None, RestoreOptions(), RestoreOptions(verify=True), RestoreOptions(offset=0)])
def test_replace_works_together_with_options(repository, version, old, options):
    restore(repository, version, str(old), replace=True, options=options)
    assert old.read_bytes()[:SIZE] == CONTENT


def test_options_alone_do_not_replace(repository, version, old):
    with pytest.raises(TargetError, match="already exists; name another target"):
        restore(repository, version, str(old), options=RestoreOptions(verify=True))
    assert old.read_bytes() == OLD


def test_a_device_that_is_mounted_is_refused(call, version, tmp_path):
    image, place = sparse_image(tmp_path / "disk", 8 * MIB, {}), tmp_path / "place"
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    with loop_device(image) as device:
        subprocess.run(["mount", device, place], check=True)
        try:
            for mode in ("-f", "--differential", "--continue-from=1"):
                status, _, err = call("restore", mode, version.uid, device)
                assert (status, err) == (
                    8, f"backyfs: error: {device} is in use; unmount it, or detach what uses it, first\n"
                )  # fmt: skip
        finally:
            subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("mode", ["-f", "--differential", "--continue-from=0"])
@pytest.mark.parametrize("name", ["backyfs.sqlite", "backyfs.sqlite-wal", "backyfs.key", "backyfs.cfg", "data/x"])
def test_files_of_the_repository_are_refused_as_targets(call, config, repository, version, mode, name):
    path = config.parent / name
    before = path.read_bytes() if path.exists() else None
    status, _, err = call("restore", mode, version.uid, path)
    assert (status, err) == (
        8, f"backyfs: error: {path} belongs to the repository itself; name a target outside of it\n"
    )  # fmt: skip
    assert (path.read_bytes() if path.exists() else None) == before
    audit(repository)


# --continue-from


@pytest.mark.parametrize("block", [0, 1, 7, 8, 12, 16, 20])
def test_data_before_the_block_are_kept_and_the_rest_is_written(call, version, old, block):
    status, out, _ = call("--json", "restore", "--continue-from", block, version.uid, old)
    assert status == 0
    assert old.read_bytes() == OLD[: block * BLOCK] + CONTENT[block * BLOCK :]
    data_blocks = max(0, 8 - block) + 4 - max(0, block - 16)
    assert json.loads(out)["bytes_written"] == data_blocks * BLOCK + 512


@pytest.mark.parametrize("options", [["-c", 0], ["-c", 0, "-s"], ["-c", 0, "-f"], ["-c", 0, "--verify"]])
def test_from_block_0_the_target_can_be_new_as_in_backy2(call, version, out, options):
    assert call("restore", *options, version.uid, out)[0] == 0
    assert out.read_bytes() == CONTENT


def test_from_another_block_the_target_must_exist(call, version, out):
    status, _, err = call("restore", "-c", 1, version.uid, out)
    assert (status, err) == (
        8, f"backyfs: error: {out} does not exist; name the target of an earlier restore\n"
    )  # fmt: skip
    assert not out.exists()


def test_a_file_that_ends_at_the_block_gets_the_rest(call, version, out):
    out.write_bytes(CONTENT[: 3 * BLOCK])
    assert call("restore", "-c", 3, "--verify", version.uid, out)[0] == 0
    assert out.read_bytes() == CONTENT


def test_data_before_the_block_are_verified_too(call, version, old):
    status, _, err = call("restore", "-c", 2, "--verify", version.uid, old)
    assert status == 20
    assert "backyfs: bytes 0 to 8192 differ: the target has other bytes than were written to it\n" in err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["-c", "1", "{out}"], 8, "{out} does not exist; name the target of an earlier restore"),
        (["-c", "25", "{old}"], 1, "version {uid} has 21 blocks, numbered from 0; block 25 is beyond its end"),
        (["-c", "6", "{short}"], 8, "{short} is 20480 bytes long and has no block 6; continue from an earlier block"),
        (["-c", "0", "-"], 1, "the standard output cannot be continued; restore the whole image, or name a file"),
        (["--verify", "-"], 1, "the standard output cannot be read back, so it can be neither compared"),
        (["--differential", "-"], 1, "the standard output cannot be read back, so it can be neither compared"),
        (["--verify", "null://"], 1, "null:// cannot be read back, so it can be neither compared"),
        (["--differential", "{out}"], 8, "{out} does not exist; name the target of an earlier restore"),
        (["rbd://pool/x"], 8, "rbd://pool/x: targets of kind rbd:// are not known; give a path, file://PATH, null://"),
    ],
)
def test_an_unsuitable_target_is_refused_and_not_changed(call, version, tmp_path, words, status, message):
    names = {"out": tmp_path / "none", "old": tmp_path / "old", "short": tmp_path / "short", "uid": version.uid}
    names["old"].write_bytes(OLD)
    names["short"].write_bytes(OLD[: 5 * BLOCK])
    *options, target = (word.format(**names) for word in words)
    found, _, err = call("restore", *options, version.uid, target)
    assert (found, err.startswith(f"backyfs: error: {message.format(**names)}")) == (status, True), err
    assert names["old"].read_bytes() == OLD
    assert names["short"].read_bytes() == OLD[: 5 * BLOCK]
    assert not names["out"].exists()


def test_a_negative_block_is_a_usage_error(call, version, old):
    assert call("restore", "-c", "-1", version.uid, old)[0] == UsageError.exit_status == 1


@pytest.mark.parametrize("calls", [0, 1, 5, 8])
@pytest.mark.parametrize("differential", [False, True])
def test_an_interrupted_restore_can_be_continued_from_the_block_it_names(
    repository, tmp_path, out, calls, differential
):
    image = random_image(tmp_path / "large", 10 * MIB + 5)
    version = back_up(repository, image).version
    out.write_bytes(bytes(10 * MIB + 5))
    options = RestoreOptions(replace=True, differential=differential)
    with pytest.raises(InterruptedByUser) as raised:
        restore(repository, version, str(out), options=options, control=Control(stop=stopping_after(calls)))
    match = re.fullmatch(INTERRUPTED, str(raised.value))
    assert match
    block = int(match[1])
    assert block % 256 == 0  # runs of 1 MiB
    assert block // 256 <= calls
    assert out.read_bytes()[: block * BLOCK] == image.read_bytes()[: block * BLOCK]
    assert count_jobs(repository) == 0
    options = RestoreOptions(continue_from=block, differential=differential, verify=True)
    report = restore(repository, version, str(out), options=options)
    assert (report.damaged, report.differing, report.is_verified) == ((), (), True)
    assert out.read_bytes() == image.read_bytes()


def test_a_full_file_system_is_reported_with_the_block_to_continue_from(call, version, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place], check=True)
    try:
        status, _, err = call("restore", version.uid, place / "out")
        assert status == 8
        assert err == (
            f"backyfs: error: {place}/out cannot be written: no space is left on its file system; make room there, or "
            "name another target; the target is incomplete: add --continue-from 0 to continue\n"
        )
        subprocess.run(["mount", "-o", "remount,size=1m", place], check=True)
        assert call("restore", "--continue-from", 0, version.uid, place / "out")[0] == 0
        assert (place / "out").read_bytes() == CONTENT
    finally:
        subprocess.run(["umount", place], check=True)


# --differential


def test_equal_blocks_are_neither_written_nor_read_from_the_storage(call, repository, version, out, monkeypatch):
    there = replaced(CONTENT, 3 * BLOCK, b"other")
    there = replaced(there, 10 * BLOCK + 5, b"no zero")
    there = replaced(there, 20 * BLOCK, b"other")
    out.write_bytes(there)
    for index in (0, 1, 2, 4, 5, 6, 7, 16, 17, 18, 19):
        file_of(repository, blob_of(repository, version, index)).unlink()
    written: list[int] = []
    monkeypatch.setattr(FileTarget, "write", _noting(written, FileTarget.write))
    monkeypatch.setattr(FileTarget, "write_zeros", _noting(written, FileTarget.write_zeros))
    status, text, _ = call("--json", "restore", "--differential", version.uid, out)
    report = json.loads(text)
    assert (status, report["bytes_written"], report["bytes_equal"]) == (0, 2 * BLOCK + 512, SIZE - 2 * BLOCK - 512)
    assert sorted(written) == [3 * BLOCK, 10 * BLOCK, 20 * BLOCK]
    assert out.read_bytes() == CONTENT


def _noting(notes, method):
    def note(self, offset, data):
        notes.append(offset)
        method(self, offset, data)

    return note


@pytest.mark.parametrize("size", [0, 5, 12 * BLOCK, SIZE - 1, SIZE, SIZE + 1, 30 * BLOCK])
def test_a_target_of_any_size_gets_the_size_of_the_image(call, version, out, size):
    out.write_bytes((CONTENT + OLD)[:size])
    status, text, _ = call("restore", "--differential", "--verify", version.uid, out)
    assert status == 0
    assert out.read_bytes() == CONTENT
    assert "verified: the target matches" in text


def test_the_summary_reports_data_that_were_already_there(call, version, out):
    out.write_bytes(CONTENT)
    _, text, _ = call("restore", "--differential", version.uid, out)
    assert text.splitlines()[1:] == ["written 0 B, already there 80.5 KiB"]


def test_blocks_without_a_fingerprint_are_compared_with_the_storage(call, without_fingerprints, out):
    out.write_bytes(replaced(CONTENT, BLOCK + 7, b"other"))
    status, text, _ = call("--json", "restore", "--differential", without_fingerprints.uid, out)
    assert (status, json.loads(text)["bytes_written"]) == (0, BLOCK)
    assert out.read_bytes() == CONTENT


def test_a_damaged_block_already_on_the_target_is_not_a_loss(call, repository, version, out):
    out.write_bytes(replaced(CONTENT, BLOCK, b"other"))
    damage(repository, version, 0)
    assert call("restore", "--differential", version.uid, out)[0] == 0
    assert out.read_bytes() == CONTENT


def test_a_damaged_block_that_differs_on_the_target_is_kept_and_reported(call, repository, version, out):
    there = replaced(replaced(CONTENT, BLOCK, b"other"), 2 * BLOCK, b"another")
    out.write_bytes(there)
    damage(repository, version, 1)
    status, _, err = call("restore", "--differential", "--verify", version.uid, out)
    assert status == IntegrityError.exit_status == 20
    assert "bytes 4096 to 8192 not restored: blob " in err
    assert "differ:" not in err
    assert out.read_bytes() == replaced(CONTENT, BLOCK, b"other")


# --verify


def _spoiling(offset, piece):
    """Return a `finish` after which the disk has other data at an offset."""
    finish = FileTarget.finish

    def spoil(self):
        finish(self)
        with Path(self._path).open("r+b") as file:
            os.pwrite(file.fileno(), piece, offset)

    return spoil


@pytest.mark.parametrize(
    ("offset", "piece", "start", "stop"),
    [
        (5, b"x", 0, BLOCK),
        (3 * BLOCK - 1, b"xy", 2 * BLOCK, 4 * BLOCK),
        (9 * BLOCK, b"x", 9 * BLOCK, 10 * BLOCK),
        (SIZE - 1, b"!", 20 * BLOCK, SIZE),
    ],
    ids=["block", "two blocks", "hole", "end"],
)
def test_data_that_read_back_differently_are_reported_with_their_range(
    call, version, out, monkeypatch, offset, piece, start, stop
):
    monkeypatch.setattr(FileTarget, "finish", _spoiling(offset, piece))
    status, text, err = call("--json", "restore", "--verify", version.uid, out)
    assert status == 20
    assert err == (
        f"backyfs: bytes {start} to {stop} differ: the target has other bytes than were written to it\n"
        f"backyfs: error: {stop - start} bytes of {out} were not read back as they were written, in ranges "
        "that the log lists; look at the log of the kernel, and restore to another disk\n"
    )
    report = json.loads(text)
    assert report["verified"] is False
    assert [(found["start"], found["stop"]) for found in report["differing"]] == [(start, stop)]


def test_without_verify_nothing_is_read_back(call, version, out, monkeypatch):
    monkeypatch.setattr(FileTarget, "finish", _spoiling(5, b"x"))
    status, text, _ = call("--json", "restore", version.uid, out)
    assert (status, json.loads(text)["verified"]) == (0, False)


def test_blocks_without_a_fingerprint_are_verified_against_the_storage(
    call, without_fingerprints, out, monkeypatch
):
    uid = without_fingerprints.uid
    assert json.loads(call("--json", "restore", "--verify", uid, out)[1])["verified"] is True
    monkeypatch.setattr(FileTarget, "finish", _spoiling(BLOCK, b"x"))
    status, text, _ = call("--json", "restore", "-f", "--verify", uid, out)
    assert (status, [found["start"] for found in json.loads(text)["differing"]]) == (20, [BLOCK])


def test_verify_reads_from_the_disk(repository, version, out, monkeypatch):
    calls: list[object] = []

    def is_zeros(*_):
        calls.append("read")
        return True

    monkeypatch.setattr(os, "fsync", lambda _number: calls.append("fsync"))
    monkeypatch.setattr(os, "posix_fadvise", lambda _number, *words: calls.append(words))
    monkeypatch.setattr(FileTarget, "is_zeros", is_zeros)
    restore(repository, version, str(out), options=RestoreOptions(verify=True))
    assert calls.index((0, 0, os.POSIX_FADV_DONTNEED)) < calls.index("read")
    assert "fsync" in calls[: calls.index((0, 0, os.POSIX_FADV_DONTNEED))]


def test_an_interruption_during_verify_says_that_everything_is_written(repository, version, out, monkeypatch):
    came = []
    drop_cache = FileTarget.drop_cache

    def drop_and_interrupt(self):
        drop_cache(self)
        came.append(True)

    monkeypatch.setattr(FileTarget, "drop_cache", drop_and_interrupt)
    control = Control(stop=lambda: bool(came))
    with pytest.raises(InterruptedByUser, match=r"^interrupted: everything was written, but not all "):
        restore(repository, version, str(out), options=RestoreOptions(verify=True), control=control)
    assert out.read_bytes() == CONTENT


# --offset, --length


PARTS = [
    (0, 1),
    (5, BLOCK),
    (BLOCK, 3 * BLOCK),
    (7 * BLOCK + 100, 2 * BLOCK),  # into the hole
    (9 * BLOCK, BLOCK + 7),        # within the hole
    (15 * BLOCK + 1, BLOCK),       # out of the hole
    (20 * BLOCK + 11, 400),        # part of the last block, which is short
    (0, SIZE),
]
parts = pytest.mark.parametrize(("offset", "length"), PARTS)


@parts
def test_stdout_gets_the_part_and_nothing_else(config, version, offset, length):
    done = installed(config, "restore", "--offset", offset, "--length", length, version.uid, "-")
    assert (done.returncode, done.stdout) == (0, CONTENT[offset : offset + length])


@parts
@pytest.mark.parametrize("words", [[], ["--verify"]])
def test_a_new_file_has_the_size_of_the_image_and_the_part_at_its_offset(call, version, out, offset, length, words):
    assert call("restore", *words, "--offset", offset, "--length", length, version.uid, out)[0] == 0
    assert out.read_bytes() == replaced(bytes(SIZE), offset, CONTENT[offset : offset + length])


@parts
@pytest.mark.parametrize("words", [["-f", "--verify"], ["--differential"]])
@pytest.mark.parametrize("there", [OLD, OLD[: 5 * BLOCK]], ids=["longer", "shorter"])
def test_the_rest_of_a_file_is_kept(call, version, out, offset, length, words, there):
    out.write_bytes(there)
    assert call("restore", *words, "--offset", offset, "--length", length, version.uid, out)[0] == 0
    expected = there + bytes(max(0, SIZE - len(there)))
    assert out.read_bytes() == replaced(expected, offset, CONTENT[offset : offset + length])


@pytest.mark.parametrize(("words", "hole"), [([], bytes(2 * BLOCK)), (["-s"], OLD[8 * BLOCK : 10 * BLOCK])])
@pytest.mark.parametrize("mode", ["-f", "--differential"])
def test_the_rest_of_a_device_is_kept_and_the_device_may_be_smaller_than_the_image(
    call, version, out, words, hole, mode
):
    out.write_bytes(OLD[: 12 * BLOCK])
    part = ["--offset", 6 * BLOCK + 512, "--length", 3 * BLOCK + 1024]
    with loop_device(out) as device:
        assert call("restore", *words, mode, *part, version.uid, device)[0] == 0
        content = Path(device).read_bytes()
    expected = CONTENT[6 * BLOCK + 512 : 8 * BLOCK] + hole[: BLOCK + 1536]
    assert content == replaced(OLD[: 12 * BLOCK], 6 * BLOCK + 512, expected)


def test_a_device_too_small_for_the_part_is_refused(call, version, out):
    out.write_bytes(OLD[: 12 * BLOCK])
    with loop_device(out) as device:
        status, _, err = call("restore", "-f", "--offset", BLOCK, "--length", 12 * BLOCK, version.uid, device)
    assert (status, out.read_bytes()) == (8, OLD[: 12 * BLOCK])
    assert f"{device} is too small: it has {12 * BLOCK} bytes, the image needs {13 * BLOCK}" in err


@pytest.mark.parametrize(
    ("words", "start", "stop"), [(["--offset", "4K"], BLOCK, SIZE), (["--length", "8KiB"], 0, 2 * BLOCK)]
)
def test_a_single_bound_means_from_the_beginning_or_to_the_end(call, version, out, words, start, stop):
    status, text, _ = call("--json", "restore", *words, version.uid, out)
    report = json.loads(text)
    assert (status, report["start"], report["stop"], report["size_bytes"]) == (0, start, stop, SIZE)
    assert out.read_bytes() == replaced(bytes(SIZE), start, CONTENT[start:stop])


def test_the_summary_names_the_part(call, version, out):
    _, text, _ = call("restore", "--offset", 10, "--length", 2048, version.uid, out)
    assert text.startswith(f"bytes 10 to 2058 of version {version.uid} restored to {out}: 2.0 KiB in ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--offset", SIZE], f"version {{uid}} has {SIZE} bytes; {SIZE} to {SIZE} is not a part of it; choose "),
        (["--length", 0], f"version {{uid}} has {SIZE} bytes; 0 to 0 is not a part of it; choose --offset"),
        (["--offset", 1, "--length", SIZE], f"version {{uid}} has {SIZE} bytes; 1 to {SIZE + 1} is not a part of it; "),
        (["--offset", 1, "-c", 0], "only the restore of a whole image can continue from a block; give the offset"),
        (["--length", "1Q"], "Invalid value for '--length': '1Q' is not a size; give bytes, or a number with K, M,"),
    ],
)  # fmt: skip
def test_a_part_outside_the_image_is_refused(call, version, old, words, message):
    status, _, err = call("restore", "-f", *words, version.uid, old)
    assert (status, err.startswith(f"backyfs: error: {message.format(uid=version.uid)}")) == (1, True), err
    assert old.read_bytes() == OLD


def test_a_part_does_not_overwrite_an_existing_file_without_force(call, version, old):
    assert call("restore", "--offset", 0, version.uid, old)[0] == 8
    assert old.read_bytes() == OLD


def test_only_damage_in_the_part_is_reported(call, repository, version, out):
    for index in (1, 3, 17):
        damage(repository, version, index)
    assert call("restore", "--offset", 4 * BLOCK, "--length", 12 * BLOCK, version.uid, out)[0] == 0
    status, _, err = call("restore", "-f", "--offset", BLOCK + 10, "--length", 2 * BLOCK, version.uid, out)
    assert status == 20
    assert f"backyfs: bytes {BLOCK + 10} to {2 * BLOCK} not restored: blob " in err
    assert f"bytes {3 * BLOCK} to {3 * BLOCK + 10} not restored: blob " in err
    assert "2 bytes" not in err
    expected = replaced(bytes(SIZE), 2 * BLOCK, CONTENT[2 * BLOCK : 3 * BLOCK])
    assert out.read_bytes() == replaced(expected, 4 * BLOCK, CONTENT[4 * BLOCK : 16 * BLOCK])


def test_data_of_a_part_that_read_back_differently_are_reported(call, version, out, monkeypatch):
    monkeypatch.setattr(FileTarget, "finish", _spoiling(BLOCK + 5, b"x"))
    status, text, _ = call("--json", "restore", "--verify", "--offset", 9, "--length", BLOCK, version.uid, out)
    assert status == 20
    assert [(found["start"], found["stop"]) for found in json.loads(text)["differing"]] == [(BLOCK, BLOCK + 9)]
    status, text, _ = call("--json", "restore", "-f", "--verify", "--length", BLOCK, version.uid, out)
    assert (status, json.loads(text)["verified"]) == (0, True)


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_an_interrupted_restore_of_a_part_says_what_is_left(repository, tmp_path, out, calls):
    image = random_image(tmp_path / "large", 10 * MIB + 5)
    version = back_up(repository, image).version
    options = RestoreOptions(offset=MIB + 100, length=7 * MIB)
    with pytest.raises(InterruptedByUser) as raised:
        restore(repository, version, str(out), options=options, control=Control(stop=stopping_after(calls)))
    match = re.fullmatch(
        r"interrupted; the target is incomplete: add --force --offset (\d+) --length (\d+) to continue",
        render_error(raised.value),
    )
    assert match
    start, length = map(int, match.groups())
    assert (start >= MIB + 100, start + length) == (True, 8 * MIB + 100)
    restore(repository, version, str(out), options=RestoreOptions(replace=True, offset=start, length=length))
    expected = replaced(bytes(10 * MIB + 5), MIB + 100, image.read_bytes()[MIB + 100 : 8 * MIB + 100])
    assert out.read_bytes() == expected


# Damaged versions


def test_an_invalid_version_is_reported_first_and_restored_as_well_as_possible(call, repository, version, out):
    damage(repository, version, 2)
    with repository.database.write() as connection:
        connection.execute(update(versions).values(status=VersionStatus.INVALID.value))
    status, _, err = call("restore", "--verify", version.uid, out)
    assert status == 20
    first, second, last = err.splitlines()
    assert first == (
        f"backyfs: version {version.uid} is invalid: blocks of it were found damaged; everything else is restored"
    )
    assert second.startswith("backyfs: bytes 8192 to 12288 not restored: blob ")
    assert last == (
        f"backyfs: error: 4096 bytes of version {version.uid} could not be restored, in ranges that the log "
        f"lists; everything else is in {out}"
    )
    assert out.read_bytes() == replaced(CONTENT, 2 * BLOCK, bytes(BLOCK))


# Other targets


@pytest.mark.parametrize("words", [[], ["-s"], ["-f"]])
def test_stdout_gets_the_image_and_nothing_else(config, version, words):
    done = installed(config, "restore", *words, version.uid, "-")
    assert done.returncode == 0
    assert done.stdout == CONTENT
    assert done.stderr.startswith(
        f"version {version.uid} restored to standard output: 80.5 KiB in ".encode()
    )


@pytest.mark.parametrize("option", ["--json", "-m"])
def test_the_report_does_not_go_to_stdout(config, version, option):
    done = installed(config, option, "restore", version.uid, "-")
    assert (done.returncode, done.stdout, done.stderr) == (0, CONTENT, b"")


def test_a_large_image_goes_to_stdout_in_order_and_with_bounded_memory(config, repository, tmp_path):
    pieces = {position: random_bytes(MIB, position) for position in range(0, 256 * MIB, 16 * MIB)}
    image = sparse_image(tmp_path / "large", 256 * MIB + 3, pieces)
    version = back_up(repository, image).version
    shell = f'ulimit -v 1500000; "{BACKYFS}" -c "{config}" restore {version.uid} - | (sleep 1; cmp - "{image}")'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_damaged_block_is_zeros_on_stdout(config, repository, version):
    damage(repository, version, 1)
    done = installed(config, "restore", version.uid, "-")
    assert (done.returncode, done.stdout) == (20, replaced(CONTENT, BLOCK, bytes(BLOCK)))
    assert b"bytes 4096 to 8192 not restored: blob " in done.stderr


def test_a_reader_that_stops_early_is_not_a_failure(config, repository, tmp_path):
    version = back_up(repository, random_image(tmp_path / "large", 20 * MIB)).version
    shell = f'"{BACKYFS}" -c "{config}" restore {version.uid} - | head -c 5; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, random_bytes(20 * MIB)[:5], b"")
    assert count_jobs(repository) == 0


def test_an_image_is_not_written_to_a_terminal(config, version):
    main, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [BACKYFS, "-c", config, "restore", version.uid, "-"],
            stdout=terminal, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(main)
        os.close(terminal)
    assert done.returncode == 8
    assert done.stderr == (
        "backyfs: error: the standard output is a terminal, and an image is not text; redirect it, or name a file or "
        "device\n"
    )


def waiting_bytes(pipe):
    """Return the number of unread bytes."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


def test_a_reader_that_reads_nothing_does_not_keep_a_restore_from_ending(config, repository, tmp_path):
    version = back_up(repository, random_image(tmp_path / "large", 20 * MIB)).version
    with subprocess.Popen(
        [BACKYFS, "-c", config, "restore", version.uid, "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        pipe = process.stdout.fileno()
        wait_for(lambda: waiting_bytes(pipe) >= fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ), "the pipe is full")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert b"interrupted" in process.stderr.read()


def test_a_null_target_can_be_used_for_measuring(call, repository, version):
    status, text, _ = call("--json", "restore", version.uid, "null://")
    report = json.loads(text)
    assert (status, report["target"], report["bytes_written"]) == (0, "null://", SIZE - 8 * BLOCK)
    damage(repository, version, 1)
    assert call("restore", version.uid, "null://")[0] == 20


@pytest.mark.parametrize("section", ["io_file", "io_null"])
def test_a_restore_limited_to_one_write_at_a_time_is_complete(call, config, version, old, section):
    config.write_text(config.read_text() + f"[{section}]\nsimultaneous_writes: 1\n")
    assert call("restore", version.uid, "null://")[0] == 0
    for words in (["-f"], ["--differential"], ["-c", 0]):
        old.write_bytes(OLD)
        assert call("restore", *words, "--verify", version.uid, old)[0] == 0
        assert old.read_bytes() == CONTENT


# Killed, interrupted, watched


@pytest.fixture
def slow(config, repository, tmp_path):
    """Make a version whose restore takes eight seconds; return a function that starts the restore."""
    image = random_image(tmp_path / "large", 8 * MIB)
    version = back_up(repository, image).version
    processes = []
    config.write_text(config.read_text().replace("[DataBackend]", f"[DataBackend]\nbandwidth_read: {MIB}"))

    def start(target):
        process = subprocess.Popen(
            [BACKYFS, "-c", config, "restore", version.uid, target], stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        wait_for_progress(config, "restore")
        assert process.poll() is None
        return process

    yield version, image, start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_signal_ends_a_restore_with_the_block_to_continue_from(call, config, slow, out):
    version, image, start = slow
    process = start(out)
    row = json.loads(call("--json", "jobs")[1])[0]
    assert row["command"] == f"restore {version.uid}"
    assert re.fullmatch(r"\d+\.\d%.*", row["progress"])
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    match = re.search(r"; the target is incomplete: add --continue-from (\d+) to continue\n$", err)
    assert match
    block = int(match[1])
    assert 0 < block < 2048
    assert out.read_bytes()[: block * BLOCK] == image.read_bytes()[: block * BLOCK]
    config.write_text(config.read_text().replace(f"bandwidth_read: {MIB}", ""))
    assert call("restore", "--continue-from", block, "--verify", version.uid, out)[0] == 0
    assert out.read_bytes() == image.read_bytes()


def test_a_killed_restore_can_be_completed_and_leaves_the_repository_unchanged(call, config, repository, slow, out):
    version, image, start = slow
    before = call("--json", "ls")[1]
    process = start(out)
    process.kill()
    process.communicate(timeout=10)
    assert call("--json", "ls")[1] == before
    audit(repository)
    content = out.read_bytes()
    assert len(content) == 8 * MIB
    config.write_text(config.read_text().replace(f"bandwidth_read: {MIB}", ""))
    status, text, _ = call("--json", "restore", "--differential", version.uid, out)
    report = json.loads(text)
    assert (status, report["bytes_written"] + report["bytes_equal"]) == (0, 8 * MIB)
    assert report["bytes_equal"] > 0
    assert out.read_bytes() == image.read_bytes()
