"""Find out which setting would make an object store answer, if it does not."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from backyfs.errors import BackyfsError
from backyfs.storage.bucket.connection import open_bucket, uses_virtual_hosts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.config import ObjectStoreConfig

_PATIENCE_S = 3  # for each attempt


def find_setting(config: ObjectStoreConfig) -> str | None:
    """Return the setting that has to be changed, as in "addressing_style: path"; None: none of those tried helps."""
    for setting, variant in _variants(replace(config, request_timeout=_PATIENCE_S, retry_time=0)):
        try:
            with closing(open_bucket(variant, lambda: False)) as storage:
                next(storage.entries(""), None)
        except BackyfsError:
            continue
        return setting
    return None


def _variants(config: ObjectStoreConfig) -> Iterator[tuple[str, ObjectStoreConfig]]:
    other: Literal["path", "virtual"] = "path" if uses_virtual_hosts(config) else "virtual"
    yield f"addressing_style: {other}", replace(config, addressing_style=other)
    url = config.endpoint_url
    if url is not None:
        scheme, _, rest = url.partition("://")
        scheme = "http" if scheme == "https" else "https"
        variant = replace(config, endpoint_url=f"{scheme}://{rest}", use_ssl=scheme == "https")
        yield f"endpoint_url: {scheme}://{rest}", variant
        yield f"endpoint_url: {scheme}://{rest} and addressing_style: {other}", replace(variant, addressing_style=other)
