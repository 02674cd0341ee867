"""Peak memory of a backup, which must not depend on the size or sparseness of the image."""

from benchmarks.figures import MIB, Result, Samples, alternate, at_most, less_than, most
from benchmarks.images import Image
from benchmarks.measures.registry import REGISTRY, Bench

LIMIT_MIB = 250
GROWTH = 1.1


@REGISTRY.measure("memory", "peak resident memory of a first backup, and whether a larger image needs more")
def memory(bench: Bench) -> list[Result]:
    plain, sparse = bench.images.ext4(), bench.images.sparse()
    sides = alternate(bench.repeat, lambda: _peak_mib(bench, plain), lambda: _peak_mib(bench, sparse))
    # A limit is kept if the worst run keeps it, so here the greatest sample counts.
    samples = [most(image.name, "MiB", values) for image, values in zip((plain, sparse), sides, strict=True)]
    return [
        *(_bounded(image, values) for image, values in zip((plain, sparse), samples, strict=True)),
        Result(
            measure="memory",
            what=f"{sparse.name} / {plain.name}",
            ours=samples[1],
            reference=samples[0],
            target=at_most(GROWTH),
        ),
    ]


def _bounded(image: Image, samples: Samples) -> Result:
    return Result(
        measure="memory",
        what=f"{image.name}, {image.size_bytes // MIB} MiB",
        ours=samples,
        target=less_than(LIMIT_MIB),
    )


def _peak_mib(bench: Bench, image: Image) -> float:
    # The kernel passes the peak of a process on to the program that its child executes, so the figure is
    # never below the benchmark's own peak: about 40 MiB, because work that needs more runs in children.
    repository = bench.program.init(bench.workspace.fresh("repository"))
    return repository.backup(image).peak_rss_bytes / MIB
