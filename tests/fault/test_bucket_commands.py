"""Commands on a repository in a bucket while its object store is away, refuses, or is not what it was.

What they wait for, what they say, and that they take nothing for damaged that they cannot reach.
"""

from __future__ import annotations

import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backyfs.cli.main import run
from backyfs.model import VersionStatus
from tests.support.audit import audit, count_blobs, count_jobs, versions_of
from tests.support.bucketrepositories import made, places_in
from tests.support.buckets import Bucket
from tests.support.faults import NO_SUCH_KEY, SLOW_DOWN, Answer, Delay, Reset, Silence, Truncation
from tests.support.images import random_image
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, PATIENCE_S, back_up, opened, wait_for
from tests.support.requestlog import READS, Verb
from tests.support.stored import blob_of
from tests.upgrade.reference import BucketReference

if TYPE_CHECKING:
    from backyfs.model import Version
    from tests.support.faultproxy import FaultProxy
    from tests.support.faults import Fault
    from tests.support.services.objectstore import S3Server

BLOCKS = 12
BLOB = r"/[0-9a-f]{32}$"
PUTS = frozenset({Verb.PUT})
LISTS = frozenset({Verb.LIST})
DELETIONS = frozenset({Verb.DELETE_MANY})
NO_CODE = Answer(404, "")  # of a proxy that does not know the store at the moment


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
CATALOG = "catalog/(?!clock)"
# Commands that write to the storage only to keep the catalog.
EDITS = {
    "add-tag": Command("add-tag disk@latest tag", PUTS, CATALOG),
    "expire": Command("expire disk@latest 2100-01-01", PUTS, CATALOG),
    "key add": Command("key add spare --passphrase-file {secret}", PUTS, CATALOG),
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
        return run(["-c", str(self.config), *self.words(words)])

    def words(self, words: str) -> list[str]:
        places = {name: self.directory / name for name in ("image", "other", "out", "secret")}
        return words.format_map(places).split()

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


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((name, SLOW_DOWN) for name in COMMANDS),
        *((name, fault) for name in ("backup", "scrub", "cleanup", "recover") for fault in (Silence(), NO_CODE)),
    ],
)
def test_a_command_ends_when_a_store_stays_away(name: str, fault: Fault, site: Site) -> None:
    command = COMMANDS[name]
    site.prepare(name)
    site.set(retry_time="1s", request_timeout="3s")
    begins = site.proxy.add(fault, verbs=command.verbs, path=command.path, times=1)
    with ThreadPoolExecutor(1) as thread:
        ending = thread.submit(site.run, command.words)
        wait_for(lambda: begins.times == 0, "the command begins its work")
        site.proxy.add(fault)
        assert ending.result() == 6
    site.proxy.rules.clear()
    site.set(retry_time="1m", request_timeout="1m")
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


# Interrupted


def expect_interruptible(proxy: FaultProxy, config: Path, *words: str, verbs: frozenset[Verb], path: str = "") -> None:
    """Start a command, and fail unless it ends at a signal while requests of this kind are not answered."""
    silence = proxy.add(Silence(), verbs=verbs, path=path)
    process = subprocess.Popen(
        [BACKYFS, "-c", str(config), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: any(silence.hits(one.verb, one.path) for one in proxy.log.requests), "it waits for the store")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["open", *COMMANDS, *EDITS])
def test_a_command_ends_at_a_signal_while_the_store_is_silent(name: str, site: Site) -> None:
    command = {**COMMANDS, **EDITS}.get(name, Command("ls", READS, "marker"))
    site.set(retry_time="1h", request_timeout="1h")
    site.prepare(name)
    words = site.words(command.words)
    expect_interruptible(site.proxy, site.config, *words, verbs=command.verbs, path=command.path)


