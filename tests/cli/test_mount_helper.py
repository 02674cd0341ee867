"""The helper of mount(8): how it translates options, its exit statuses, and mounts made by mount(8)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from backyfs.cli.commands.mount import command as mount_command
from backyfs.cli.mount_helper import run, translate
from backyfs.errors import UsageError
from tests.support.images import random_image
from tests.support.program import PATIENCE_S, why_not_mount
from tests.support.repositories import BLOCK, back_up, make_repository, opened

USAGE, FAILED = 1, 32  # of mount(8)
# As mount(8) calls it: `rw` is always there.
COMMON = ["rw"]


# Translation


def test_a_source_is_the_configuration() -> None:
    assert translate("/etc/my.cfg", "/mnt", COMMON) == ["--configfile=/etc/my.cfg", "mount", "--", "/mnt"]


@pytest.mark.parametrize("source", ["backyfs", "none", "default"])
def test_a_source_that_is_not_a_file_means_the_usual_places(source: str) -> None:
    assert translate(source, "/mnt", COMMON) == ["mount", "--", "/mnt"]


def test_an_option_may_name_the_configuration() -> None:
    assert translate("backyfs", "/mnt", ["config=/etc/my.cfg"])[0] == "--configfile=/etc/my.cfg"
    assert translate("/etc/my.cfg", "/mnt", ["config=/etc/my.cfg"])[0] == "--configfile=/etc/my.cfg"


def test_two_configurations_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^/etc/my\.cfg and config=/etc/other\.cfg are two configurations"):
        translate("/etc/my.cfg", "/mnt", ["config=/etc/other.cfg"])


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("cache_size=256M", "--cache-size=256M"),
        ("read_ahead=32M", "--read-ahead=32M"),
        ("workers=4", "--workers=4"),
        ("timeout=30", "--timeout=30"),
        ("version=6f1c", "--version=6f1c"),
        ("name=my disk=1", "--name=my disk=1"),
        ("tag=monthly", "--tag=monthly"),
        ("writable=/var/tmp/changes", "--writable=/var/tmp/changes"),
        ("discard", "--discard"),
    ],
)
def test_our_options_become_options_of_the_command(option: str, word: str) -> None:
    assert translate("none", "/mnt", [*COMMON, option]) == ["mount", word, "--", "/mnt"]


def test_options_may_be_repeated() -> None:
    options = ["name=a", "tag=x", "name=b"]
    assert translate("none", "/mnt", options) == ["mount", "--name=a", "--tag=x", "--name=b", "--", "/mnt"]


def test_fuse_options_are_passed_on() -> None:
    options = ["rw", "allow_other", "allow_root", "nodev", "nosuid", "noexec", "noatime", "default_permissions"]
    passed_on = "-oallow_other,allow_root,nodev,nosuid,noexec,noatime,default_permissions,auto_unmount"
    assert translate("none", "/mnt", [*options, "auto_unmount"]) == ["mount", passed_on, "--", "/mnt"]


@pytest.mark.parametrize(
    "option",
    [
        "rw", "ro", "defaults", "auto", "noauto", "user", "users", "nouser", "user=me", "owner", "group", "nofail",
        "_netdev", "dev", "suid", "exec", "async", "sync", "atime", "relatime", "strictatime", "lazytime",
        "x-systemd.automount", "x-systemd.requires=postgresql.service", "X-mount.mkdir", "comment=mine",
    ],
)  # fmt: skip
def test_options_without_meaning_here_are_dropped(option: str) -> None:
    assert translate("none", "/mnt", [option]) == ["mount", "--", "/mnt"]


def test_an_unknown_option_is_reported_with_the_allowed_ones() -> None:
    with pytest.raises(UsageError) as refused:
        translate("none", "/mnt", ["cachesize=1G"])
    assert str(refused.value) == (
        "mount option 'cachesize=1G' is not known; allowed: allow_other, allow_root, auto_unmount, cache_size=, "
        "config=, default_permissions, discard, name=, noatime, nodev, noexec, nosuid, read_ahead=, tag=, timeout=, "
        "version=, workers=, writable="
    )


@pytest.mark.parametrize("option", ["cache_size", "cache_size=", "config", "writable="])
def test_an_option_without_its_value_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"^mount option '{option.rstrip('=')}' needs a value"):
        translate("none", "/mnt", [option])


@pytest.mark.parametrize("option", ["discard=yes", "nodev=1"])
def test_an_unexpected_value_of_an_option_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match=r"takes no value$"):
        translate("none", "/mnt", [option])


def test_sloppy_ignores_unknown_options() -> None:
    words = translate("none", "/mnt", ["bla", "workers=2", "foo=1"], sloppy=True)
    assert words == ["mount", "--workers=2", "--", "/mnt"]


@pytest.mark.parametrize("sloppy", [False, True])
def test_remount_is_refused(*, sloppy: bool) -> None:
    with pytest.raises(UsageError, match=r"^/mnt cannot be remounted; unmount it"):
        translate("none", "/mnt", ["remount", "rw"], sloppy=sloppy)


def test_the_command_accepts_the_translation() -> None:
    options = ["cache_size=1G", "read_ahead=0", "workers=2", "timeout=30", "version=6f1c", "version=77aa", "name=a"]
    words = translate("none", "/mnt", [*options, "tag=b", "writable=/var/tmp/w", "discard", "allow_other", "nodev"])
    given = mount_command.make_context("mount", words[1:]).params
    assert (given["cache_size"], given["read_ahead"], given["workers"], given["timeout"]) == (1 << 30, 0, 2, 30)
    assert (given["versions"], given["names"], given["tags"]) == (("6f1c", "77aa"), ("a",), ("b",))
    assert (given["writable"], given["discard"]) == ("/var/tmp/w", True)
    assert (given["mountpoint"], given["options"]) == ("/mnt", ("allow_other,nodev",))


def test_every_option_of_the_command_can_be_given() -> None:
    elsewhere = {"foreground", "options", "ready_fd", "mountpoint", "help"}  # not for mount(8), or given in another way
    flags = {
        option.opts[-1]: option.is_flag
        for option in mount_command.params
        if isinstance(option, click.Option) and option.name not in elsewhere
    }
    for flag, alone in flags.items():
        name = flag.removeprefix("--").replace("-", "_")
        word = flag if alone else f"{flag}=1"
        assert translate("none", "/mnt", [name if alone else f"{name}=1"]) == ["mount", word, "--", "/mnt"]


# Program


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run the helper in this process; return status, stdout and stderr."""
    status = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_fake_mount_prints_the_command_and_does_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ("/nonexistent/my.cfg", tmp_path / "nowhere", "-fnv", "-o", "rw,workers=2,noauto", "-t", "fuse.backyfs")
    command = f"backyfs --verbose --configfile=/nonexistent/my.cfg mount --workers=2 -- {tmp_path}/nowhere\n"
    assert call(capsys, *given) == (0, command, "")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none"], "Missing argument 'DIR'."),
        (["none", "/mnt", "--bla"], "No such option"),
        (["none", "/mnt", "-o", "rw,bla"], "mount option 'bla' is not known; allowed: allow_other, "),
        (["none", "/mnt", "-o", "remount,ro"], "/mnt cannot be remounted; unmount it, "),
        (["none", "/mnt", "-o", "cache_size=much"], "Invalid value for '--cache-size': 'much' is not a size; "),
        (["none", "/mnt", "-o", "workers=0"], "Invalid value for '--workers': "),
        (["none", "/mnt", "-N", "/proc/1/ns/mnt"], "mounting in another namespace is not supported; "),
    ],
)
def test_a_usage_error_ends_with_status_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (USAGE, "")
    assert err.startswith(f"mount.backyfs: {reason}")


