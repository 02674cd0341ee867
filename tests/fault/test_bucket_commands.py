"""Commands on a repository in a bucket while its object store is away, refuses, or is not what it was.

What they wait for, what they say, and that they take nothing for damaged that they cannot reach.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from backyfs.cli.main import run
from backyfs.model import VersionStatus
from tests.support.audit import audit, count_jobs, versions_of
from tests.support.bucketrepositories import made
from tests.support.faults import SLOW_DOWN, Answer, Reset, Silence
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up, opened, wait_for
from tests.support.requestlog import READS, Verb
from tests.support.stored import blob_of

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.model import Version
    from tests.support.buckets import Bucket
    from tests.support.faultproxy import FaultProxy
    from tests.support.faults import Fault
    from tests.support.services.objectstore import S3Server

BLOCKS = 30
BLOB = r"/[0-9a-f]{32}$"
PUTS = frozenset({Verb.PUT})
LISTS = frozenset({Verb.LIST})
DELETIONS = frozenset({Verb.DELETE_MANY})


@dataclass(frozen=True, slots=True)
class Command:
    """A command, and the requests without which it cannot do its work."""

    words: str
    verbs: frozenset[Verb]
    path: str = ""


COMMANDS = {
    "backup": Command("backup {other} other", PUTS, BLOB),
    "restore": Command("restore -f disk@latest {out}", READS, BLOB),
    "scrub": Command("scrub --all", READS, BLOB),
    "cleanup": Command("cleanup --dangerous-force", DELETIONS),
    "full cleanup": Command("cleanup --full --dangerous-force", LISTS),
    "repair": Command("repair --from {image}", PUTS, BLOB),
    "migrate-encryption": Command("migrate-encryption --all --to 1", READS, BLOB),
    "catalog push": Command("catalog push --all", PUTS, "catalog/"),
    "catalog check": Command("catalog check", READS, "catalog/versions"),
    "recover": Command("recover", READS, "catalog/versions"),
    "recover, list": Command("recover", LISTS),
}


@dataclass(frozen=True, slots=True)
class Site:
    """A repository in a bucket that is reached through a proxy, with a version of an image."""

    config: Path
    bucket: Bucket
    proxy: FaultProxy

    @property
    def directory(self) -> Path:
        return self.config.parent

    @property
    def image(self) -> Path:
        return self.directory / "image"

    def run(self, words: str) -> int:
        """Run a command in this process; return its exit status."""
        places = {"image": self.image, "other": self.directory / "other", "out": self.directory / "out"}
        return run(["-c", str(self.config), *words.format_map(places).split()])

    def set(self, **settings: object) -> None:
        """Change [DataBackend] of the configuration."""
        text = self.config.read_text()
        for key, value in settings.items():
            text = re.sub(rf"(?m)^{key}:.*\n", "", text).replace("[DataBackend]\n", f"[DataBackend]\n{key}: {value}\n")
        self.config.write_text(text)

    def log(self) -> str:
        return (self.directory / "backyfs.log").read_text()

    def prepare(self, command: str) -> None:
        """Give a command something to do."""
        (self.directory / "backyfs.log").write_text("")
        if "cleanup" in command:
            assert self.run("rm -f gone@latest") == 0
        if command == "repair":
            with opened(self.config) as repository:
                [version, _] = versions_of(repository)
                self.bucket.put(blob_of(repository, version, 3).uid, b"damaged")
            assert self.run("scrub --all") == 20
        if command.startswith("recover"):
            for file in self.directory.glob("metadata.sqlite*"):
                file.unlink()
        self.proxy.log.clear()

    def versions(self, status: VersionStatus) -> list[Version]:
        with opened(self.config) as repository:
            return [version for version in versions_of(repository) if version.status is status]

    def expect_sound(self) -> None:
        """Fail if anything is lost, or marked as damaged."""
        with opened(self.config) as repository:
            assert {version.status for version in versions_of(repository)} == {VersionStatus.VALID}
            audit(repository)
            assert count_jobs(repository) == 0
        assert self.run("scrub --all") == 0


@pytest.fixture
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Use SeaweedFS, or the server that the parameters of a test name: where servers differ."""
    server: S3Server = request.getfixturevalue(f"{getattr(request, 'param', 'seaweedfs')}_server")
    return server


@pytest.fixture
def site(bucket: Bucket, fault_proxy: FaultProxy, tmp_path: Path) -> Site:
    site = Site(made(bucket, tmp_path / "site", endpoint=fault_proxy.endpoint), bucket, fault_proxy)
    for seed, name in enumerate(("image", "other", "gone")):
        random_image(site.directory / name, BLOCKS * BLOCK + 7, seed)
    with opened(site.config) as repository:
        back_up(repository, site.image)
        back_up(repository, site.directory / "gone", "gone")
    return site


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_waits_for_a_store_that_comes_back(name: str, site: Site) -> None:
    command = COMMANDS[name]
    site.set(retry_time="50s", request_timeout="1m")
    site.prepare(name)
    rule = site.proxy.add(Reset(forward=False), verbs=command.verbs, path=command.path)
    with ThreadPoolExecutor(1) as thread:
        ending = thread.submit(site.run, command.words)
        wait_for(lambda: "waiting up to" in site.log() or ending.done(), "the outage is reported")
        site.proxy.refuse()
        site.proxy.rules.remove(rule)
        site.proxy.accept()
        assert ending.result() == 0
    assert site.log().count("waiting up to 50 s") == 1
    assert site.log().count("answers again after") == 1
    site.expect_sound()


@pytest.mark.parametrize("fault", [SLOW_DOWN, Silence(), Answer(404, "")], ids=["503", "silence", "404"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_when_a_store_stays_away(fault: Fault, name: str, site: Site) -> None:
    command = COMMANDS[name]
    site.set(retry_time="1s", request_timeout="1s")
    site.prepare(name)
    begins = site.proxy.add(fault, verbs=command.verbs, path=command.path, times=1)
    with ThreadPoolExecutor(1) as thread:
        ending = thread.submit(site.run, command.words)
        wait_for(lambda: begins.times == 0, "the command begins its work")
        site.proxy.add(fault)
        assert ending.result() == 6
    site.proxy.rules.clear()
    assert site.log().count("waiting up to 1 s") <= 1  # none if the first attempt took all the time
    assert "answers again" not in site.log()
    words = command.words
    if name == "backup":
        [incomplete] = site.versions(VersionStatus.INCOMPLETE)
        words = words.replace("backup", f"backup -c {incomplete.uid}")
    elif "recover" not in name:
        assert len(site.versions(VersionStatus.INVALID)) == (name == "repair")  # and nothing more than before
    assert site.run(words) == 0
    site.expect_sound()
