"""Check whether this host is ready for FUSE."""

from __future__ import annotations

import os
import shutil

FUSE_CONF = "/etc/fuse.conf"


def missing_for_fuse() -> list[str]:
    """Return what mounts need and this host lacks: one sentence each, with the remedy."""
    missing = []
    if not os.path.exists("/dev/fuse"):
        missing.append("/dev/fuse does not exist: no mount here; load the module (modprobe fuse)")
    elif not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing.append("/dev/fuse cannot be opened by this user: no mount; check its owner and mode")
    if shutil.which("fusermount3") is None:
        missing.append("fusermount3 is not installed: only root can mount; install the package fuse3")
    if os.geteuid() != 0 and not lets_others_in():
        missing.append(
            f"other users cannot see the mounts of this user; as root, add the line user_allow_other to {FUSE_CONF}"
        )
    return missing


def lets_others_in() -> bool:
    """Return whether users other than root may let others into their mounts (allow_other)."""
    try:
        with open(FUSE_CONF, encoding="utf-8", errors="replace") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False
