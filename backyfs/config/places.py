"""Places of files: where configurations are looked for, and where a relative path begins."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backyfs.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_VARIABLE = "BACKYFS_CONFIG"


def find_config(explicit: str | None, environ: Mapping[str, str], *, etc: str = "/etc") -> tuple[str, ...]:
    """Return the files that make up the configuration, as absolute paths, in the order to read them.

    A file that is named, by `explicit` or else by the environment variable BACKYFS_CONFIG, is all that
    counts, and is returned whether it exists or not. Otherwise it is the first backyfs.cfg that exists,
    and where there is none, all that there is of backy2's files.

    Raises:
        ConfigError: no file is named and none was found.
    """
    named = explicit if explicit is not None else environ.get(CONFIG_VARIABLE) or None
    if named is not None:
        return (_from_current_directory(named),)
    # The current directory is not searched, as backy2 did: a configuration can name a command to run,
    # and whoever owns the directory that root happens to stand in must not choose that command.
    own = [*_in_home(environ), os.path.join(etc, "backyfs", "backyfs.cfg")]
    for file in own:
        if os.path.lexists(file):  # a dangling link too: it is to be an error, not the way to other files
            return (file,)
    adopted = [os.path.join(etc, "backy.cfg"), os.path.join(etc, "backy", "backy.cfg")]
    directory = os.path.join(etc, "backy", "conf.d")
    found = (*filter(os.path.lexists, adopted), *_regular_files(directory))
    if not found:
        looked_at = ", ".join([*own, *adopted, os.path.join(directory, "*")])
        raise ConfigError(
            f"there is no configuration (looked for {looked_at}); run `backyfs init` or name a file with -c"
        )
    return found


def path_below(directory: str, path: str) -> str:
    """Return `path` as it is if it is absolute, otherwise as seen from `directory`.

    `..` stays: behind a symbolic link it leads elsewhere than the text suggests.
    """
    if os.path.isabs(path):
        return path
    return os.path.join(directory, *(part for part in path.split("/") if part not in ("", ".")))


def _from_current_directory(file: str) -> str:
    if os.path.isabs(file):
        return file
    try:
        return path_below(os.getcwd(), file)
    except FileNotFoundError as error:
        raise ConfigError("the current directory is gone; give an absolute path", file=file) from error


def _in_home(environ: Mapping[str, str]) -> list[str]:
    config_home = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(config_home):  # the XDG specification has relative ones ignored
        home = environ.get("HOME", "")
        if not os.path.isabs(home):
            return []
        config_home = os.path.join(home, ".config")
    return [os.path.join(config_home, "backyfs", "backyfs.cfg")]


def _regular_files(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:  # the rest of a configuration alone could be a wrong one
        raise ConfigError(f"cannot be read: {error.strerror}", file=directory) from error
    # Hidden files are left out, as by the pattern conf.d/* of backy2.
    files = (os.path.join(directory, name) for name in names if not name.startswith("."))
    return [file for file in files if os.path.isfile(file)]
