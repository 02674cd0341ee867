"""`backyfs diff-meta`: compare two versions block by block."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import complete_versions
from backyfs.cli.canvas import stdout_canvas
from backyfs.cli.charts import Kind, picture
from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_rows
from backyfs.cli.stdout import run_for_output
from backyfs.cli.text import stored_text
from backyfs.engine.versions.diff import BlockState, DiffRun, compared_versions
from backyfs.geometry import block_count
from backyfs.reports.diff_meta import as_rows
from backyfs.text import human_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backyfs.cli.charts import Glyphs
    from backyfs.cli.invocation import Invocation

_log = logging.getLogger("backyfs.cli")

_WORDS = {
    BlockState.SAME: "SAME     ",
    BlockState.HOLE: "SAME     ",
    BlockState.DIFFERENT: "DIFF     ",
    BlockState.NEW_LEFT: "NEW LEFT ",
    BlockState.NEW_RIGHT: "NEW RIGHT",
}
_ONE_SIDED = frozenset((BlockState.NEW_LEFT, BlockState.NEW_RIGHT))
_LINES_AT_ONCE = 4096
_MAP_LINES = 16


@click.command()
@click.argument("left", metavar="VERSION", callback=stored_text, shell_complete=complete_versions)
@click.argument("right", metavar="VERSION", callback=stored_text, shell_complete=complete_versions)
@click.option("--map", "as_map", is_flag=True, help="Draw a picture of the image instead of a line for each block.")
@click.option(
    "--all", "all_blocks", is_flag=True, help="With -m, continue past the first block that only one version has."
)
@click.pass_obj
@run_for_output
def command(invocation: Invocation, left: str, right: str, *, as_map: bool, all_blocks: bool) -> None:
    """Compare two versions block by block, by which stored blocks they use; no stored block is read.

    Prints SAME, DIFF, NEW LEFT or NEW RIGHT and the number of the block; only the first version has a NEW LEFT block.
    JSON has the same in runs of blocks. With -m the output ends where that of backy2 does, before the first block that
    only one of the versions has; --all continues.
    """
    with (
        invocation.open_repository() as repository,
        compared_versions(repository, left, right, find_holes=as_map) as compared,
    ):
        if invocation.form is OutputForm.JSON:
            print_rows(invocation, as_rows(compared.runs), ())
        elif as_map:
            size_bytes = max(compared.left.size_bytes, compared.right.size_bytes)
            _draw(compared.runs, size_bytes, repository.block_size)
        elif all_blocks or invocation.form is not OutputForm.PIPE:
            _print(compared.runs)
        else:
            _print(_as_far_as_backy2(compared.runs))


def _as_far_as_backy2(runs: Iterable[DiffRun]) -> Iterator[DiffRun]:
    for run in runs:
        if run.state in _ONE_SIDED:
            # backy2 ends with an error there, and so it does not report either that something is missing.
            _log.error("block %d and maybe more are in one version only, and not listed; see --all", run.first)
            return
        yield run


def _print(runs: Iterable[DiffRun]) -> None:
    for run in runs:
        if run.state is BlockState.ABSENT:
            continue
        word = _WORDS[run.state]
        for start in range(run.first, run.first + run.count, _LINES_AT_ONCE):
            stop = min(start + _LINES_AT_ONCE, run.first + run.count)
            click.echo("\n".join([f"{word} {index}" for index in range(start, stop)]))


def _draw(runs: Iterable[DiffRun], size_bytes: int, block_size: int) -> None:
    canvas = stdout_canvas()
    kinds = _kinds(canvas.glyphs)
    numbers = {
        BlockState.ABSENT: 0,
        BlockState.HOLE: 1,
        BlockState.SAME: 2,
        BlockState.NEW_LEFT: 3,
        BlockState.NEW_RIGHT: 3,
        BlockState.DIFFERENT: 4,
    }
    blocks: Counter[int] = Counter()

    def counted() -> Iterator[tuple[int, int, int]]:
        for run in runs:
            blocks[numbers[run.state]] += run.count
            yield run.first, run.count, numbers[run.state]

    lines, scale = picture(
        counted(), block_count(size_bytes, block_size), kinds, canvas.width, _MAP_LINES, colours=canvas.colours
    )
    for line in lines:
        click.echo(line)
    click.echo(f"one character: {scale} block{'s' if scale > 1 else ''}, {human_size(scale * block_size)}")
    for number, kind in enumerate(kinds):
        if blocks[number]:
            glyph = f"\x1b[{kind.colour}m{kind.glyph}\x1b[0m" if canvas.colours else kind.glyph
            click.echo(f"{glyph} {kind.name}: {blocks[number]} ({human_size(blocks[number] * block_size)})")


def _kinds(glyphs: Glyphs) -> tuple[Kind, ...]:
    """Return what is on the map. If several kinds fall on one character, the last of them is shown."""
    return (
        Kind(glyph=glyphs.absent, name="not backed up", colour="2"),
        Kind(glyph=glyphs.hole, name="holes", colour="2"),
        Kind(glyph=glyphs.same, name="unchanged", colour="32"),
        Kind(glyph=glyphs.new, name="new, in one version only", colour="36"),
        Kind(glyph=glyphs.changed, name="changed", colour="33"),
    )