def test_sloppy_is_supported(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "none", "/mnt", "-s", "-f", "-o", "rw,bla") == (0, "", "")


def test_a_failed_mount_ends_with_status_32(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = call(capfd, tmp_path / "no.cfg", tmp_path)
    assert (status, out) == (FAILED, "")
    assert err.startswith("backyfs: error: ")
    assert err.count("\n") == 1


def test_a_directory_with_the_name_of_the_program_is_not_a_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # mount(8) turns `backyfs` into a path if the directory has such an entry.
    (tmp_path / "backyfs").mkdir()
    assert call(capsys, tmp_path / "backyfs", "/mnt", "-f", "-v") == (0, "backyfs --verbose mount -- /mnt\n", "")


# Real mounts


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Make a directory with a repository of one version, and its image."""
    reason = why_not_mount()
    if reason is not None:
        pytest.skip(reason)
    with opened(make_repository(tmp_path / "repository")) as repository:
        back_up(repository, random_image(tmp_path / "image", 3 * BLOCK + 5))
    return tmp_path


# A separate mount namespace has the /sbin and /etc/fstab that the test needs. Its mounts, and the processes of its pid
# namespace, end with the shell. $1 is the directory of the test, $2 the script, $3 the path of the helper.
IN_NAMESPACE = """
mount --make-rprivate /
mount -t tmpfs none /mnt
cp -a "$1/repository" "$1/image" "$1/fstab" /mnt
sed -i "s,$1,/mnt,g" /mnt/repository/backyfs.cfg
mkdir /mnt/sbin /mnt/target /mnt/other
ln -s "$3/mount.backyfs" /mnt/sbin/mount.backyfs
ln -s "$3/mount.backyfs" /mnt/sbin/mount.fuse.backyfs
mount --bind /mnt/sbin "$(readlink -f /sbin)"
mount --bind /mnt/fstab /etc/fstab
cd /mnt
exec env -i PATH=/usr/bin:/bin sh -euc "$2"
"""


def in_namespace(home: Path, fstab: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in /mnt, which has a repository, with the helper in /sbin and `fstab` as /etc/fstab."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount without an entry in /etc/fstab")
    for program in ("setpriv", "unshare", "findmnt"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if not os.path.exists("/etc/fstab"):
        pytest.skip("there is no /etc/fstab to mount another one over")
    (home / "fstab").write_text(fstab)
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    arguments = [IN_NAMESPACE, "sh", str(home), script, str(Path(sys.executable).parent)]
    return subprocess.run(
        ["setpriv", "--pdeathsig=KILL", "--", *namespaces, "sh", "-euc", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def test_the_helper_works_through_a_link_and_without_an_environment(home: Path) -> None:
    done = in_namespace(
        home,
        "",
        """
        options=rw,nodev,cache_size=64M,read_ahead=8M,workers=2,nofail
        env -i /sbin/mount.fuse.backyfs /mnt/repository/backyfs.cfg /mnt/target -o $options -t fuse.backyfs
        cmp target/by_name/disk/latest/data image
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("kind", ["backyfs", "fuse.backyfs"])
def test_mount_calls_the_helper(home: Path, kind: str) -> None:
    options = "workers=2,cache_size=64M,read_ahead=0,nodev,noauto,x-mine"
    done = in_namespace(
        home,
        "",
        f"""
        mount -t {kind} /mnt/repository/backyfs.cfg /mnt/target -o {options}
        cmp target/by_name/disk/latest/data image
        findmnt -n -o FSTYPE,SOURCE target
        umount target
        ls target
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fuse.backyfs", "backyfs"]


def test_fstab_mounts_and_does_not_mount_again(home: Path) -> None:
    done = in_namespace(
        home,
        "backyfs /mnt/target fuse.backyfs config=/mnt/repository/backyfs.cfg,nofail,_netdev,noatime 0 0\n",
        """
        mount -a
        mount -a
        cmp target/by_name/disk/latest/data image
        grep -c ' /mnt/target ' /proc/self/mountinfo
        umount /mnt/target
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"


def test_mount_prints_why_the_helper_failed(home: Path) -> None:
    done = in_namespace(
        home,
        "",
        """
        for options in bla cache_size=much remount; do
            status=0; mount -t backyfs /mnt/repository/backyfs.cfg /mnt/target -o $options || status=$?
            echo $status
        done
        status=0; mount -t backyfs /mnt/nonexistent.cfg /mnt/target || status=$?
        echo $status
        """,
    )
    assert done.stdout.split() == [str(USAGE)] * 3 + [str(FAILED)]
    unknown, no_size, remount, missing = done.stderr.splitlines()
    assert unknown.startswith("mount.backyfs: mount option 'bla' is not known; allowed: ")
    assert no_size.startswith("mount.backyfs: Invalid value for '--cache-size': 'much' is not a size")
    assert remount.startswith("mount.backyfs: /mnt/target cannot be remounted")
    assert missing.startswith("backyfs: error: /mnt/nonexistent.cfg")
