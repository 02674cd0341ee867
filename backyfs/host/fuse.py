"""What this host has for FUSE."""

from __future__ import annotations

import os
import shutil

_FUSE_CONF = "/etc/fuse.conf"


def missing_for_fuse() -> list[str]:
    """Return what is missing for mounts, a sentence each, with the remedy."""
    missing = []
    if not os.path.exists("/dev/fuse"):
        missing.append("/dev/fuse does not exist: no mount here; load the module (modprobe fuse)")
    elif not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing.append("/dev/fuse cannot be opened by this user: no mount; check its owner and mode")
    if shutil.which("fusermount3") is None:
        missing.append("fusermount3 is not installed: only root can mount; install the package fuse3")
    if os.geteuid() != 0 and not _user_allow_other():
        missing.append(f"nobody else sees what this user mounts; as root, write user_allow_other into {_FUSE_CONF}")
    return missing


def _user_allow_other() -> bool:
    try:
        with open(_FUSE_CONF, encoding="utf-8", errors="replace") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False
