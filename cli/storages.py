"""The options for reaching a bucket. Keys are never among them, because everybody can see a command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import click

from backyfs.cli.options import real_path

if TYPE_CHECKING:
    from collections.abc import Callable

_Command = TypeVar("_Command", bound="Callable[..., object]")

_OPTIONS = (
    click.option("--endpoint", metavar="URL", help="Object store of s3://; default: AWS."),
    click.option("--region", metavar="REGION", help="Region of the bucket."),
    click.option(
        "--access-key-file", callback=real_path, metavar="FILE", help="File that contains the access key for s3://."
    ),
    click.option(
        "--secret-key-file", callback=real_path, metavar="FILE", help="File that contains the secret key for s3://."
    ),
    click.option("--profile", metavar="NAME", help="Profile in ~/.aws/credentials with the keys for s3://."),
)
BUCKET_OPTIONS = ("endpoint", "region", "access_key_file", "secret_key_file", "profile")


def bucket_options(command: _Command) -> _Command:
    """Add the options for a bucket, named as in `BUCKET_OPTIONS`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
