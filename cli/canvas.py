"""What charts are drawn on: how wide standard output is, and what it can show."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.cli.charts import glyphs_for

if TYPE_CHECKING:
    from backyfs.cli.charts import Glyphs

_WIDEST = 160  # characters; a chart is not the clearer for more


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """A place for charts."""

    width: int  # characters
    glyphs: Glyphs
    colours: bool


def stdout_canvas() -> Canvas:
    """Return what standard output is. NO_COLOR is respected, see https://no-color.org."""
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    # Without a terminal, or in the last column of one, a line may be broken.
    width = min(shutil.get_terminal_size().columns - 1, _WIDEST)
    return Canvas(width=max(width, 20), glyphs=glyphs_for(sys.stdout.encoding), colours=colours)
