"""From the configuration to a client: addresses, credentials, and an environment that must not interfere."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from backyfs.config import ObjectStoreConfig
from backyfs.errors import ConfigError, StorageAwayError, StorageError
from backyfs.storage.bucket.connection import endpoint_of, open_bucket, uses_virtual_hosts
from backyfs.storage.bucket.credentials import credentials_of
from backyfs.storage.bucket.foreignnames import BucketLister

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def config_of(**values: Any) -> ObjectStoreConfig:
    return ObjectStoreConfig(**{"kind": "s3", "bucket_name": "bucket", **values})


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, "https://bucket.s3.us-east-1.amazonaws.com"),
        ({"region_name": "eu-central-1"}, "https://bucket.s3.eu-central-1.amazonaws.com"),
        ({"bucket_name": "with.dots"}, "https://s3.us-east-1.amazonaws.com"),
        ({"addressing_style": "path"}, "https://s3.us-east-1.amazonaws.com"),
        ({"use_ssl": False, "addressing_style": "path"}, "http://s3.us-east-1.amazonaws.com"),
        ({"endpoint_url": "http://store:9000/"}, "http://store:9000"),
        ({"endpoint_url": "http://store:9000", "addressing_style": "auto"}, "http://store:9000"),
        ({"endpoint_url": "https://store", "addressing_style": "virtual"}, "https://bucket.store"),
    ],
)
def test_requests_go_to_the_configured_address(values: dict[str, Any], url: str) -> None:
    config = config_of(**values)
    assert endpoint_of(config) == url
    assert uses_virtual_hosts(config) == url.startswith("https://bucket.")


def test_credentials_come_from_the_configuration_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "stray")
    provide = credentials_of(config_of(aws_access_key_id="id", aws_secret_access_key="secret"))
    assert provide is not None
    found = provide()
    assert (found["access_key_id"], found["secret_access_key"], found["token"]) == ("id", "secret", None)


def test_credentials_in_files_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("id\n")
    (tmp_path / "secret").write_text("  secret \n")
    provide = credentials_of(
        config_of(aws_access_key_id_file=str(tmp_path / "id"), aws_secret_access_key_file=str(tmp_path / "secret"))
    )
    assert provide is not None
    assert provide()["secret_access_key"] == "secret"
    (tmp_path / "secret").write_text("renewed")
    assert provide()["secret_access_key"] == "renewed"


@pytest.mark.parametrize("content", ["", "\n", "two words", "two\nlines"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "secret").write_text(content)
    with pytest.raises(StorageError, match="does not contain a key on a single line"):
        credentials_of(config_of(aws_access_key_id="id", aws_secret_access_key_file=str(tmp_path / "secret")))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"^{tmp_path}/none cannot be read: No such file or directory$"):
        credentials_of(config_of(aws_access_key_id="id", aws_secret_access_key_file=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("values", "missing"),
    [({"aws_access_key_id": "id"}, "aws_secret_access_key"), ({"aws_secret_access_key": "s"}, "aws_access_key_id")],
)
def test_half_of_the_credentials_is_a_mistake(values: dict[str, str], missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"{missing}: is missing, .*; set {missing} or {missing}_file"):
        credentials_of(config_of(**values))


@pytest.mark.parametrize(
    ("file", "header"), [(".aws/credentials", "[nightly]"), (".aws/config", "[profile nightly]")]
)
def test_credentials_come_from_a_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, header: str
) -> None:
    (tmp_path / ".aws").mkdir()
    lines = [header, "aws_access_key_id = id", "aws_secret_access_key = se%cret", "aws_session_token = token"]
    (tmp_path / file).write_text("\n".join(["[default]", "aws_access_key_id = x", *lines]))
    found = credentials_of(config_of(aws_profile="nightly"))
    assert found is not None
    assert (found()["access_key_id"], found()["secret_access_key"], found()["token"]) == ("id", "se%cret", "token")
    monkeypatch.setenv("AWS_PROFILE", "nightly")
    by_variable = credentials_of(config_of())
    assert by_variable is not None
    assert by_variable()["access_key_id"] == "id"


def test_a_profile_without_keys_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"^profile weekly in {tmp_path}/.aws/credentials and .* has no aws_access"):
        credentials_of(config_of(aws_profile="weekly"))


def test_a_broken_file_of_profiles_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("TOPSECRET\n[weekly]\n")
    with pytest.raises(StorageError) as caught:
        credentials_of(config_of(aws_profile="weekly"))
    assert "TOPSECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_credentials_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    provide = credentials_of(config_of())
    assert provide is not None
    assert (provide()["access_key_id"], provide()["token"]) == ("id", "token")


def test_without_credentials_the_library_looks_for_them() -> None:
    assert credentials_of(config_of()) is None


def test_opening_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    stray = {"AWS_ENDPOINT_URL": "http://elsewhere", "AWS_REGION": "moon", "AWS_SKIP_SIGNATURE": "true"}
    for name, value in stray.items():
        monkeypatch.setenv(name, value)
    open_bucket(config_of(aws_access_key_id="id", aws_secret_access_key="secret"), lambda: False).close()
    assert {name: os.environ[name] for name in stray} == stray


def test_signatures_of_version_2_are_not_supported() -> None:
    config = config_of(signature_version="s3", aws_access_key_id="id", aws_secret_access_key="secret")
    with pytest.raises(ConfigError, match=r"signature_version: is s3, which is not supported; remove it"):
        open_bucket(config, lambda: False)


def test_a_missing_file_of_certificates_is_named(tmp_path: Path) -> None:
    config = config_of(ca_file=f"{tmp_path}/none", aws_access_key_id="id", aws_secret_access_key="secret")
    with pytest.raises(StorageError, match=rf"^ca_file {tmp_path}/none cannot be read: No such file"):
        open_bucket(config, lambda: False)


def test_no_secret_is_shown() -> None:
    config = config_of(aws_access_key_id="SECRETID", aws_secret_access_key="SECRET", proxy_url="http://u:SECRET@p:1")
    assert "SECRET" not in repr(config)
    credentials = credentials_of(config)
    assert credentials is not None
    lister = BucketLister(
        place="here", url="http://x/b", region="r", prefix="", credentials=credentials, timeout_s=1
    )
    assert "SECRET" not in repr(lister)


def test_without_credentials_the_error_says_where_to_set_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    config = config_of(endpoint_url="http://127.0.0.1:1", use_ssl=False, retry_time=0)
    with closing(open_bucket(config, lambda: False)) as storage, pytest.raises(StorageAwayError) as caught:
        list(storage.list())
    assert str(caught.value) == (
        "storage s3://bucket: there are no credentials, and no metadata service of the host answers; set "
        "aws_access_key_id_file and aws_secret_access_key_file, or aws_profile, in [DataBackend]"
    )


@pytest.mark.parametrize("address", ["http://127.0.0.1:9000", "https://[::1]", "http://10.1/"])
def test_a_bucket_cannot_be_named_in_front_of_an_address(address: str) -> None:
    config = config_of(
        endpoint_url=address, addressing_style="virtual", aws_access_key_id="id", aws_secret_access_key="secret"
    )
    with pytest.raises(StorageError, match=r"the address of the bucket is invalid; .* set addressing_style: path"):
        open_bucket(config, lambda: False)


def test_a_file_without_certificates_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("-----BEGIN CERTIFICATE-----\nnot base64 @@\n-----END CERTIFICATE-----\n")
    config = config_of(ca_file=str(file), aws_access_key_id="id", aws_secret_access_key="secret")
    with pytest.raises(ConfigError, match="ca_file"):
        open_bucket(config, lambda: False)
