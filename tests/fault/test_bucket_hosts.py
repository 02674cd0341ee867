"""Two hosts use a repository, on PostgreSQL and in a bucket, at the same time; some commands are killed or cut off."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.support.audit import audit, content_of, versions_of
from tests.support.bucketrepositories import made
from tests.support.faultproxy import FaultProxy
from tests.support.faults import Delay
from tests.support.forkserver import LET_GO
from tests.support.images import random_bytes
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, PATIENCE_S, opened, wait_for
from tests.support.requestlog import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from backyfs.model import Version
    from tests.support.buckets import Bucket
    from tests.support.services.objectstore import S3Server
    from tests.support.services.postgresql import PostgresqlServer

pytestmark = pytest.mark.root

BLOCKS = 40
# A process in another pid namespace is one of another host: whether it lives can be seen by its heartbeat only.
ELSEWHERE = [
    "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", f'{LET_GO}exec "$@"', "sh",
]  # fmt: skip
ROUNDS = ["whole", "killed", "whole", "cut off", "whole"]
REMOVED = {0, 4}  # or in use, by a command that was killed
CUT_OFF = 6


@dataclass
class Host:
    """A host with its own configuration and its own line to the store."""

    config: Path
    proxy: FaultProxy
    name: str
    images: dict[str, bytes] = field(default_factory=dict)  # of versions that were reported, by their uids

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [*ELSEWHERE, BACKYFS, "-c", str(self.config), "--json", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *words: str, allowed: Sequence[int] | set[int] = (0,)) -> str:
        with self.start(*words) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in allowed, f"{self.name}: {words}: {process.returncode}: {err}"
        return out

    def back_up(self, number: int, how: str) -> None:
        """Back up what is in part the same on both hosts, and in part what was removed before."""
        half = BLOCKS // 2 * BLOCK
        content = random_bytes(half, number % 2) + random_bytes(half, ord(self.name))
        image = self.config.with_name(f"{self.name}.img")
        image.write_bytes(content)
        self.proxy.log.clear()
        process = self.start("backup", str(image), self.name)
        with process:
            if how != "whole":
                wait_for(lambda: self.proxy.log.counts[Verb.PUT] > 2 or process.poll() is not None, "it stores")
            if how == "killed":
                process.kill()
            with self.proxy.refusing() if how == "cut off" else nullcontext():
                out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in {"whole": {0}, "killed": {0, -9}, "cut off": {0, CUT_OFF}}[how], err
        if process.returncode == 0:
            self.images[json.loads(out)["uid"]] = content

    def remove_oldest(self) -> None:
        if len(self.images) > 1:
            uid = next(iter(self.images))
            self.run("rm", "-f", uid, allowed=REMOVED)
            self.images.pop(uid)


@pytest.fixture
def hosts(
    bucket: Bucket, seaweedfs_server: S3Server, postgresql_server: PostgresqlServer, tmp_path: Path
) -> Iterator[list[Host]]:
    database = postgresql_server.new_database()
    proxies = [FaultProxy(seaweedfs_server.endpoint) for _ in range(2)]
    first = made(bucket, tmp_path / "first", endpoint=proxies[0].endpoint, database=database)
    text = first.read_text().replace("[DataBackend]\n", "[DataBackend]\nretry_time: 2s\nrequest_timeout: 30s\n")
    first.write_text(text)
    second = tmp_path / "second/backyfs.cfg"
    second.parent.mkdir()
    shutil.copy(first, second)
    second.write_text(text.replace(proxies[0].endpoint, proxies[1].endpoint))
    for proxy in proxies:
        proxy.add(Delay(0.05))
    yield [Host(config, proxy, name) for config, proxy, name in zip((first, second), proxies, "ab", strict=True)]
    for proxy in proxies:
        proxy.close()
    postgresql_server.drop(database)


@pytest.fixture
def s3_server(seaweedfs_server: S3Server) -> S3Server:
    """Use one server."""
    return seaweedfs_server


def test_backups_beside_cleanups_of_another_host_lose_nothing(hosts: list[Host]) -> None:
    one, other = hosts

    def back_up() -> None:
        for number, how in enumerate(ROUNDS):
            one.back_up(number, how)
            one.remove_oldest()

    def clean_up() -> None:
        for number, how in enumerate(reversed(ROUNDS)):
            other.run("cleanup", "--dangerous-force", *(["--full"] if number % 2 else []))
            other.back_up(number, how)
            other.remove_oldest()

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(back_up), threads.submit(clean_up)]:
            done.result()
    with opened(one.config) as repository:
        audit(repository)
        there: dict[str, Version] = {version.uid: version for version in versions_of(repository)}
        for uid, content in (one.images | other.images).items():
            assert content_of(repository, there[uid]) == content
    one.run("cleanup", "--full", "--dangerous-force")
    other.run("scrub", "--all")
