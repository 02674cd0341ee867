"""The parts of an image that `attach` mounted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.attach.attachment import Attachment
    from backyfs.reports.values import Row

COLUMNS = ("partition", "size_bytes", "type", "label", "state", "mountpoint", "device")
PIPE_COLUMNS = ("directory", *COLUMNS, "remark")


def as_rows(attachment: Attachment, render: Callable[[object], object] = str) -> list[Row]:
    """Return a row for each partition; `render` words the commands that can follow."""
    return [
        {
            "directory": attachment.directory,
            "uid": attachment.version_uid,
            "image": attachment.image,
            "partition": part.name,
            "size_bytes": part.size_bytes,
            "type": part.content.kind,
            "label": part.content.label,
            "file_system_uid": part.content.uid,
            "state": part.outcome.value,
            "mountpoint": part.mountpoint,
            "options": part.options,
            "device": part.device,
            "remark": part.remark,
            "commands": [str(render(line)) for line in part.commands],
        }
        for part in attachment.parts
    ]
