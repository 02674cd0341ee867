"""Backups with hints: their cost grows with the changes, not with the image."""

import json
import os
import random

from benchmarks.figures import MIB, Result, alternate, least, less_than, most
from benchmarks.images import Image
from benchmarks.measures.registry import REGISTRY, Bench

BLOCK_BYTES = 4 << 20
HUGE_BLOCKS = (10 << 40) // BLOCK_BYTES
CHANGED = HUGE_BLOCKS // 10_000  # 0.01 %: 262 blocks, 1 GiB to read
SMALLER = 10                     # the other image has a tenth of the blocks, and as many changes
CHANGED_BYTES = 4096             # of each changed block
LIMIT_S = 5.0
LIMIT_MIB = 300
PER_BLOCK_S = 1.0


@REGISTRY.measure("hints", "a backup with hints of an image of 10 TiB, 0.01 % changed, against one of 1 TiB")
def hints(bench: Bench) -> list[Result]:
    sides = [Changing(bench, blocks) for blocks in (HUGE_BLOCKS, HUGE_BLOCKS // SMALLER)]
    huge, smaller = alternate(bench.repeat, *(side.back_up for side in sides))
    what = f"10 TiB, {CHANGED} blocks of 4 MiB changed"
    return [
        Result(measure="hints", what=what, ours=least("backup", "s", huge), target=less_than(LIMIT_S)),
        Result(
            measure="hints", what="what 9 TiB more take", target=less_than(PER_BLOCK_S),
            ours=least("difference", "s", [more - less for more, less in zip(huge, smaller, strict=True)]),
        ),
        Result(measure="hints", what=what, ours=most("peak", "MiB", sides[0].peaks_mib), target=less_than(LIMIT_MIB)),
    ]  # fmt: skip


class Changing:
    """A sparse image in which always the same blocks change, and its repository."""

    def __init__(self, bench: Bench, blocks: int) -> None:
        directory = bench.workspace.fresh(f"changing{blocks}")
        self._random = random.Random(blocks)
        self._places = sorted(self._random.sample(range(blocks), CHANGED))
        self._image = Image(name="changing", path=os.path.join(directory, "image"), size_bytes=blocks * BLOCK_BYTES)
        self._hints = os.path.join(directory, "hints.json")
        self._repository = bench.program.init(os.path.join(directory, "repository"))
        self.peaks_mib: list[float] = []
        with open(self._image.path, "wb") as file:
            file.truncate(self._image.size_bytes)
        extents = [{"offset": at * BLOCK_BYTES, "length": BLOCK_BYTES, "exists": "true"} for at in self._places]
        with open(self._hints, "w", encoding="ascii") as file:
            json.dump(extents, file)
        self._change(BLOCK_BYTES)
        self._repository.backup(self._image)

    def back_up(self) -> float:
        """Change the image and back it up; return the seconds."""
        self._change(CHANGED_BYTES)
        run = self._repository.backup(self._image, "-r", self._hints, "-f", f"{self._image.name}@latest")
        self.peaks_mib.append(run.peak_rss_bytes / MIB)
        return run.wall_s

    def _change(self, size: int) -> None:
        with open(self._image.path, "r+b") as file:
            for place in self._places:
                file.seek(place * BLOCK_BYTES)
                file.write(self._random.randbytes(size))
            file.flush()
            os.fsync(file.fileno())
