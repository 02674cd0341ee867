"""A private object store behind a proxy that delays every request, for measures. SeaweedFS, as in the tests."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.program import Program, Repository
from benchmarks.runner import BenchmarkError, Runner
from tests.support.buckets import Bucket
from tests.support.faults import Delay, Rule
from tests.support.separateproxy import SeparateProxy
from tests.support.services.objectstore import S3Server
from tests.support.services.seaweedfs import SeaweedfsServer

THREADS = (4, 8, 16, 32, 64)  # of bare calls; the best number counts


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStore:
    """A bucket, and the proxy in front of it."""

    runner: Runner
    bucket: Bucket
    proxy: SeparateProxy

    def delay(self, seconds: float) -> None:
        """Delay every request from now on."""
        self.proxy.set_rules(*([Rule(Delay(seconds))] if seconds else []))

    def init(self, program: Program, directory: str, prefix: str, *options: str) -> Repository:
        """Make an encrypted repository in the bucket, without delay; `options` are lines of [DataBackend]."""
        self.delay(0)
        config = os.path.join(directory, "backyfs.cfg")
        files = []
        for name, content in zip(("id", "secret"), _keys(self.bucket), strict=True):
            files.append(os.path.join(directory, name))
            with open(files[-1], "w", encoding="ascii") as file:
                file.write(content)
        program.run(
            "-c", config, "init", "--db", os.path.join(directory, "metadata.db"),
            "--storage", f"s3://{self.bucket.name}/{prefix}", "--endpoint", self.proxy.endpoint,
            "--access-key-file", files[0], "--secret-key-file", files[1],
        )  # fmt: skip
        if options:
            with open(config, encoding="utf-8") as file:
                text = file.read()
            with open(config, "w", encoding="utf-8") as file:
                file.write(text.replace("[DataBackend]\n", "\n".join(["[DataBackend]", *options, ""])))
        return Repository(program=program, config=config)

    def blobs(self, prefix: str) -> dict[str, int]:
        """Return the sizes of the blobs below a prefix by their keys, relative to it."""
        import obstore  # noqa: PLC0415 - only these measures need it

        found = (entry for some in obstore.list(self.bucket.store(), prefix=prefix) for entry in some)
        sizes = {entry["path"].removeprefix(f"{prefix}/"): entry["size"] for entry in found}
        return {key: size for key, size in sizes.items() if "/" not in key}

    def bare(self, task: str, threads: int, prefix: str, **about: object) -> dict[str, float]:
        """Run bare calls through the proxy; return seconds and seconds of CPU time."""
        access_key, secret_key = _keys(self.bucket)
        place = {
            "bucket": self.bucket.name, "prefix": prefix, "endpoint": self.proxy.endpoint, "access_key": access_key,
            "secret_key": secret_key, **about,
        }  # fmt: skip
        run = self.runner.run([sys.executable, "-m", "benchmarks.object_tasks", task, json.dumps(place), str(threads)])
        answer: dict[str, float] = json.loads(run.stdout)
        return answer


def _keys(bucket: Bucket) -> tuple[str, str]:
    return bucket.server.admin.access_key, bucket.server.admin.secret_key


@contextlib.contextmanager
def object_store(runner: Runner) -> Iterator[ObjectStore]:
    """Run a store for the measures in the `with`.

    Raises:
        BenchmarkError: the programs are missing; `contrib/setup.sh tests` installs them.
    """
    try:
        server = SeaweedfsServer()
    except Exception as error:
        raise BenchmarkError(f"SeaweedFS cannot be started: {error}") from error
    with server:
        bucket = Bucket.make(S3Server(name=server.name, endpoint=server.endpoint))
        with SeparateProxy(server.endpoint) as proxy:
            yield ObjectStore(runner=runner, bucket=bucket, proxy=proxy)
