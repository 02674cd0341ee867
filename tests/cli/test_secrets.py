"""Only the owner can access created files, whatever the umask; and keys appear only where they belong."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backyfs.keys.slots import Secret
from backyfs.repository import open_repository
from tests.support.images import random_image
from tests.support.program import BACKYFS, mounting, process_of
from tests.support.repositories import BLOCK, make_repository, opened
from tests.support.stored import flip_a_byte

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "5ec2e7" * 10 + "beef"
OTHER_KEY = "c0ffee" * 10 + "cafe"
SECRETS = [key_text for key in (KEY, OTHER_KEY) for key_text in (key, key.upper(), str(bytes.fromhex(key))[2:-1])]


class Home:
    """A directory with a repository whose key is known, and everything that commands printed about it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "repository" / "backyfs.cfg"
        self.printed = ""

    def run(self, *words: object, statuses: tuple[int, ...] = (0,), text: str = "") -> None:
        """Run a command in a separate process, with a umask that gives others all permissions."""
        done = subprocess.run(
            [BACKYFS, "-c", str(self.config), "--debug", *map(str, words)],
            input=text, capture_output=True, text=True, check=False, umask=0, cwd=self.directory,
        )  # fmt: skip
        self.printed += done.stdout + done.stderr
        assert done.returncode in statuses, f"{words}: {done.returncode}\n{done.stderr}"

    def files(self) -> Iterator[Path]:
        """Yield all files and directories."""
        yield from self.directory.rglob("*")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    directory = tmp_path / "home"
    directory.mkdir(mode=0o700)
    random_image(directory / "image", 5 * BLOCK).chmod(0o600)
    return Home(directory)


def use_all(home: Home) -> None:
    """Run every command that creates files, and provoke errors with keys."""
    image, place = home.directory / "image", home.directory
    home.run("init", "--data", place / "repository" / "data", "--db", place / "repository" / "backyfs.sqlite")
    above = place / "some" / "where"  # parent directories are missing, too
    words = ("init", "--data", above / "of" / "data", "--db", above / "a" / "b.sqlite")
    home.run("-c", above / "config" / "backyfs.cfg", *words)
    key_file = place / "repository" / "backyfs.key"
    old_file = place / "old.key"
    key_file.rename(old_file)
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    home.run("rekey", "--old-key-file", old_file)
    home.run("backup", image, "disk")
    home.run("restore", "disk@latest", place / "restored")
    home.run("export", "--all", place / "export")
    home.run("key", "export", place / "recovery")
    home.run("key", "list")
    home.run("key", "check")
    home.run("db", "copy", f"sqlite:///{place}/repository/backyfs.sqlite", f"sqlite:///{place}/copy.sqlite")
    home.run("recover", "--to", place / "recovered.sqlite")
    home.run("migrate-encryption", "--all", "--reseal")
    home.run("cleanup", "--full", "--dangerous-force")
    home.run("check-config", statuses=(0, 1))
    home.run("jobs")
    # With the wrong key, an invalid one, and one given on the command line.
    key_file.write_text(OTHER_KEY)
    home.run("ls", statuses=(0, 3))
    home.run("restore", "--force", "disk@latest", place / "restored", statuses=(3,))
    home.run("rekey", OTHER_KEY, statuses=(3,))
    key_file.write_text(f"{OTHER_KEY}0")
    home.run("restore", "--force", "disk@latest", place / "restored", statuses=(3, 5, 1, 2))
    key_file.write_text(KEY)
    # A mistake in a configuration that contains the key itself.
    text = home.config.read_text()
    home.config.write_text(text.replace(f"encryption_key_file: {key_file}", f"encryption_key: {KEY}xx"))
    home.run("ls", statuses=(1, 2, 3, 5))
    home.config.write_text(text.replace(f"encryption_key_file: {key_file}", f"encryption_key: {KEY}"))
    for file in (place / "repository" / "data").glob("??/??/*.blob"):
        flip_a_byte(file)
    home.run("scrub", "--all", statuses=(20,))
    home.config.write_text(text)


def test_files_are_private_and_keys_are_never_printed(home: Home) -> None:
    use_all(home)
    modes = {file: stat.S_IMODE(file.lstat().st_mode) for file in home.files()}
    assert {str(file): oct(mode) for file, mode in modes.items() if mode & 0o077} == {}
    assert len(modes) > 20
    keepers = {home.directory / "repository" / "backyfs.key", home.directory / "old.key"}
    contents = {file: file.read_bytes() for file in modes if file.is_file() and file not in keepers}
    for secret in SECRETS:
        assert secret not in home.printed
        assert [file for file, content in contents.items() if secret.encode() in content] == []
    for raw in (bytes.fromhex(KEY), bytes.fromhex(OTHER_KEY)):
        assert [file for file, content in contents.items() if raw in content] == []


def test_no_started_program_gets_a_key(home: Home) -> None:
    place = home.directory
    home.run("init", "--data", place / "repository" / "data", "--db", place / "repository" / "backyfs.sqlite")
    key_file, seen = place / "repository" / "backyfs.key", place / "seen"
    key = key_file.read_text().strip()
    look = f"{{ env; cat; cat /proc/$PPID/cmdline /proc/$PPID/environ; }} >> {seen}"
    text = home.config.read_text().replace(f"encryption_key_file: {key_file}", f"encryption_key: {key}")
    home.config.write_text(f"{text}\n[hooks]\nbefore_backup: {look}\nafter_backup: {look}\nbefore_mount: {look}\n")
    home.run("backup", place / "image", "disk")
    with mounting(home.config, place / "mount") as mount:
        of_mount = [Path("/proc", str(process_of(mount)), name).read_bytes() for name in ("cmdline", "environ")]
    environments = seen.read_bytes()
    for hook in (b"before_backup", b"after_backup", b"before_mount"):
        assert b"BACKYFS_HOOK=" + hook in environments
    assert all(of_mount)
    for secret in (key.encode(), key.upper().encode(), bytes.fromhex(key)):
        assert secret not in b"".join([environments, *of_mount])


def test_no_repr_shows_a_key(tmp_path: Path) -> None:
    config_file = make_repository(tmp_path / "repository")
    with opened(config_file) as repository:
        key = repository.blocks.keyring.repository_key
        assert key is not None
        text = repr(repository) + repr(repository.blocks) + repr(repository.blocks.keyring) + repr(Secret(key=key))
        assert repr(key)[2:-1] not in text
        assert key.hex() not in text
        with open_repository(repository.config) as other:
            assert (tmp_path / "repository" / "backyfs.key").read_text().strip() not in repr(other.config)


def test_a_crash_leaves_no_core_file(tmp_path: Path) -> None:
    config_file = make_repository(tmp_path / "repository")
    random_image(tmp_path / "image", BLOCK)
    limits = tmp_path / "limits"
    hooks = f"[hooks]\nbefore_backup: grep -h 'core file' /proc/self/limits > {limits}\n"
    config_file.write_text(config_file.read_text() + hooks)
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    subprocess.run(
        [BACKYFS, "-c", config_file, "-q", "backup", tmp_path / "image", "disk"],
        check=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)),
    )  # fmt: skip
    assert limits.read_text().split()[4] == "0"
    assert os.path.exists(limits)
