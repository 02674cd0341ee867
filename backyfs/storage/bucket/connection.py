"""From the configuration to a client of the store."""

from __future__ import annotations

import os
import re
import threading
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from backyfs.errors import ConfigError, StorageError
from backyfs.files import read_input
from backyfs.storage.bucket.credentials import credentials_of
from backyfs.storage.bucket.failures import invalid_address
from backyfs.storage.bucket.foreignnames import BucketLister
from backyfs.storage.bucket.outage import Patience
from backyfs.storage.bucket.requests import Requests
from backyfs.storage.bucket.storage import BucketStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from obstore.store import ClientConfig, S3Store

    from backyfs.config import ObjectStoreConfig
    from backyfs.storage.bucket.credentials import Provider

_DEFAULT_REGION = "us-east-1"
_CONNECT_S = 10
_LONGEST_REQUEST_S = 86_400  # `Requests` ends them
_MAX_CA_BYTES = 1 << 20
# What the library may take from the environment if the configuration has no credentials. Everything else beginning with
# AWS_ would be used in addition to the configuration.
_CREDENTIAL_VARIABLES = frozenset(
    {
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_METADATA_ENDPOINT",
        "AWS_ENDPOINT_URL_STS",
    }
)  # fmt: skip
_ENDS_IN_ADDRESS = re.compile(r"https?://[^/]*(\]|\.[0-9]+)(:[0-9]*)?(/|$)")  # cannot follow the name of a bucket
_environment = threading.Lock()


def open_bucket(
    config: ObjectStoreConfig, stop: Callable[[], bool], patience: Patience | None = None
) -> BucketStorage:
    """Open the storage in a bucket, by default with the patience that is configured. Nothing is sent.

    Raises:
        ConfigError: the library is missing, or the configuration cannot be used.
        StorageError: a file with credentials or certificates cannot be read.
    """
    patience = patience or Patience.of(config)
    credentials = credentials_of(config)
    return BucketStorage(
        _store(config, credentials),
        Requests(config.place + _route(config), patience=patience, stop=stop),
        place=config.place,
        attributes=None if config.storage_class is None else {"Storage-Class": config.storage_class},
        lister=None if credentials is None else _lister(config, credentials),
        paid_days=config.minimum_storage_days,
    )


def _store(config: ObjectStoreConfig, credentials: Provider | None) -> S3Store:
    try:
        from obstore.exceptions import BaseError  # noqa: PLC0415 - only this kind of storage needs it
        from obstore.store import S3Store  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"is {config.kind}, which needs the library obstore",
            section="DataBackend",
            key="type",
            remedy="install it: pip install 'backyfs[objectstore]'",
        ) from error
    if config.signature_version not in (None, "s3v4", "v4"):
        raise ConfigError(
            f"is {config.signature_version}, which is not supported",
            section="DataBackend",
            key="signature_version",
            remedy="remove it: requests are signed with version 4",
        )
    settings: dict[str, Any] = {
        "endpoint": endpoint_of(config),
        "region": config.region_name or _DEFAULT_REGION,
        "virtual_hosted_style_request": uses_virtual_hosts(config),
        "unsigned_payload": config.use_ssl if config.unsigned_payload is None else config.unsigned_payload,
    }
    if uses_virtual_hosts(config) and _ENDS_IN_ADDRESS.match(settings["endpoint"]):
        raise invalid_address(config.place)
    with _clean_environment(keeps_credentials=credentials is None):
        try:
            return S3Store(
                config.bucket_name,
                prefix=config.prefix or None,
                client_options=_client_options(config),
                # `Requests` repeats what failed.
                retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
                credential_provider=credentials,
                **settings,
            )
        except BaseError as error:
            raise _refused(config, error) from error


def _refused(config: ObjectStoreConfig, error: Exception) -> ConfigError:
    """Return the error for a configuration that the library does not accept; it says little about the reason."""
    key = next((name for name in ("ca_file", "proxy_url", "endpoint_url") if getattr(config, name) is not None), None)
    text = str(error)
    fact = f"is not accepted: {text.partition(chr(10))[0]}"
    return ConfigError(fact, section="DataBackend", key=key or "", remedy="correct it")


def _lister(config: ObjectStoreConfig, credentials: Provider) -> BucketLister:
    url = endpoint_of(config)
    return BucketLister(
        place=config.place,
        url=url if uses_virtual_hosts(config) else f"{url}/{config.bucket_name}",
        region=config.region_name or _DEFAULT_REGION,
        prefix=f"{config.prefix}/" if config.prefix else "",
        credentials=credentials,
        timeout_s=config.request_timeout,
        ca_file=config.ca_file,
        proxy_url=config.proxy_url,
    )


def endpoint_of(config: ObjectStoreConfig) -> str:
    """Return the URL that requests go to. It contains the bucket if the host names it."""
    if config.endpoint_url is None:
        url = f"http{'s' * config.use_ssl}://s3.{config.region_name or _DEFAULT_REGION}.amazonaws.com"
    else:
        url = config.endpoint_url.rstrip("/")
    scheme, _, host = url.partition("://")
    return f"{scheme}://{config.bucket_name}.{host}" if uses_virtual_hosts(config) else url


def uses_virtual_hosts(config: ObjectStoreConfig) -> bool:
    """Return whether requests name the bucket in the host: at AWS, elsewhere only if the configuration says so."""
    if config.addressing_style in (None, "auto"):
        # A certificate for *.s3.amazonaws.com does not cover bucket names with dots.
        return config.endpoint_url is None and "." not in config.bucket_name
    return config.addressing_style == "virtual"


def _client_options(config: ObjectStoreConfig) -> ClientConfig:
    options: ClientConfig = {
        "allow_http": endpoint_of(config).startswith("http:"),
        "connect_timeout": timedelta(seconds=_CONNECT_S),
        "timeout": timedelta(seconds=_LONGEST_REQUEST_S),
        "user_agent": "backyfs",
    }
    if config.proxy_url is not None:
        options["proxy_url"] = config.proxy_url
    if config.ca_file is not None:
        try:
            options["root_certificate"] = read_input(config.ca_file, _MAX_CA_BYTES)
        except OSError as error:
            raise StorageError(f"cannot be read: {error.strerror}", subject=f"ca_file {config.ca_file}") from error
    return options


def _route(config: ObjectStoreConfig) -> str:
    """Return which proxy requests go through, as a remark for messages."""
    if config.proxy_url is not None:
        return " (through proxy_url)"
    scheme = endpoint_of(config).partition(":")[0]
    names = [name for kind in (scheme, "all") for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY")]
    found = next((name for name in names if os.environ.get(name)), None)
    return "" if found is None else f" (through the proxy that {found} names, unless NO_PROXY excludes it)"


@contextmanager
def _clean_environment(*, keeps_credentials: bool) -> Iterator[None]:
    """Hide the variables that the library would use instead of, or in addition to, the configuration."""
    kept = _CREDENTIAL_VARIABLES if keeps_credentials else frozenset()
    with _environment:
        hidden = {
            name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_") and name not in kept
        }
        try:
            yield
        finally:
            os.environ.update(hidden)
