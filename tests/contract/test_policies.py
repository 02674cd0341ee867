"""The policies in the manual permit what each kind of host does, and nothing else."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backyfs.errors import StorageRefusedError
from backyfs.model import BlobUid
from backyfs.storage.bucket import open_bucket
from backyfs.storage.keys import ObjectName
from tests.support.services.objectstore import APPENDER, principals
from tests.support.signing import accepted

if TYPE_CHECKING:
    from tests.support.buckets import Bucket

_PAGES = Path(__file__).parents[2] / "docs" / "operate"
_POLICY = re.compile(r"```json\n(\{\n  \"Version\".*?)```", re.DOTALL)
STORED = BlobUid("a1b2c3d4e5f60718293a4b5c6d7e8f90")
NEW = BlobUid("a1b2ffffffffffffffffffffffffffff")
INDEX = ObjectName("catalog/index")
PREFIX = "one/two"
# What each host may do, in the order of the policies of aws.md.
HOSTS = {"backup": {"store"}, "cleanup": {"store", "delete"}, "restore": set()}


def policies(page: str) -> list[dict[str, Any]]:
    """Return the policies of a page."""
    return [json.loads(text) for text in _POLICY.findall((_PAGES / page).read_text())]


def use(bucket: Bucket, statements: list[dict[str, Any]]) -> None:
    """Let the policy of a bucket consist of these statements, and give them to one user."""
    policy = {"Version": "2012-10-17", "Statement": [{**one, "Principal": principals(APPENDER)} for one in statements]}
    text = json.dumps(policy).replace("BUCKET", bucket.name).replace("PREFIX", PREFIX)
    accepted(
        bucket.server.endpoint, bucket.server.admin, "PUT", f"/{bucket.name}", query={"policy": ""},
        body=text.encode(),
    )  # fmt: skip


def check(bucket: Bucket, may: set[str], prefix: str = "") -> None:
    """Check what the user may do with the objects that another user stored."""
    with closing(open_bucket(bucket.config(prefix=prefix), lambda: False)) as owners:
        owners.put(STORED, [b"stored"])
        owners.put(INDEX, [b"first"])
    with closing(open_bucket(bucket.config(prefix=prefix, user=bucket.server.appender), lambda: False)) as storage:
        assert storage.get(STORED) == b"stored"
        assert storage.get_range(STORED, 1, 2) == b"to"
        assert {found.key for found in storage.list()} == {STORED, INDEX}
        if "store" in may:
            storage.put(NEW, [b"new"])
            storage.put(INDEX, [b"second"])
            assert storage.get(INDEX) == b"second"
            assert not storage.put_new(INDEX, b"third")
        else:
            with pytest.raises(StorageRefusedError):
                storage.put(NEW, [b"new"])
        if "delete" in may:
            storage.delete([STORED, NEW])
            assert {found.key for found in storage.list()} == {INDEX}
        else:
            with pytest.raises(StorageRefusedError, match="to delete objects"):
                storage.delete([STORED])
            assert storage.get(STORED) == b"stored"


@pytest.mark.parametrize(("number", "host"), list(enumerate(HOSTS)))
def test_the_policies_for_aws_name_the_right_actions(bucket: Bucket, number: int, host: str) -> None:
    statements = policies("aws.md")[number]["Statement"]
    for statement in statements:
        if bucket.server.name == "radosgw" and "s3:DeleteObject" in statement["Action"]:
            # It checks requests that delete many objects against the bucket.
            statements.append({**statement, "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::BUCKET"})
            break
    use(bucket, statements)
    check(bucket, HOSTS[host], PREFIX)
    with (
        closing(open_bucket(bucket.config(prefix="elsewhere", user=bucket.server.appender), lambda: False)) as storage,
        pytest.raises(StorageRefusedError),
    ):
        storage.put(NEW, [b"new"])


@pytest.mark.parametrize("host", HOSTS)
def test_the_policy_of_each_store_permits_what_its_hosts_do(bucket: Bucket, host: str) -> None:
    [policy] = policies({"seaweedfs": "seaweedfs.md", "radosgw": "ceph-radosgw.md"}[bucket.server.name])
    of_host = [
        one for one in policy["Statement"] if any(name.endswith(f":user/{host}") for name in one["Principal"]["AWS"])
    ]
    use(bucket, of_host)
    check(bucket, HOSTS[host])
