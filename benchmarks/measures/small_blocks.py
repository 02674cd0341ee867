"""A repository of 4 KiB blocks: the cost per block, where the cost per byte is small."""

import itertools

from benchmarks.figures import Result, alternate, least, less_than
from benchmarks.images import SMALL_BLOCK_BYTES, settle
from benchmarks.measures.registry import REGISTRY, Bench

LIMIT_S = 12.0


@REGISTRY.measure("small-blocks", "first backup of 100,000 blocks of 4 KiB, whole command")
def small_blocks(bench: Bench) -> list[Result]:
    image = bench.images.small_blocks()
    # Each run has a separate directory, all removed at the end: ext4 skips inodes that were deleted in the
    # last minutes (`recently_deleted` in its ialloc.c), so removing one run's files slowed the next.
    numbers = itertools.count()

    def ours() -> float:
        directory = bench.workspace.fresh(f"small-blocks-{next(numbers)}")
        repository = bench.program.init(directory, block_size=SMALL_BLOCK_BYTES)
        settle(image.path)
        return repository.backup(image).wall_s

    [ours_s] = alternate(bench.repeat, ours)
    blocks = image.size_bytes // SMALL_BLOCK_BYTES
    return [
        Result(
            measure="small-blocks",
            what=f"{blocks:,} blocks",
            ours=least("backup", "s", ours_s),
            target=less_than(LIMIT_S),
            note=f"{min(ours_s) / blocks * 1e6:.0f} µs a block",
        )
    ]
