"""What a command cost in requests: in its output, its log, `jobs`, `stats` and the metrics."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.images import random_image
from tests.support.repositories import BLOCK
from tests.support.requestlog import READS, Verb

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.buckets import Bucket
    from tests.support.faultproxy import FaultProxy
    from tests.support.services.objectstore import S3Server

    Call = Callable[..., tuple[int, str, str]]

LINE = re.compile(r"requests: [0-9]+ [a-z]+( \([^)]*\))?(, [0-9]+ [a-z]+( \([^)]*\))?)*")


@pytest.fixture
def s3_server(seaweedfs_server: S3Server) -> S3Server:
    return seaweedfs_server


@pytest.fixture
def in_bucket(config: Path, bucket: Bucket, fault_proxy: FaultProxy) -> Path:
    """Move the repository to a bucket behind the proxy; return its configuration."""
    bucket.take_over(config, endpoint=fault_proxy.endpoint)
    return config


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return random_image(tmp_path / "image", 4 * BLOCK)


def output(call: Call, *words: object) -> Any:
    """Run a command and return the JSON that it printed."""
    status, out, err = call("--json", *words)
    assert (status, err) == (0, "")
    return json.loads(out)


def numbers(requests: dict[str, dict[str, int]]) -> dict[str, int]:
    return {verb: count["requests"] for verb, count in requests.items()}


def seen(proxy: FaultProxy) -> dict[str, int]:
    """Return the requests that the proxy saw since the last call, by the verbs of the program."""
    counts = proxy.log.counts
    found = {
        "put": counts[Verb.PUT],
        "get": sum(counts[verb] for verb in READS),
        "head": counts[Verb.HEAD],
        "list": counts[Verb.LIST],
        "delete": counts[Verb.DELETE] + counts[Verb.DELETE_MANY],
    }
    assert sum(found.values()) == len(proxy.log.requests)
    proxy.log.clear()
    return {verb: count for verb, count in found.items() if count}


@pytest.mark.usefixtures("in_bucket")
def test_commands_report_the_requests_that_the_store_saw(
    call: Call, image: Path, bucket: Bucket, fault_proxy: FaultProxy
) -> None:
    report = output(call, "backup", image, "disk")
    assert numbers(report["requests"]) == seen(fault_proxy)
    assert report["requests"]["put"]["requests"] >= 4
    stored = sum(map(len, bucket.objects().values()))
    assert report["bytes_stored"] < report["requests"]["put"]["bytes"] <= stored
    for words in (
        ("restore", "disk@latest", image.with_name("restored")),
        ("scrub", "--all"),
        ("cleanup",),
        ("cleanup", "--full"),
    ):
        assert numbers(output(call, *words)["requests"]) == seen(fault_proxy)


@pytest.mark.usefixtures("in_bucket")
def test_the_requests_of_a_backup_are_found_again(call: Call, image: Path, tmp_path: Path) -> None:
    first, second = (output(call, "backup", image, name) for name in ("first", "second"))
    output(call, "scrub", "--all")
    assert [run["report"]["requests"] for run in output(call, "jobs", "--ended")][1:] == [
        second["requests"], first["requests"],
    ]  # fmt: skip
    assert [row["requests"] for row in output(call, "stats")] == [first["requests"], second["requests"]]
    assert [row["requests"] for row in output(call, "stats", first["uid"])] == [first["requests"]]
    file = tmp_path / "metrics"
    assert call("--metrics-file", file, "ls")[0] == 0
    lines = [re.sub(r'config="[^"]*",', "", line) for line in file.read_text().splitlines()]
    for report in (first, second):
        for verb, count in report["requests"].items():
            labels = f'{{name="{report["name"]}",verb="{verb}"}}'
            assert f"backyfs_last_success_requests{labels} {float(count['requests'])}" in lines
            assert f"backyfs_last_success_request_bytes{labels} {float(count['bytes'])}" in lines


def test_people_and_the_log_get_one_line(call: Call, image: Path, in_bucket: Path) -> None:
    status, out, err = call("backup", image, "disk")
    assert status == 0
    last = out.splitlines()[-1]
    assert LINE.fullmatch(last)
    assert "put (" in last
    assert "requests:" not in err
    logged = in_bucket.with_name("backyfs.log").read_text().splitlines()
    assert [line.rpartition(" INFO ")[2] for line in logged if "requests:" in line] == [last]
    for words in (
        ("restore", "disk@latest", image.with_name("restored")),
        ("scrub", "--all"),
        ("cleanup", "--dangerous-force"),
    ):
        assert LINE.fullmatch(call(*words)[1].splitlines()[-1])


@pytest.mark.usefixtures("in_bucket")
def test_output_for_scripts_of_backy2_is_unchanged(call: Call, image: Path) -> None:
    out = call("-m", "backup", image, "disk")[1]
    assert re.fullmatch(r"([0-9a-f-]{36})\n\1\n", out)
    assert call("-m", "scrub", "--all")[1] == ""
    assert "requests" not in call("-m", "cleanup")[1]
    assert "requests" not in call("-m", "stats")[1]


def test_the_log_has_the_requests_of_a_command_that_fails(
    call: Call, image: Path, in_bucket: Path, bucket: Bucket
) -> None:
    call("backup", image, "disk")
    bucket.delete(*(key for key in bucket.objects() if "/" not in key))
    assert call("restore", "disk@latest", image.with_name("restored"))[0] == 20
    logged = in_bucket.with_name("backyfs.log").read_text()
    assert len(re.findall("requests: ", logged)) == 2


def test_a_json_log_has_the_counts(call: Call, image: Path, in_bucket: Path) -> None:
    in_bucket.write_text(in_bucket.read_text().replace("[DEFAULTS]\n", "[DEFAULTS]\nlog_format: json\n"))
    report = output(call, "backup", image, "disk")
    lines = map(json.loads, in_bucket.with_name("backyfs.log").read_text().splitlines())
    [counts] = [line["requests"] for line in lines if "requests" in line]
    assert counts == report["requests"]


def test_a_directory_takes_no_requests(call: Call, image: Path, config: Path, tmp_path: Path) -> None:
    assert output(call, "backup", image, "disk")["requests"] == {}
    assert output(call, "scrub", "--all")["requests"] == {}
    assert output(call, "stats")[0]["requests"] is None
    assert "requests" not in call("backup", image, "disk")[1]
    call("--metrics-file", tmp_path / "metrics", "ls")
    assert "requests" not in (tmp_path / "metrics").read_text()
    assert "requests:" not in config.with_name("backyfs.log").read_text()
