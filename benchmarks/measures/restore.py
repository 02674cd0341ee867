"""Restoring an image to a new file. The result is compared once, outside the measured time."""

import os

from benchmarks.figures import Result, Target, alternate, at_least, rates
from benchmarks.images import Image, settle
from benchmarks.measures.registry import REGISTRY, Bench


@REGISTRY.measure("restore", "restore to a new file, against zstd -d of the same image")
def restore(bench: Bench) -> list[Result]:
    return take_restore(bench, bench.images.ext4(), measure="restore", target=at_least(1.2))


def take_restore(bench: Bench, image: Image, *, measure: str, target: Target | None) -> list[Result]:
    """Measure the whole command; target and reference write new files in the same directory.

    zstd does not wait until its output is on the disk, so the ratio is that of a restore that does not wait either.
    """
    repository = bench.program.init(bench.workspace.fresh("repository"))
    repository.backup(image)
    archive = bench.references.zstd_archive(image)
    directory = bench.workspace.fresh("restored")
    restored, decompressed = (os.path.join(directory, name) for name in ("ours", "reference"))

    def ours(*options: str) -> float:
        if os.path.exists(restored):
            os.unlink(restored)
        settle(*_files(os.path.dirname(repository.config)))
        return repository.restore(image, restored, *options).wall_s

    ours_s, zstd_s, synced_s = alternate(
        bench.repeat,
        lambda: ours("--no-sync"),
        lambda: bench.references.zstd_decompress_s(archive, decompressed),
        ours,
    )
    bench.runner.run(["cmp", "--", image.path, restored])
    for path in (restored, decompressed, archive):
        os.unlink(path)
    return [
        Result(
            measure=measure,
            what=image.name,
            ours=rates("restore", image.size_bytes, ours_s),
            reference=rates("zstd -d", image.size_bytes, zstd_s),
            target=target,
        ),
        Result(
            measure=measure, what=f"{image.name}, on the disk", ours=rates("restore", image.size_bytes, synced_s)
        ),
    ]


def _files(directory: str) -> list[str]:
    return [os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names]
