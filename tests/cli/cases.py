"""Every command with working arguments, and a place to run it in."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from tests.support.repositories import back_up, make_repository, opened

NAME = "disk"
_SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Case:
    """A command with arguments that work. `{}` stands for a version, `{dir}` for a directory to write to."""

    words: str
    schema: str | None = None     # if it is not the command's name; "" prints no JSON
    uses_storage: bool = True     # it opens the repository, which needs storage and key
    writes: bool = True           # it changes the database
    needs_root: bool = False
    is_shown: bool = False        # it is run for its output
    config: str = "repository/backyfs.cfg"
    after: tuple[str, ...] = ()   # commands that must have run before it

    @property
    def name(self) -> str:
        return self.words.split()[0]

    @property
    def mounts(self) -> bool:
        return self.name in {"mount", "attach"}


CASES = (
    Case("init -c {dir}/new.cfg --data {dir}/new --db {dir}/new.sqlite", uses_storage=False, writes=False),
    Case("backup {dir}/image disk"),
    Case("backup --tag daily --due {dir}/image disk"),
    Case("restore {} {dir}/restored", writes=False),
    Case("restore --force --offset 1K --length 1K {} {dir}/restored", writes=False),
    Case("ls", writes=False, is_shown=True),
    Case("mount {dir}/mount", schema="", writes=False),
    Case("umount {dir}/mount", schema="", uses_storage=False, writes=False, after=("mount {dir}/mount",)),
    Case("attach {} {dir}/attached", writes=False, needs_root=True),
    Case("detach {dir}/attached", uses_storage=False, writes=False, needs_root=True),
    Case("protect {}"),
    Case("unprotect {}", after=("protect {}",)),
    Case("add-tag {} x"),
    Case("remove-tag {} x"),
    Case("expire {} 2040-01-01"),
    Case("due other", writes=False, is_shown=True),
    Case("sla", writes=False, is_shown=True),
    Case("forget", writes=False),  # nothing to remove
    Case("forget --schedulers daily", writes=False),
    Case("cleanup"),
    Case("cleanup --dry-run", schema="cleanup-dry-run", writes=False, is_shown=True),
    Case("cleanup --full", schema="cleanup-full"),
    Case("cleanup --full --dry-run", schema="cleanup-full-dry-run", is_shown=True),
    Case("scrub {}"),
    Case("repair {}"),
    Case("du", writes=False, is_shown=True),
    Case("stats", writes=False, is_shown=True),
    Case("diff-meta {} {}", writes=False, is_shown=True),
    Case("jobs", writes=False, is_shown=True),
    Case("jobs --ended", schema="jobs-ended", writes=False, is_shown=True),
    Case("export {} {dir}/exported", schema="", writes=False),
    Case("rm --force {}"),
    Case("import {dir}/exported", after=("export {} {dir}/exported", "rm --force {}")),
    Case("recover {dir}/repository/data --to {dir}/recovered.sqlite --key-file {dir}/repository/backyfs.key",
         uses_storage=False, writes=False),
    Case("catalog push", schema="catalog-push", writes=False),  # the backup has written the whole catalog
    Case("catalog check", schema="catalog-check", writes=False, after=("catalog push",)),
    Case("initdb", uses_storage=False, writes=False, config="other.cfg"),
    Case("check-config", uses_storage=False, writes=False),
    Case("upgrade", writes=False),
    Case("upgrade --check", schema="upgrade-check", writes=False),
    Case("key list", schema="key-list", uses_storage=False, writes=False, is_shown=True),
    Case("key check", schema="key-check", uses_storage=False, writes=False),
    Case("key add second --key-file {dir}/second.key", schema="key-add", uses_storage=False),
    Case("key change second --key-file {dir}/third.key", schema="key-change", uses_storage=False,
         after=("key add second --key-file {dir}/second.key",)),
    Case("key remove second", schema="key-remove", uses_storage=False,
         after=("key add second --key-file {dir}/second.key",)),
    Case("key export {dir}/recovery", schema="key-export", uses_storage=False, writes=False),
    Case("key print", schema="key-print", uses_storage=False, writes=False, is_shown=True),
    Case("rekey --old-key-file {dir}/second.key", uses_storage=False, writes=False),  # the slot already has this key
    Case("migrate-encryption --all"),
    Case("migrate-encryption {} --to 1 --dry-run", schema="migrate-encryption-dry-run", writes=False, is_shown=True),
    Case("db copy sqlite:///{dir}/repository/backyfs.sqlite sqlite:///{dir}/copy.sqlite", schema="db-copy",
         uses_storage=False, writes=False),
    Case("completion bash", schema="", uses_storage=False, writes=False, is_shown=True),
)  # fmt: skip


def make_place(directory, *, encrypted=True):
    """Make a repository with a version, its image with a file system, and everything else the commands need."""
    config = make_repository(directory / "repository", encrypted=encrypted)
    text = config.read_text(errors="surrogateescape") + "\n[daily]\ninterval: 1d\nkeep: 2\nsla: 3h\n"
    config.write_text(text, errors="surrogateescape")
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, env=os.environ | {"PATH": _SBIN})
    (directory / "mount").mkdir()
    for name, digits in (("second.key", "5e" * 32), ("third.key", "3d" * 32)):
        (directory / name).write_text(digits)
        (directory / name).chmod(0o600)
    other = text.replace(str(directory / "repository"), str(directory / "other"))
    (directory / "other.cfg").write_text(other, errors="surrogateescape")
    (directory / "other").mkdir()
    if encrypted:
        (directory / "other" / "backyfs.key").write_bytes((directory / "repository" / "backyfs.key").read_bytes())
    with opened(config) as repository:
        back_up(repository, image, NAME, tags=("daily",))


def copy_place(made, directory):
    """Copy a place that `make_place` made. Neither path may have characters that a configuration quotes."""
    shutil.copytree(made, directory, dirs_exist_ok=True)
    for name in ("repository/backyfs.cfg", "other.cfg"):
        config = directory / name
        config.write_text(config.read_text().replace(str(made), str(directory)))


def filled_in(words, place, version=f"{NAME}@latest"):
    """Return the words of a case for a place."""
    return [word.replace("{dir}", str(place)).replace("{}", version) for word in words.split()]


def words_of(case, place, version=f"{NAME}@latest"):
    """Return the words of a case."""
    return filled_in(case.words, place, version)
