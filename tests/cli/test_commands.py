"""Commands as people and scripts call them: three forms of output, exit statuses, messages."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess

import click
import pytest

from backyfs import __version__
from backyfs.cli.main import run
from backyfs.cli.sizes import Size
from tests.support.images import random_image
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, back_up, make_repository, opened
from tests.support.stored import blob_of, file_of, flip_a_byte

UID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


@pytest.fixture
def image(tmp_path):
    return random_image(tmp_path / "image", 3 * BLOCK + 5)


def installed(*words, **options):
    return subprocess.run([BACKYFS, *map(str, words)], capture_output=True, text=True, check=False, **options)


# Success


def test_the_version_is_printed():
    done = installed("-V")
    assert (done.returncode, done.stdout) == (0, f"backyfs {__version__}\n")


def test_help_describes_every_command_in_a_line():
    done = installed("--help")
    assert done.returncode == 0
    assert re.findall(r"^  ([a-z][\w-]*)  +\w.*\.$", done.stdout, re.MULTILINE) == [
        "init",
        "backup",
        "restore",
        "ls",
        "mount",
        "umount",
        "attach",
        "detach",
        "rm",
        "protect",
        "unprotect",
        "add-tag",
        "remove-tag",
        "expire",
        "due",
        "sla",
        "forget",
        "cleanup",
        "scrub",
        "repair",
        "du",
        "stats",
        "diff-meta",
        "jobs",
        "export",
        "import",
        "recover",
        "catalog",
        "initdb",
        "check-config",
        "upgrade",
        "key",
        "rekey",
        "migrate-encryption",
        "db",
        "completion",
    ]


@pytest.mark.parametrize("command", ["init", "backup", "restore", "ls", "mount", "fuse", "umount"])
def test_every_command_has_help(command):
    done = installed(command, "--help")
    assert done.returncode == 0
    assert "Usage: backyfs" in done.stdout


def test_a_new_user_gets_from_init_to_restore(tmp_path, image):
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "BACKYFS_CONFIG": f"{tmp_path}/my.cfg"}
    made = installed("init", "--data", tmp_path / "data", "--db", tmp_path / "db.sqlite", env=environ)
    assert made.returncode == 0
    assert "Copy the key file to a safe place elsewhere" in made.stdout
    assert installed("backup", image, "disk", env=environ).returncode == 0
    assert installed("restore", "disk@latest", tmp_path / "out", env=environ).returncode == 0
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_backup_reports_the_version_and_what_it_did(call, image):
    status, out, err = call("backup", image, "disk")
    assert (status, err) == (0, "")
    assert re.match(rf"version {UID} of disk: 12\.0 KiB in \d+\.\d s \(.*/s\)\nnew 12\.0 KiB \(stored as ", out)


def test_backup_prints_the_uid_twice_for_machines(call, image):
    status, out, err = call("-m", "backup", image, "disk")
    assert (status, err) == (0, "")
    first, second = out.splitlines()
    assert re.fullmatch(UID, first)
    assert first == second


def test_backup_prints_json(call, image):
    _, out, _ = call("--json", "backup", image, "disk", "-s", "snap")
    result = json.loads(out)
    assert result["status"] == "valid"
    assert result["valid"] is True
    assert result["snapshot_name"] == "snap"
    assert (result["size"], result["size_bytes"]) == (4, 3 * BLOCK + 5)
    assert (result["blocks_written"], result["bytes_written"]) == (4, 3 * BLOCK + 5)


def test_ls_prints_the_lines_of_backy2_for_machines(call, config, image):
    call("backup", image, "b", "-e", "2030-12-31")
    call("backup", image, "a", "-s", "snap", "-t", "y,x")
    status, out, err = call("-m", "ls")
    assert (status, err) == (0, "")
    header, first, second = out.splitlines()
    assert header == "date|name|snapshot_name|size|size_bytes|uid|valid|protected|tags|expire"
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{date}\|a\|snap\|4\|12293\|{UID}\|1\|0\|x,y\|", first)
    assert re.fullmatch(rf"{date}\|b\|\|4\|12293\|{UID}\|1\|0\|b_daily,b_monthly,b_weekly\|2030-12-31 00:00:00", second)


def test_ls_omits_the_header_on_request(call, image):
    call("backup", image, "disk")
    _, out, _ = call("-m", "-s", "ls")
    assert len(out.splitlines()) == 1


def test_ls_prints_json_with_the_field_names_of_backy2_and_ours(call, image):
    call("backup", image, "disk")
    _, out, _ = call("--json", "ls")
    [version] = json.loads(out)
    assert list(version) == [
        "uid",
        "date",
        "name",
        "snapshot_name",
        "size",
        "size_bytes",
        "valid",
        "protected",
        "tags",
        "expire",
        "status",
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", version["date"])
    assert version["tags"] == ["b_daily", "b_monthly", "b_weekly"]
    assert (version["expire"], version["protected"]) == (None, False)


def test_ls_without_versions_prints_a_header_or_an_empty_list(call):
    assert call("-m", "ls")[1].count("\n") == 1
    assert json.loads(call("--json", "ls")[1]) == []


def test_ls_of_a_name_shows_only_that_name(call, image):
    call("backup", image, "a")
    call("backup", image, "b")
    _, out, _ = call("-m", "-s", "ls", "b")
    assert [line.split("|")[1] for line in out.splitlines()] == ["b"]


def test_sizes_have_units_on_request(call, image):
    call("backup", image, "disk")
    assert "12.0 KiB" in call("-r", "ls")[1]


def test_a_name_cannot_write_to_the_terminal_or_break_the_table(call, image):
    call("backup", image, "evil\x1b[31m\nname [bold]")
    _, out, _ = call("ls")
    assert "\x1b" not in out
    assert "evil\\x1b[31m\\x0aname [bold]" in out


def test_a_version_is_named_by_uid_prefix_or_name(call, image, tmp_path):
    uid = call("-m", "backup", image, "disk")[1].split()[0]
    for number, version in enumerate((uid, uid[:8], uid[:4].upper(), "disk@latest", "disk@2999-01-01")):
        assert call("restore", version, tmp_path / f"out{number}")[0] == 0
        assert (tmp_path / f"out{number}").read_bytes() == image.read_bytes()


def test_restore_prints_json(call, image, tmp_path):
    uid = call("-m", "backup", image, "disk")[1].split()[0]
    _, out, _ = call("--json", "restore", uid, tmp_path / "out")
    result = json.loads(out)
    assert (result["uid"], result["bytes_written"], result["damaged"]) == (uid, 3 * BLOCK + 5, [])


# Failure


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["nonsense"], 1, "No such command 'nonsense'"),
        (["ls", "--nonsense"], 1, "No such option"),
        (["backup"], 1, "Missing argument 'SOURCE'"),
        (["-m", "--json", "ls"], 1, "-m and --json are two forms of output; give one of them"),
        (["restore", "disk@latest", "/nowhere"], 4, "no version is named 'disk'; `backyfs ls` lists the versions"),
        (["restore", "abc", "/nowhere"], 4, "'abc' does not name a version; give a uid, 4 or more digits of one"),
        (["backup", "/nonexistent", "disk"], 7, "/nonexistent cannot be read: No such file or directory"),
        (["backup", "rbd://pool/x", "disk"], 7, "sources of kind rbd:// are not known"),
        (["umount", "/usr"], 10, "nothing of backyfs is mounted on /usr"),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_its_own_status(call, words, status, message):
    got, out, err = call(*words)
    assert got == status
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == (1 if "backyfs: error" in err else 4)


def test_a_target_that_exists_is_refused(call, image, tmp_path):
    call("backup", image, "disk")
    (tmp_path / "out").write_bytes(b"precious")
    status, _, err = call("restore", "disk@latest", tmp_path / "out")
    assert status == 8
    assert err == (
        f"backyfs: error: {tmp_path}/out already exists; name another target, or add --force to overwrite it\n"
    )
    assert (tmp_path / "out").read_bytes() == b"precious"


def test_damage_is_listed_and_has_its_own_status(call, config, image, tmp_path):
    with opened(config) as repository:
        version = back_up(repository, image).version
        flip_a_byte(file_of(repository, blob_of(repository, version, 1)))
    status, _, err = call("restore", version.uid, tmp_path / "out")
    assert status == 20
    assert "bytes 4096 to 8192 not restored: blob" in err
    assert "4096 bytes of version" in err.splitlines()[-1]
    content = image.read_bytes()
    assert (tmp_path / "out").read_bytes() == content[:BLOCK] + bytes(BLOCK) + content[2 * BLOCK :]


@pytest.mark.parametrize("words", [["ls"], ["backup", "/etc/hostname", "x"], ["restore", "x@latest", "/nowhere"]])
def test_every_command_ends_immediately_with_the_wrong_key(call, config, words):
    (config.parent / "backyfs.key").write_text("ab" * 32)
    status, out, err = call(*words)
    assert (status, out) == (3, "")
    assert re.search(r"is not the key of this repository, which is [0-9a-f-]{19}; configure that one", err)


def test_mount_ends_immediately_with_the_wrong_key(config, tmp_path):
    (config.parent / "backyfs.key").write_text("ab" * 32)
    (tmp_path / "mnt").mkdir()
    done = installed("-c", config, "mount", tmp_path / "mnt")
    assert done.returncode == 3
    assert "is not the key of this repository" in done.stderr


def test_without_a_repository_the_error_says_how_to_make_one(tmp_path, capsys):
    config = make_repository(tmp_path)
    (tmp_path / "backyfs.sqlite").unlink()
    shutil.rmtree(tmp_path / "data" / "catalog")
    assert run(["-c", str(config), "ls"]) == 1
    assert "holds no repository; run `backyfs initdb` to make one" in capsys.readouterr().err


def test_a_missing_storage_is_reported(call, config, image):
    shutil.rmtree(config.parent / "data")
    status, _, err = call("backup", image, "disk")
    assert status == 6
    assert "does not exist; is its file system mounted?" in err


def test_an_unknown_key_in_the_configuration_is_a_warning(call, config):
    config.write_text(config.read_text().replace("block_size:", "blok_size: 1\nblock_size:"))
    status, _, err = call("ls")
    assert status == 0
    assert "blok_size: is not a known key and is ignored; did you mean block_size?" in err


def test_a_reader_that_stops_early_is_not_an_error(config, image):
    with opened(config) as repository:
        for number in range(40):
            back_up(repository, image, f"disk{number}")
    command = f"{BACKYFS} -c {config} -m ls | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_traceback_is_shown_only_with_debug(config):
    with_debug = installed("-c", config, "--debug", "restore", "x@latest", "/nowhere")
    without = installed("-c", config, "restore", "x@latest", "/nowhere")
    assert (with_debug.returncode, without.returncode) == (4, 4)
    assert "Traceback" in with_debug.stderr
    assert "Traceback" not in without.stderr


def test_no_output_ever_contains_the_key(config, image, tmp_path):
    digits = (config.parent / "backyfs.key").read_text().strip()
    for words in (["backup", image, "x"], ["ls"], ["restore", "x@latest", tmp_path / "out"], ["ls", "--nope"]):
        done = installed("-c", config, "--debug", *words)
        assert digits[:16] not in done.stdout + done.stderr
    assert digits[:16] not in (config.parent / "backyfs.log").read_text()


# Progress


def run_on_a_terminal(*words):
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen([BACKYFS, *map(str, words)], stdout=subprocess.DEVNULL, stderr=slave)
        os.close(slave)
        shown = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        assert process.wait() == 0
        return shown
    finally:
        os.close(master)


def test_a_long_backup_shows_a_bar_on_a_terminal_only(tmp_path):
    config = make_repository(tmp_path / "repository")
    limited = config.read_text().replace("[DataBackend]", f"[DataBackend]\nbandwidth_write: {1 << 20}")
    config.write_text(limited)
    image = random_image(tmp_path / "image", 5 << 20)  # five seconds; the bar appears after one
    with_bar = run_on_a_terminal("-c", config, "backup", image, "disk")
    assert b"Backing up disk" in with_bar
    assert run_on_a_terminal("-c", config, "--no-progress", "backup", image, "disk") == b""


def test_a_short_command_shows_no_progress(config, image):
    assert run_on_a_terminal("-c", config, "backup", image, "disk") == b""


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("64K", 65536), ("256M", 256 << 20), ("1g", 1 << 30), ("2TiB", 2 << 40)],
)
def test_sizes_have_units(text, size):
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "64 M", "64X", "9" * 16])
def test_an_invalid_size_is_refused(text):
    with pytest.raises(click.BadParameter, match="is not a size; give bytes, or a number with K, M, G or T"):
        Size().convert(text, None, None)
