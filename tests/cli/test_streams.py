"""Output that cannot be written as it is: a full disk, a closed descriptor, another charset."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.support.images import random_image
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, back_up, opened

DEADLINE_S = 120
NAME = "dïsk€😀"
FULL = "the standard output cannot be written: No space left on device"


@pytest.fixture
def image(tmp_path):
    return random_image(tmp_path / "image", BLOCK)


@pytest.fixture
def stored(config, image):
    """Store a version with a name that most charsets lack."""
    with opened(config) as repository:
        return back_up(repository, image, NAME).version


def shell(script, config, *words, **environ):
    """Run a command through a shell script in which it is "$@"."""
    return subprocess.run(
        ["sh", "-c", script, "sh", BACKYFS, "-c", config, *map(str, words)],
        capture_output=True,
        check=False,
        env=os.environ | environ,
    )


# Output that cannot be written


@pytest.mark.parametrize("form", [[], ["-m"], ["--json"]], ids=["table", "-m", "--json"])
def test_a_backup_whose_report_is_lost_succeeds_and_says_so(config, image, form):
    done = shell('"$@" >/dev/full', config, *form, "backup", image, "disk")
    assert done.returncode == 0
    assert f"the command has ended, but its output is lost: {FULL}" in done.stderr.decode()


@pytest.mark.parametrize("words", [["ls"], ["--help"], ["ls", "--help"], ["-V"], ["export", "--all", "-"],
                                   ["restore", f"{NAME}@latest", "-"], ["-q", "export", "--all", "-"]])  # fmt: skip
def test_a_command_run_for_its_output_fails_if_the_output_is_lost(config, stored, words):
    done = shell('"$@" >/dev/full', config, *words)
    assert done.returncode == 8
    assert f"backyfs: error: {FULL}" in done.stderr.decode()


def test_a_result_remains_the_status_if_the_output_is_lost(config, stored):
    config.write_text(config.read_text() + "\n[daily]\ninterval: 1d\nkeep: 2\nsla: 3h\n")
    done = shell('"$@" >/dev/full', config, "due", "other", "--check")
    assert done.returncode == 2
    assert f"the command has ended, but its output is lost: {FULL}" in done.stderr.decode()


def test_damage_found_by_a_restore_remains_its_status_if_nobody_reads_the_report(config, stored, image, tmp_path):
    blob = next((config.parent / "data").glob("??/??/*.blob"))
    blob.write_bytes(blob.read_bytes()[:-1])
    done = shell('{ "$@"; echo $? >&2; } | :', config, "-q", "restore", stored.uid, tmp_path / "restored")
    assert done.stderr.decode().splitlines()[-1] == "20"


def test_an_unread_report_is_not_a_failure_for_hooks(config, image, tmp_path):
    config.write_text(f"{config.read_text()}\n[hooks]\nafter_backup: echo $BACKYFS_STATUS >> {tmp_path}/notes\n")
    for stdout in ("/dev/full", "/dev/null"):
        assert shell(f'"$@" >{stdout}', config, "backup", image, "disk").returncode == 0
    assert shell('"$@" | :', config, "backup", image, "disk").returncode == 0
    assert (tmp_path / "notes").read_text() == "done\ndone\ndone\n"


@pytest.mark.parametrize("words", [["export", "--all", "-"], ["restore", f"{NAME}@latest", "-"]])
def test_a_result_for_a_closed_stdout_is_an_error(config, stored, words):
    done = shell('"$@" >&-', config, *words)
    assert done.returncode == 8
    assert "the standard output is closed; redirect it" in done.stderr.decode()


def test_a_closed_standard_descriptor_is_not_reused_for_a_file(config, image, tmp_path):
    found = tmp_path / "found"
    config.write_text(f"{config.read_text()}\n[hooks]\nafter_backup: readlink /proc/$BACKYFS_PID/fd/[012] > {found}\n")
    assert shell('"$@" <&- >&- 2>&-', config, "backup", image, "disk").returncode == 0
    assert found.read_text() == "/dev/null\n" * 3


def test_the_mount_helper_needs_no_descriptors(config, stored, tmp_path):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    helper = Path(BACKYFS).with_name("mount.backyfs")
    words = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", helper, config, mountpoint]
    assert subprocess.run(words, check=False).returncode == 0
    try:
        assert (mountpoint / "by_version_uid" / stored.uid / "data").exists()
    finally:
        subprocess.run([BACKYFS, "-q", "umount", mountpoint], check=True)


def test_a_nonblocking_pipe_gets_everything():
    script = (
        "import os\nfrom backyfs.cli.streams import settle_streams\nos.set_blocking(1, False)\nsettle_streams()\n"
        "print('x' * 1_000_000, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        end = time.monotonic() + DEADLINE_S
        capacity = fcntl.fcntl(process.stdout, fcntl.F_GETPIPE_SZ)
        while int.from_bytes(fcntl.ioctl(process.stdout, termios.FIONREAD, bytes(4)), sys.byteorder) < capacity:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert len(process.stdout.read()) == 1_000_001
    assert process.returncode == 0


# Other charsets


@pytest.mark.parametrize(
    ("charset", "shown"), [("ascii", r"d\xefsk\u20ac\U0001f600"), ("latin-1", "dïsk\\u20ac\\U0001f600")]
)
@pytest.mark.parametrize("form", [[], ["-m"]], ids=["table", "-m"])
def test_characters_missing_from_the_charset_are_escaped(config, stored, charset, shown, form):
    done = shell('exec "$@"', config, *form, "ls", PYTHONIOENCODING=charset)
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown.encode(charset) in done.stdout


@pytest.mark.parametrize("charset", ["ascii", "latin-1", "utf-8"])
def test_json_is_valid_in_every_charset(config, stored, charset):
    done = shell('exec "$@"', config, "--json", "ls", PYTHONIOENCODING=charset)
    [version] = json.loads(done.stdout.decode(charset))
    assert version["name"] == NAME


def test_an_error_is_shown_in_a_charset_that_lacks_its_characters(config):
    done = shell('exec "$@"', config, "restore", f"{NAME}@latest", "/nowhere", PYTHONIOENCODING="ascii")
    assert done.returncode == 4
    assert b"no version is named" in done.stderr
    assert b"Traceback" not in done.stderr




# Names of files that are not UTF-8


def test_images_with_names_that_are_not_utf8_can_be_backed_up_and_restored(config, image, tmp_path):
    directory = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(directory)
    image = image.rename(os.fsdecode(directory + b"/image"))
    assert shell('exec "$@"', config, "backup", image, "disk").returncode == 0
    assert shell('exec "$@"', config, "restore", "disk@latest", f"{image}.2").returncode == 0
    assert Path(f"{image}.2").read_bytes() == image.read_bytes()
