"""Implement `mount.backyfs`, which mount(8), /etc/fstab and systemd mount units call for the type backyfs.

It translates the arguments of mount(8) into those of `backyfs mount` and runs that. It knows nothing about
repositories. Its arguments are SOURCE DIR [-sfnv] [-N namespace] [-o options] [-t type], see EXTERNAL HELPERS in
mount(8).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from backyfs.cli import process
from backyfs.cli.commands.mount import command as mount_command
from backyfs.cli.main import run as run_program
from backyfs.cli.remedies import render_error
from backyfs.cli.stdout import printing
from backyfs.cli.text import printable
from backyfs.errors import InterruptedByUser, UsageError
from backyfs.text import shell_word, shell_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Exit statuses of mount(8).
_USAGE = 1
_INTERRUPTED = 8
_FAILED = 32

_USUAL_PLACES = frozenset({"backyfs", "none", "default"})  # values of SOURCE that are not a file
_CONFIG = "config"
# option of mount(8) -> option of `backyfs mount` with the same value
_VALUES = {
    "cache_size": "--cache-size",
    "read_ahead": "--read-ahead",
    "workers": "--workers",
    "timeout": "--timeout",
    "version": "--version",
    "name": "--name",
    "tag": "--tag",
    "writable": "--writable",
}
_FLAGS = {"discard": "--discard"}
_PASSED_ON = frozenset(
    {"allow_other", "allow_root", "auto_unmount", "default_permissions", "noatime", "nodev", "noexec", "nosuid"}
)
# Options that mount(8), /etc/fstab and systemd add, or that any file system accepts. They do not affect our mounts.
_DROPPED = frozenset(
    {
        "rw", "ro", "defaults", "auto", "noauto", "fail", "nofail", "_netdev",
        "user", "users", "nouser", "owner", "group",
        "dev", "suid", "exec",
        "async", "sync", "dirsync", "silent", "loud",
        "atime", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime",
        "diratime", "nodiratime", "iversion", "noiversion", "mand", "nomand",
    }
)  # fmt: skip
_DROPPED_WITH_VALUE = frozenset({"comment", "user", "uhelper", "helper"})
_DROPPED_PREFIXES = ("x-", "X-")


def translate(source: str, mountpoint: str, options: Iterable[str], *, sloppy: bool = False) -> list[str]:
    """Return the arguments of `backyfs` that mount SOURCE on a directory.

    `options` are single options, which mount(8) separates by commas; `sloppy` ignores unknown ones.

    Raises:
        UsageError: an option is unknown or unsupported, lacks its value, or does not take one.
    """
    config = None if source in _USUAL_PLACES else source
    tuning: list[str] = []
    passed_on: list[str] = []
    for option in options:
        name, equals, value = option.partition("=")
        if name == _CONFIG and value:
            if config not in (None, value):
                raise UsageError(f"{source} and config={value} are two configurations", remedy="give one of them")
            config = value
        elif name in _VALUES and value:
            tuning.append(f"{_VALUES[name]}={value}")
        elif name in _FLAGS and not equals:
            tuning.append(_FLAGS[name])
        elif option in _PASSED_ON:
            passed_on.append(option)
        elif option == "remount":
            raise UsageError(
                "cannot be remounted", subject=mountpoint, remedy="unmount it, and mount it with the new options"
            )
        elif not _is_dropped(option) and not sloppy:
            raise _option_error(option)
    global_options = [] if config is None else [f"--configfile={config}"]
    fuse_options = [f"-o{','.join(passed_on)}"] if passed_on else []
    return [*global_options, "mount", *tuning, *fuse_options, "--", mountpoint]


def _is_dropped(option: str) -> bool:
    name, equals, _ = option.partition("=")
    if option.startswith(_DROPPED_PREFIXES):
        return True
    return name in (_DROPPED_WITH_VALUE if equals else _DROPPED)


def _option_error(option: str) -> UsageError:
    name = option.partition("=")[0]
    if name == _CONFIG or name in _VALUES:
        return UsageError(f"needs a value, as in {name}=VALUE", subject=f"mount option {name!r}")
    if name in _FLAGS or name in _PASSED_ON:
        return UsageError("takes no value", subject=f"mount option {name!r}")
    allowed = sorted([*(f"{name}=" for name in (_CONFIG, *_VALUES)), *_FLAGS, *_PASSED_ON])
    return UsageError("is not known", subject=f"mount option {option!r}", remedy=f"allowed: {', '.join(allowed)}")


@click.command("mount.backyfs", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source")
@click.argument("mountpoint", metavar="DIR")
@click.option("-o", "options", multiple=True, metavar="OPTION[,OPTION]", help="Mount options.")
@click.option("-s", "sloppy", is_flag=True, help="Ignore unknown mount options.")
@click.option("-f", "fake", is_flag=True, help="Only check the options; do not mount.")
@click.option("-n", "without_mtab", is_flag=True, help="Has no effect: there is no mtab.")
@click.option("-v", "verbose", is_flag=True, help="Show the command, and print more detail.")
@click.option("-N", "namespace", metavar="NAMESPACE", help="Not supported.")
@click.option("-t", "file_system_type", metavar="TYPE", help="Has no effect.")
def _command(
    source: str,
    mountpoint: str,
    options: tuple[str, ...],
    namespace: str | None,
    *,
    sloppy: bool,
    fake: bool,
    verbose: bool,
    **_without_effect: object,
) -> int:
    """Mount a repository on DIR; mount(8) calls this.

    SOURCE is the configuration file, or `backyfs`, `none` or `default` for the usual places.
    """
    if namespace is not None:
        raise UsageError(
            "mounting in another namespace is not supported",
            remedy=f"run `nsenter --mount={shell_word(namespace)} mount` with the other arguments",
        )
    single = [one for given in options for one in given.split(",") if one]
    words = translate(_as_given(source), mountpoint, single, sloppy=sloppy)
    # Checked here for the exit status: `run_program` returns the same for a wrong option and a wrong configuration.
    mount_command.make_context("mount", words[words.index("mount") + 1 :])
    if verbose:
        words.insert(0, "--verbose")
        click.echo(shell_words("backyfs", *words))
    return 0 if fake else _status_of_mount(run_program(words))


def _as_given(source: str) -> str:
    """Return the source as the user gave it: mount(8) turns `backyfs` into a path if a directory has that name."""
    name = os.path.basename(source)
    return name if name in _USUAL_PLACES and os.path.isdir(source) else source


def _status_of_mount(status: int) -> int:
    if status == InterruptedByUser.exit_status:
        return _INTERRUPTED
    return _FAILED if status else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the helper and exit with a status of mount(8)."""
    process.begin()
    process.end(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the helper and return a status of mount(8)."""
    try:
        with printing(), _command.make_context("mount.backyfs", list(arguments)) as context:
            status: int = _command.invoke(context)
    except click.exceptions.Exit as ended:  # --help
        return ended.exit_code
    except click.ClickException as error:
        reason = error.format_message()
    except UsageError as error:
        reason = render_error(error)
    else:
        return status
    click.echo(f"mount.backyfs: {printable(reason)}", err=True)
    return _USAGE
