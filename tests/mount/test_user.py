"""A mount by a user without privileges, through fusermount3. Needs root, to become such a user."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.images import random_image
from tests.support.program import BACKYFS, PATIENCE_S
from tests.support.repositories import BLOCK, back_up, make_repository, opened

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534

# In a separate mount namespace, users may open /dev/fuse, as on most hosts. Its mounts, and the processes of its
# pid namespace, end with the shell. The user is nobody, but may read everything (dac_read_search), because only
# root may have access to the interpreter and the directories of pytest.
AS_NOBODY = """
mount -t tmpfs none /mnt
mknod -m 666 /mnt/fuse c 10 229
mount --bind /mnt/fuse /dev/fuse
mount --bind "$1" /mnt
cd /mnt
exec setpriv --reuid 65534 --regid 65534 --clear-groups \
    --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search sh -euc "$2" sh "$3" "$4"
"""


@pytest.fixture
def home(fuse: None, tmp_path: Path) -> Path:
    """Make a directory of a user with a repository, the image in it, and a mountpoint."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for program in ("fusermount3", "unshare", "setpriv"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    (tmp_path / "mount").mkdir()
    with opened(make_repository(tmp_path / "repository")) as repository:
        back_up(repository, random_image(tmp_path / "image", 3 * BLOCK + 5))
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    return tmp_path


def as_nobody(home: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with $1 the program and $2 a configuration, in `home`."""
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    arguments = [AS_NOBODY, "sh", str(home), script, BACKYFS, str(home / "repository" / "backyfs.cfg")]
    return subprocess.run(
        [*namespaces, "sh", "-euc", *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )


def test_a_user_can_mount_and_unmount_their_repository(home: Path) -> None:
    done = as_nobody(
        home,
        """
        "$1" -c "$2" mount mount
        cmp mount/by_name/disk/latest/data image
        stat -c %u:%g:%A mount/by_name/disk/latest/data mount/by_name/disk/latest/name
        "$1" umount mount
        ls mount
        """,
    )
    assert done.stderr == "backyfs: /mnt/mount is mounted\n"
    assert done.stdout == "65534:65534:-r--r-----\n" * 2
    assert done.returncode == 0


def test_a_user_cannot_unmount_a_mount_in_use(home: Path) -> None:
    done = as_nobody(
        home,
        """
        "$1" -c "$2" mount mount
        exec 3< mount/by_name/disk/latest/data
        status=0; "$1" umount mount || status=$?
        exec 3<&-
        "$1" umount mount
        echo "$status"
        """,
    )
    assert done.stdout == "10\n"
    assert "is still mounted: " in done.stderr
    assert "busy" in done.stderr


def test_a_user_may_ask_for_auto_unmount(home: Path) -> None:
    done = as_nobody(
        home,
        """
        "$1" -c "$2" mount -o auto_unmount mount
        cmp mount/by_name/disk/latest/data image
        "$1" umount mount
        ls mount
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "backyfs: /mnt/mount is mounted\n")


def test_a_user_cannot_give_others_access_unless_root_allows_it(home: Path) -> None:
    with open("/etc/fuse.conf", encoding="utf-8") as file:
        if "user_allow_other\n" in file.readlines():
            pytest.skip("this host allows it")
    done = as_nobody(home, '"$1" -c "$2" mount -o allow_other mount')
    assert done.returncode == 10
    assert done.stderr == (
        "backyfs: error: allow_other is reserved for root on this host; as root, add the line `user_allow_other` to "
        "/etc/fuse.conf\n"
    )


def test_a_directory_that_does_not_belong_to_the_user_is_refused(home: Path) -> None:
    os.chown(home / "mount", 0, 0)
    done = as_nobody(home, '"$1" -c "$2" mount mount')
    assert done.returncode == 10
    assert done.stderr.splitlines()[-1].startswith("backyfs: error: /mnt/mount cannot be mounted: ")
