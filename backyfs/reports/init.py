"""A repository that was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.engine.setup.initdb import DatabaseReport
    from backyfs.engine.setup.initialize import InitReport
    from backyfs.reports.values import Object


def as_object(report: InitReport) -> Object:
    """Return where `init` made everything."""
    places = report.places
    return {
        "configuration": places.config_file,
        "key_file": places.key_file if report.key_check else None,
        "key": report.key_check,
        "database": report.database,
        "storage": places.storage_name,
        "block_size": report.block_size,
    }


def database_as_object(report: DatabaseReport) -> Object:
    """Return the repository that `initdb` made or found."""
    return {
        "configuration": report.configuration,
        "database": report.database,
        "key": report.key_check,
        "block_size": report.block_size,
        "uid": report.uid,
    }
