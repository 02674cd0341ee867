"""Arguments that several commands have."""

from __future__ import annotations

import click

from backyfs.cli.text import stored_text

# The argument `version`: what `metadata.versions.find_version` takes.
version_argument = click.argument("version", metavar="VERSION", callback=stored_text)
