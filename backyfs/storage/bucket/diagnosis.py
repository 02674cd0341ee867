"""Find out which setting would make an object store answer, if it does not."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from backyfs.errors import BackyfsError
from backyfs.storage.bucket.connection import open_bucket, uses_virtual_hosts
from backyfs.storage.bucket.failures import NO_TLS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.config import ObjectStoreConfig

_PATIENCE_S = 3  # for each attempt


def find_setting(config: ObjectStoreConfig) -> str | None:
    """Return the setting that has to be changed, as in "addressing_style: path"; None: none of those tried helps."""
    hasty = replace(config, request_timeout=_PATIENCE_S, retry_time=0)
    error = _error_of(hasty)
    if error is None:
        return None
    # Keys and data would go over the line in plain text, so this is advised only if the store knows nothing else.
    may_be_plain = NO_TLS in error.statement
    for setting, variant in _variants(hasty, may_be_plain=may_be_plain):
        if _error_of(variant) is None:
            return setting
    return None


def _error_of(config: ObjectStoreConfig) -> BackyfsError | None:
    try:
        with closing(open_bucket(config, lambda: False)) as storage:
            next(storage.entries(""), None)
    except BackyfsError as error:
        return error
    return None


def _variants(config: ObjectStoreConfig, *, may_be_plain: bool) -> Iterator[tuple[str, ObjectStoreConfig]]:
    other: Literal["path", "virtual"] = "path" if uses_virtual_hosts(config) else "virtual"
    yield f"addressing_style: {other}", replace(config, addressing_style=other)
    url = config.endpoint_url
    if url is not None and (may_be_plain or not config.use_ssl):
        scheme = "http" if config.use_ssl else "https"
        url = f"{scheme}://{url.partition('://')[2]}"
        variant = replace(config, endpoint_url=url, use_ssl=not config.use_ssl)
        yield f"endpoint_url: {url}", variant
        yield f"endpoint_url: {url} and addressing_style: {other}", replace(variant, addressing_style=other)
