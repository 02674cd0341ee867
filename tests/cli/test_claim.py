"""Every command checks that the storage belongs to the repository before it writes, deletes or relies on anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from backyfs.cli.main import run
from backyfs.engine.space.fullcleanup import full_cleanup
from backyfs.errors import WrongStorageError
from backyfs.metadata.records.identity import load_storage_state
from backyfs.metadata.records.versions import list_versions
from backyfs.model import VersionStatus
from backyfs.repository.claim import claim, hand_over
from backyfs.storage.keys import ObjectName
from tests.support.images import run_tool
from tests.support.repositories import back_up, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backyfs.repository import Repository

# Commands that write to the storage, or that mark, delete, read or rely on stored blocks.
COMMANDS = (
    ("backup", "{image}", "disk"),
    ("restore", "disk@latest", "{out}"),
    ("scrub", "--all"),
    ("cleanup", "--dangerous-force"),
    ("cleanup", "--full", "--dangerous-force"),
    ("rm", "--force", "disk@latest"),
    ("migrate-encryption", "--all"),
    ("repair", "--from", "{image}"),
    ("catalog", "push"),
    ("catalog", "check"),
    ("check-config",),
)


class Disk:
    """A file system in an image file, mounted or not."""

    def __init__(self, directory: Path) -> None:
        self.place = directory / "disk"
        self.place.mkdir()
        self._image = directory / "disk.img"
        with self._image.open("wb") as file:
            file.truncate(64 << 20)
        run_tool("mkfs.ext4", "-q", str(self._image))

    def mount(self) -> None:
        run_tool("mount", "-o", "loop", str(self._image), str(self.place))

    def unmount(self) -> None:
        run_tool("umount", str(self.place))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    disk.mount()
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.place)], check=False, capture_output=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(5 * 4096))
    return path


@pytest.fixture
def calls(capsys: pytest.CaptureFixture[str], tmp_path: Path, image: Path) -> Callable[..., tuple[int, str]]:
    """Run a command on a configuration; return status and stderr."""

    def call(config: Path, *words: str) -> tuple[int, str]:
        filled = [word.format(image=image, out=tmp_path / "out") for word in words]
        status = run(["-c", str(config), *filled])
        printed = capsys.readouterr()
        return status, printed.err + (printed.out if words == ("check-config",) else "")

    return call


def on_disk(disk: Disk, directory: Path) -> Path:
    """Make a repository whose storage is the root of a disk."""
    directory.mkdir()
    config = directory / "backyfs.cfg"
    words = ["init", "--data", str(disk.place), "--db", str(directory / "backyfs.sqlite"), "--block-size", "4096"]
    assert run(["-c", str(config), *words]) == 0
    return config


def statuses(config: Path) -> list[VersionStatus]:
    with opened(config) as repository, repository.database.read() as connection:
        return [version.status for version in list_versions(connection)]


def test_nothing_is_done_below_an_unmounted_mount_point(
    disk: Disk, tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    config = on_disk(disk, tmp_path / "repository")
    assert calls(config, "backup", "{image}", "disk")[0] == 0
    disk.unmount()
    for words in COMMANDS:
        status, stderr = calls(config, *words)
        assert status == 6, words
        assert "no marker of this repository" in stderr, words
        assert "mount it" in stderr, words
        assert "[DataBackend] names a wrong place" in stderr, words
    assert list(disk.place.iterdir()) == []
    assert not (tmp_path / "out").exists()
    disk.mount()
    assert statuses(config) == [VersionStatus.VALID]
    image.write_bytes(os.urandom(5 * 4096))
    assert calls(config, "backup", "{image}", "disk")[0] == 0
    assert calls(config, "restore", "disk@latest", "{out}")[0] == 0
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_a_storage_belongs_to_one_repository(
    tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    first, second = make_repository(tmp_path / "first"), make_repository(tmp_path / "second")
    assert calls(first, "backup", "{image}", "disk")[0] == 0
    assert calls(second, "backup", "{image}", "disk")[0] == 0
    text = second.read_text()
    second.write_text(text.replace(f"{tmp_path}/second/data", f"{tmp_path}/first/data"))
    for words in COMMANDS:
        status, stderr = calls(second, *words)
        assert status == 6, words
        assert "the storage belongs to repository " in stderr, words
        assert "mount the right one" in stderr, words
        assert "`path` of [DataBackend]" in stderr, words
    assert calls(first, "scrub", "--all")[0] == 0
    assert calls(first, "restore", "disk@latest", "{out}")[0] == 0


def test_two_repositories_that_claim_a_new_storage_at_the_same_time_do_not_both_get_it(tmp_path: Path) -> None:
    first, second = make_repository(tmp_path / "first"), make_repository(tmp_path / "second")
    with opened(first) as one, opened(second) as two:
        storage = one.blocks.storage
        storage.delete([ObjectName("catalog/marker")])
        storage.delete([ObjectName("catalog/repository")])
        for repository in (one, two):
            forget_marker(repository)
        claim(two.database, storage, two.uid)
        with pytest.raises(WrongStorageError, match=f"belongs to repository {two.uid}"):
            claim(one.database, storage, one.uid)


def forget_marker(repository: Repository) -> None:
    """Make a repository look like one of a release without markers that has not written a catalog."""
    change(repository, "UPDATE repository SET storage_marked = NULL")
    change(repository, "DELETE FROM catalog_notes")


def change(repository: Repository, statement: str) -> None:
    from sqlalchemy import text

    with repository.database.write() as connection:
        connection.execute(text(statement))


def test_a_repository_of_the_previous_release_is_marked_by_the_next_command(
    tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    config = make_repository(tmp_path / "repository")
    marker = tmp_path / "repository/data/catalog/marker"
    with opened(config) as repository:
        back_up(repository, image)
        change(repository, "UPDATE repository SET storage_marked = NULL")
        marker.unlink()
    assert "it gets the marker of this repository with the next command" in calls(config, "check-config")[1]
    assert not marker.exists()
    assert calls(config, "ls")[0] == 0
    assert marker.exists()
    assert "it has the marker of this repository" in calls(config, "check-config")[1]


def test_an_unmarked_storage_with_the_catalog_of_another_repository_is_refused(
    tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    first, second = make_repository(tmp_path / "first"), make_repository(tmp_path / "second")
    assert calls(first, "backup", "{image}", "disk")[0] == 0
    marker = tmp_path / "first/data/catalog/marker"
    marker.unlink()
    with opened(second) as repository:
        forget_marker(repository)
    second.write_text(second.read_text().replace(f"{tmp_path}/second/data", f"{tmp_path}/first/data"))
    for words in COMMANDS:
        status, stderr = calls(second, *words)
        assert status == 6, words
        assert "the storage belongs to repository " in stderr, words
    assert not marker.exists()


def test_an_unmarked_storage_without_the_known_blobs_is_refused(
    tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    config = make_repository(tmp_path / "repository")
    with opened(config) as repository:
        back_up(repository, image)
        forget_marker(repository)
    shutil.rmtree(tmp_path / "repository/data")
    (tmp_path / "repository/data").mkdir()
    for words in COMMANDS:
        status, stderr = calls(config, *words)
        assert status == 6, words
        assert "it has none of 5 blocks that it should have" in stderr, words
    assert list((tmp_path / "repository/data").iterdir()) == []


def test_an_unmarked_storage_with_one_of_the_known_blobs_is_accepted(tmp_path: Path, image: Path) -> None:
    config = make_repository(tmp_path / "repository")
    with opened(config) as repository:
        back_up(repository, image)
        forget_marker(repository)
    shutil.rmtree(tmp_path / "repository/data/catalog")
    for blob in list((tmp_path / "repository/data").rglob("*.blob"))[1:]:
        blob.unlink()
    with opened(config) as repository, repository.database.read() as connection:
        assert load_storage_state(connection).marked


def test_an_old_database_is_not_upgraded_while_the_disk_is_not_mounted(
    tmp_path: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    shutil.copytree(os.path.join(os.path.dirname(__file__), "../fixtures/v1-sqlite"), tmp_path / "old")
    (tmp_path / "old/data").rename(tmp_path / "elsewhere")
    (tmp_path / "old/data").mkdir()
    before = (tmp_path / "old/backy.sqlite").read_bytes()
    config = tmp_path / "old/backy.cfg"
    directory = os.getcwd()
    os.chdir(tmp_path / "old")  # its paths are relative
    try:
        for words in (("ls",), ("backup", "{image}", "disk"), ("upgrade", "--check"), ("check-config",)):
            status, stderr = calls(config, *words)
            assert status == 6, words
            assert "blocks that it should have" in stderr, words
        assert (tmp_path / "old/backy.sqlite").read_bytes() == before
        (tmp_path / "old/data").rmdir()
        (tmp_path / "elsewhere").rename(tmp_path / "old/data")
        assert calls(config, "ls")[0] == 0
    finally:
        os.chdir(directory)
    assert (tmp_path / "old/data/catalog/marker").exists()


def test_a_storage_that_lost_its_marker_gets_it_back_on_demand(
    tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    config = make_repository(tmp_path / "repository")
    assert calls(config, "backup", "{image}", "disk")[0] == 0
    shutil.rmtree(tmp_path / "repository/data/catalog")
    status, stderr = calls(config, "ls")
    assert status == 6
    assert "`backyfs catalog push --all`" in stderr
    assert calls(config, "catalog", "push", "--all")[0] == 0
    assert calls(config, "catalog", "check")[0] == 0
    assert calls(config, "restore", "disk@latest", "{out}")[0] == 0


def test_the_storage_of_another_repository_cannot_be_claimed_on_demand(
    tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    config = make_repository(tmp_path / "repository")
    marker = tmp_path / "repository/data/catalog/marker"
    marker.write_text(marker.read_text().replace("repository ", "repository f"))
    assert calls(config, "catalog", "push", "--all")[0] == 6
    marker.write_text("garbage")
    status, stderr = calls(config, "catalog", "push", "--all")
    assert status == 6
    assert "move that object away" in stderr


@pytest.mark.parametrize("is_null_before", [True, False])
def test_a_null_storage_needs_no_marker(
    tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]], *, is_null_before: bool
) -> None:
    config = make_repository(tmp_path / "repository")
    text = config.read_text()
    null = text.replace("type: file", "type: null").replace(f"path: {tmp_path}/repository/data\n", "")
    assert null != text
    for content in (null, text) if is_null_before else (text, null):
        config.write_text(content)
        assert calls(config, "backup", "{image}", "disk")[0] == 0


def test_a_read_only_disk_can_be_read(
    disk: Disk, tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    config = on_disk(disk, tmp_path / "repository")
    assert calls(config, "backup", "{image}", "disk")[0] == 0
    with opened(config) as repository:
        change(repository, "UPDATE repository SET storage_marked = NULL")
    (disk.place / "catalog/marker").unlink()
    run_tool("mount", "-o", "remount,ro", str(disk.place))
    assert calls(config, "restore", "disk@latest", "{out}")[0] == 0
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_the_root_of_a_new_file_system_can_be_the_storage(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert os.listdir(disk.place) == ["lost+found"]
    on_disk(disk, tmp_path / "repository")
    assert "is a mount point; a directory below it would be safer" in capsys.readouterr().err


# The database is lost


@pytest.mark.parametrize("words", [("ls",), ("backup", "{image}", "disk"), ("check-config",), ("import", "{image}")])
def test_a_lost_database_is_recovered_if_the_storage_has_a_catalog(
    tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]], words: tuple[str, ...]
) -> None:
    config = make_repository(tmp_path / "repository")
    assert calls(config, "backup", "{image}", "disk")[0] == 0
    for file in (tmp_path / "repository").glob("backyfs.sqlite*"):
        file.unlink()
    status, stderr = calls(config, *words)
    assert status == 1
    assert "run `backyfs recover`" in stderr
    assert "initdb" not in stderr
    assert calls(config, "initdb")[0] == 6
    assert calls(config, "recover")[0] == 0
    assert calls(config, "restore", "disk@latest", "{out}")[0] == 0


def test_without_a_catalog_a_lost_database_is_created_again(
    tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    config = make_repository(tmp_path / "repository")
    for file in (tmp_path / "repository").glob("backyfs.sqlite*"):
        file.unlink()
    shutil.rmtree(tmp_path / "repository/data/catalog")
    status, stderr = calls(config, "ls")
    assert status == 1
    assert "run `backyfs initdb` to make one" in stderr
    assert calls(config, "initdb")[0] == 0


def test_a_lost_database_and_a_missing_storage_are_both_reported(
    tmp_path: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    config = make_repository(tmp_path / "repository")
    for file in (tmp_path / "repository").glob("backyfs.sqlite*"):
        file.unlink()
    shutil.rmtree(tmp_path / "repository/data")
    status, stderr = calls(config, "ls")
    assert status == 1
    assert "make the storage available" in stderr


def test_a_full_cleanup_keeps_blocks_whose_exports_are_still_to_be_imported(
    tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    config = make_repository(tmp_path / "repository")
    assert calls(config, "backup", "{image}", "disk")[0] == 0
    export = str(tmp_path / "export")
    assert calls(config, "export", "disk@latest", export)[0] == 0
    for file in (tmp_path / "repository").glob("backyfs.sqlite*"):
        file.unlink()
    shutil.rmtree(tmp_path / "repository/data/catalog")
    assert calls(config, "initdb")[0] == 0
    with opened(config) as repository:
        assert full_cleanup(repository, grace_s=1e-9).young_orphans == 5
    status, stderr = calls(config, "cleanup", "--full")
    assert status == 0
    assert "5 objects are unknown to the database and are kept" in stderr
    assert calls(config, "import", export)[0] == 0
    assert calls(config, "restore", "disk@latest", "{out}")[0] == 0
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_objects_from_before_the_repository_are_deleted_on_demand(
    tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    config = make_repository(tmp_path / "repository")
    assert calls(config, "backup", "{image}", "disk")[0] == 0
    for file in (tmp_path / "repository").glob("backyfs.sqlite*"):
        file.unlink()
    shutil.rmtree(tmp_path / "repository/data/catalog")
    assert calls(config, "initdb")[0] == 0
    assert calls(config, "cleanup", "--full", "--dangerous-force")[0] == 0
    assert list((tmp_path / "repository/data").rglob("*.blob")) == []
    with opened(config) as repository, repository.database.read() as connection:
        assert not load_storage_state(connection).had_objects


def test_a_repository_killed_while_taking_over_another_identity_finds_its_storage(tmp_path: Path) -> None:
    config = make_repository(tmp_path / "repository")
    with opened(config) as repository:
        hand_over(repository.blocks.storage, repository.uid, "00000000-0000-0000-0000-000000000000")
    with opened(config):
        pass
    with opened(config) as repository:
        change(repository, "UPDATE repository SET uid = '00000000-0000-0000-0000-000000000000'")
        change(repository, "UPDATE repository SET identity_tag = NULL")
        (tmp_path / "repository/data/catalog/repository").unlink()
    with opened(config) as repository:
        assert repository.uid == "00000000-0000-0000-0000-000000000000"


def test_an_import_into_an_empty_repository_takes_over_the_storage(
    tmp_path: Path, image: Path, calls: Callable[..., tuple[int, str]]
) -> None:
    first, second = make_repository(tmp_path / "first"), make_repository(tmp_path / "second")
    second.with_name("backyfs.key").write_bytes(first.with_name("backyfs.key").read_bytes())
    assert calls(first, "backup", "{image}", "disk")[0] == 0
    export = str(tmp_path / "export")
    assert calls(first, "export", "disk@latest", export)[0] == 0
    with opened(first) as repository:
        uid = repository.uid
    second.with_name("backyfs.sqlite").unlink()
    shutil.rmtree(tmp_path / "second/data")
    assert calls(second, "initdb")[0] == 0
    assert calls(second, "import", export)[0] == 0
    assert (tmp_path / "second/data/catalog/marker").read_text() == f"backyfs storage 1\nrepository {uid}\n"
    assert calls(second, "ls")[0] == 0


def test_a_database_downgraded_to_backy2_and_upgraded_again_gets_its_storage_on_demand(
    tmp_path: Path, calls: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    shutil.copytree(os.path.join(os.path.dirname(__file__), "../fixtures/v1-sqlite"), old)
    config = old / "backy.cfg"
    monkeypatch.chdir(old)  # its paths are relative
    assert calls(config, "ls")[0] == 0
    for file in old.glob("backy.sqlite-*"):
        file.unlink()
    [copy] = old.glob("*before-upgrade*")
    copy.rename(old / "backy.sqlite")
    status, stderr = calls(config, "ls")
    assert status == 6
    assert '"Going back" in docs/operate/upgrade.md' in stderr
    shutil.rmtree(old / "data/catalog")
    assert calls(config, "ls")[0] == 0
    assert calls(config, "catalog", "push")[0] == 0
    assert calls(config, "catalog", "check")[0] == 0
    assert calls(config, "scrub", "--all")[0] == 0