@pytest.mark.parametrize(
    ("verbs", "path", "is_configured"),
    [(LISTS, "", False), (PUTS, "catalog/clock", False), (PUTS, "marker", True), (PUTS, CATALOG, True)],
    ids=["list", "clock", "marker", "catalog"],
)
def test_a_new_repository_does_not_wait_for_a_silent_store(
    verbs: frozenset[Verb], path: str, *, is_configured: bool, bucket: Bucket, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    places = places_in(bucket, tmp_path / "new", endpoint=fault_proxy.endpoint)
    keys = ("--access-key-file", str(tmp_path / "new/id"), "--secret-key-file", str(tmp_path / "new/secret"))
    storage = ("--storage", f"s3://{bucket.name}", "--endpoint", fault_proxy.endpoint)
    config = Path(places.config_file)
    words = ("init", *storage, *keys, "--db", places.database)
    expect_interruptible(fault_proxy, config, *words, verbs=verbs, path=path)
    assert config.exists() == is_configured


def test_an_upgrade_does_not_wait_for_a_silent_store(bucket: Bucket, fault_proxy: FaultProxy, tmp_path: Path) -> None:
    reference = BucketReference("s3-v1", tmp_path, bucket, endpoint=fault_proxy.endpoint)
    before = reference.sqlite_file.read_bytes()
    expect_interruptible(fault_proxy, reference.config_file, "ls", verbs=READS)
    assert reference.sqlite_file.read_bytes() == before


# Permissions


@pytest.mark.parametrize("s3_server", ["seaweedfs", "radosgw"], indirect=True)
def test_a_host_that_may_not_delete_backs_up_and_leaves_garbage_to_another(site: Site, s3_server: S3Server) -> None:
    assert site.run("rm -f gone@latest") == 0
    places_in(site.bucket, site.directory, user="appender")
    before = site.bucket.keys()
    assert site.run("backup {other} other") == 0
    (site.directory / "backyfs.log").write_text("")
    assert site.run("cleanup --dangerous-force") == 6
    assert len(re.findall(" (?:ERROR|WARNING) .*access is denied", site.log())) == 1
    assert set(before) <= set(site.bucket.keys())
    places_in(site.bucket, site.directory)
    assert site.run("cleanup --dangerous-force") == 0
    keys = site.bucket.keys()
    assert sum("/" not in key for key in keys) == 2 * (BLOCKS + 1)
    # To radosgw, what a user stores is that user's own, and the owner of the bucket may not read it.
    places_in(site.bucket, site.directory, user="appender")
    with opened(site.config) as repository:
        assert count_blobs(repository) == 2 * (BLOCKS + 1)
    site.expect_sound()


@pytest.mark.parametrize("s3_server", ["seaweedfs", "radosgw"], indirect=True)
def test_a_host_that_may_only_read_reads(site: Site, s3_server: S3Server) -> None:
    places_in(site.bucket, site.directory, user="reader")
    for words in ("ls", "restore -f disk@latest {out}", "scrub --all", "catalog check", "du", "stats"):
        assert site.run(words) == 0
    assert site.run("backup {other} other") == 6


# Requests


def test_a_backup_puts_each_new_blob_once_and_asks_for_nothing_else(site: Site) -> None:
    site.proxy.log.clear()
    assert site.run("backup {other} other") == 0
    blobs = [request for request in site.proxy.log.requests if re.search(BLOB, request.path)]
    assert len(blobs) == BLOCKS + 1
    counts = site.proxy.log.counts
    assert set(counts) == {Verb.GET, Verb.PUT}  # of the marker and the catalog
    assert counts[Verb.GET] <= 5
    assert counts[Verb.PUT] <= BLOCKS + 1 + 4  # with page, version, repository and index of the catalog


@pytest.mark.parametrize("words", ["restore -f disk@latest {out}", "scrub --all"])
def test_each_blob_is_read_with_one_request(words: str, site: Site) -> None:
    assert site.run("rm -f gone@latest") == 0
    assert site.run("cleanup --dangerous-force") == 0
    site.proxy.log.clear()
    assert site.run(words) == 0
    assert len([request for request in site.proxy.log.requests if re.search(BLOB, request.path)]) == BLOCKS + 1
    assert set(site.proxy.log.counts) <= {Verb.GET, Verb.PUT}


def test_a_cleanup_deletes_blobs_by_the_thousand(bucket: Bucket, fault_proxy: FaultProxy, tmp_path: Path) -> None:
    site = Site(made(bucket, tmp_path / "site", block_size=512, endpoint=fault_proxy.endpoint), bucket, fault_proxy)
    with opened(site.config) as repository:
        back_up(repository, random_image(site.directory / "image", 1100 * 512), "gone")
    assert site.run("rm -f gone@latest") == 0
    site.proxy.log.clear()
    assert site.run("cleanup --dangerous-force") == 0
    assert not any("/" not in key for key in bucket.keys())  # noqa: SIM118 - it is not a dict
    assert set(site.proxy.log.counts) == {Verb.GET, Verb.DELETE_MANY}
    assert site.proxy.log.counts[Verb.DELETE_MANY] == 3  # and one for the pages of the catalog


# What is not the store that it was


def test_a_bucket_that_was_emptied_is_refused_and_nothing_is_marked(site: Site) -> None:
    objects = site.bucket.objects()
    site.bucket.delete(*objects)
    for command in COMMANDS.values():
        if "recover" not in command.words:
            assert site.run(command.words.replace("push --all", "push")) == 6
    assert site.bucket.keys() == []
    site.bucket.fill(objects)
    site.expect_sound()


def test_a_store_that_knows_no_object_for_a_while_damages_nothing(site: Site) -> None:
    begins = site.proxy.add(NO_SUCH_KEY, verbs=READS, path=BLOB, times=1)
    with ThreadPoolExecutor(1) as thread:
        site.proxy.add(Delay(0.2), verbs=READS, path=BLOB)
        ending = thread.submit(site.run, "scrub --all")
        wait_for(lambda: begins.times == 0, "blobs are read")
        site.proxy.rules.clear()
        site.proxy.add(NO_SUCH_KEY)
        assert ending.result() == 6
    site.proxy.rules.clear()
    site.expect_sound()


def test_the_bucket_of_another_repository_is_refused(site: Site, tmp_path: Path) -> None:
    other = Bucket.make(site.bucket.server)
    made(other, tmp_path / "another")
    site.config.write_text(site.config.read_text().replace(site.bucket.name, other.name))
    before = other.objects()
    for command in COMMANDS.values():
        if "recover" not in command.words:
            assert site.run(command.words.replace("push --all", "push")) == 6
    assert other.objects() == before
    other.remove()


@pytest.mark.parametrize("words", ["scrub --all", "restore -f disk@latest {out}", "catalog check", "recover"])
def test_objects_that_come_short_once_are_read_again(words: str, site: Site) -> None:
    site.prepare(words)
    for key in site.bucket.keys():  # noqa: SIM118 - it is not a dict
        site.proxy.add(Truncation(body_bytes=9, honest=True), verbs=READS, path=f"{key}$", times=1)
    assert site.run(words) == 0
    site.proxy.rules.clear()
    site.expect_sound()
