"""Find configuration files, and resolve relative paths in them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backyfs.errors import ConfigError
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_VARIABLE = "BACKYFS_CONFIG"


def find_config(explicit: str | None, environ: Mapping[str, str], *, etc: str = "/etc") -> tuple[str, ...]:
    """Return the files that make up the configuration, as absolute paths, in the order to read them.

    A file named by `explicit`, or else by the environment variable BACKYFS_CONFIG, is returned alone, even if it does
    not exist. Otherwise the first existing backyfs.cfg is used, and if there is none, all existing files of backy2.

    Raises:
        ConfigError: no file is named and none was found.
    """
    named = explicit if explicit is not None else environ.get(CONFIG_VARIABLE) or None
    if named is not None:
        return (_from_current_directory(named),)
    # Unlike in backy2, the current directory is not searched: a configuration can contain commands, and the owner of
    # the directory that root happens to be in must not choose them.
    own = [*_in_home(environ), os.path.join(etc, "backyfs", "backyfs.cfg")]
    for file in own:
        if os.path.lexists(file):  # also a dangling link, which must be an error and not select other files
            return (file,)
    adopted = [os.path.join(etc, "backy.cfg"), os.path.join(etc, "backy", "backy.cfg")]
    directory = os.path.join(etc, "backy", "conf.d")
    found = (*filter(os.path.lexists, adopted), *_regular_files(directory))
    if not found:
        looked_at = ", ".join([*own, *adopted, os.path.join(directory, "*")])
        raise ConfigError(f"there is no configuration (looked for {looked_at})", remedy=Advice.MAKE_REPOSITORY())
    return found


def path_below(directory: str, path: str) -> str:
    """Return `path` unchanged if it is absolute, otherwise relative to `directory`.

    `..` is kept: after a symbolic link, it leads elsewhere than the text suggests.
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
        raise ConfigError("the current directory is gone", file=file, remedy="give an absolute path") from error


def _in_home(environ: Mapping[str, str]) -> list[str]:
    config_home = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(config_home):  # the XDG specification says to ignore relative paths
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
    except OSError as error:  # using only the other files could be wrong
        raise ConfigError(f"cannot be read: {error.strerror}", file=directory) from error
    # Hidden files are skipped, as by backy2's pattern conf.d/*.
    files = (os.path.join(directory, name) for name in names if not name.startswith("."))
    return [file for file in files if os.path.isfile(file)]
