"""Everything that reads bytes or text from outside: how it is called, and what it may raise.

A parser returns something or raises an error of ours; it never raises another one, whatever it is given. To let chance
come deeper, most get content wrapped as their writer wraps it: compressed, and with the checks that it would fail.
"""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

import click
import zstandard

from backyfs.catalog.index import unpack_index
from backyfs.catalog.objects import INDEX_NAME, REPOSITORY_NAME, Kind, Seal, pack_object, page_name, version_name
from backyfs.catalog.pages import unpack_page
from backyfs.catalog.repository import open_repository_object, read_open_part
from backyfs.catalog.versions import unpack_version
from backyfs.cli.moments import MOMENT
from backyfs.cli.sizes import Size
from backyfs.cli.tags import TAGS
from backyfs.config.document import Document
from backyfs.config.loader import build
from backyfs.engine.transfer.backy2_format import read_backy2_export
from backyfs.engine.transfer.export_format import read_export
from backyfs.errors import BackyfsError
from backyfs.hints import block_hints, parse_hints
from backyfs.images.partitions import describe, read_partitions
from backyfs.keys.recovery import read_page
from backyfs.metadata.maps.blockmap import unpack
from backyfs.sealing import encryption_version

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 4096
IMAGE_BYTES = 1 << 20  # of an image whose beginning is given
MOST_CONTENT = 1 << 16  # what is given has no more bytes
VERSION = "9a644f0b-8a57-4b1d-a0b5-a0f30f5b2c1e"
PAGE = "6b1de0b5-a0f3-4f0b-8a57-0f5b2c1e9a64"
PLAIN = Seal(repository="0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3", key=None)
EXPECTED = (BackyfsError, click.BadParameter)

_compress = zstandard.ZstdCompressor(level=1).compress


def _hints(content: bytes) -> None:
    block_hints(parse_hints(content, "hints"), 1 << 40, BLOCK)


def _config(content: bytes) -> None:
    build(Document([("backyfs.cfg", content.decode("utf-8", "replace"))]), {"HOME": "/root"})


def _partitions(content: bytes) -> None:
    image = content.ljust(IMAGE_BYTES, b"\0")
    table = read_partitions(lambda offset, size: image[offset : offset + size], len(image))
    for partition in table.partitions:
        assert 0 <= partition.start < partition.start + partition.size <= IMAGE_BYTES
    describe(table).encode(errors="replace")


def _version(content: bytes) -> None:
    unpack_version(VERSION, PLAIN, pack_object(Kind.VERSION, version_name(VERSION), PLAIN, content))


def _page(content: bytes) -> None:
    unpack_page(PAGE, PLAIN, pack_object(Kind.PAGE, page_name(PAGE), PLAIN, content))


def _index(content: bytes) -> None:
    unpack_index(PLAIN, pack_object(Kind.INDEX, INDEX_NAME, PLAIN, content))


def _repository(content: bytes) -> None:
    open_part, _, rest = content.partition(b"\n")
    open_repository_object(
        read_open_part(pack_object(Kind.REPOSITORY, REPOSITORY_NAME, PLAIN, rest, open_part[:4096])), None
    )


def _sealed(number: int, content: bytes) -> None:
    scheme = encryption_version(number)
    for size in (0, 1, BLOCK, len(content)):
        try:
            scheme.open(content, bytes(32), size)
        except BackyfsError:
            continue


def _segments(content: bytes) -> None:
    seekable = encryption_version(2).seekable
    assert seekable is not None
    for size, pieces in ((BLOCK, range(1)), (5 << 18, range(1, 3))):
        try:
            seekable.open_range(lambda at, length: content[at : at + length], bytes(32), size, pieces)
        except BackyfsError:
            continue


def _words(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    for convert in (MOMENT.convert, Size().convert, TAGS.convert):
        try:
            convert(text, None, None)
        except EXPECTED:
            continue


PARSERS: dict[str, Callable[[bytes], object]] = {
    "hints": _hints,
    "config": _config,
    "partitions": _partitions,
    "export": lambda content: list(read_export(io.BytesIO(content))),
    "export-lines": lambda content: list(read_export(io.BytesIO(_compress(content)))),
    "export-backy2": lambda content: list(read_backy2_export(io.BytesIO(content), BLOCK)),
    "catalog-object": lambda content: unpack_page(PAGE, PLAIN, content),
    "catalog-version": _version,
    "catalog-page": _page,
    "catalog-repository": _repository,
    "catalog-index": _index,
    "block-map": unpack,
    "block-map-entries": lambda content: unpack(_compress(content)),
    "sealed-0": partial(_sealed, 0),
    "sealed-1": partial(_sealed, 1),
    "sealed-2": partial(_sealed, 2),
    "segments": _segments,
    "recovery-page": lambda content: read_page(content.decode("utf-8", "replace")),
    "words": _words,
}
