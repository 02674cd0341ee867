"""Find out how wide standard output is and what it can show, for charts."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.cli.charts import glyphs_for

if TYPE_CHECKING:
    from backyfs.cli.charts import Glyphs

_WIDEST = 160  # characters; wider charts are not clearer


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """The properties of an output for charts."""

    width: int  # characters
    glyphs: Glyphs
    colours: bool


def stdout_canvas() -> Canvas:
    """Return the canvas of standard output. NO_COLOR is respected, see https://no-color.org."""
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    # Leave the last column free: a terminal may wrap a line that fills it.
    width = min(shutil.get_terminal_size().columns - 1, _WIDEST)
    return Canvas(width=max(width, 20), glyphs=glyphs_for(sys.stdout.encoding), colours=colours)
