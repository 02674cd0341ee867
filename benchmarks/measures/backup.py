"""Backups of an image: the first one, which stores everything, and one that finds nothing changed."""

from benchmarks.figures import Result, Target, alternate, at_least, rates
from benchmarks.images import Image, settle
from benchmarks.measures.registry import REGISTRY, Bench
from benchmarks.runner import BenchmarkError


@REGISTRY.measure("first-backup", "backup into a new repository, against zstd -1 -T2")
def first_backup(bench: Bench) -> list[Result]:
    return take_first_backup(bench, bench.images.ext4(), measure="first-backup", target=at_least(1.0))


@REGISTRY.measure("unchanged-backup", "second backup of the same image, against reading and hashing it")
def unchanged_backup(bench: Bench) -> list[Result]:
    return take_unchanged_backup(bench, bench.images.ext4(), measure="unchanged-backup", target=at_least(0.5))


def take_first_backup(bench: Bench, image: Image, *, measure: str, target: Target | None) -> list[Result]:
    """Measure the whole command; every run has a separate repository, made before the clock starts."""

    def ours() -> float:
        repository = bench.program.init(bench.workspace.fresh("repository"))
        settle(image.path)
        return repository.backup(image).wall_s

    ours_s, zstd_s, bare_s = alternate(
        bench.repeat,
        ours,
        lambda: bench.references.zstd_compress_s(image),
        lambda: bench.references.bare_store_s(image),
    )
    rate = rates("backup", image.size_bytes, ours_s)
    zstd = rates("zstd -1 -T2", image.size_bytes, zstd_s)
    bare = rates("bare threads, store", image.size_bytes, bare_s)
    return [
        Result(measure=measure, what=image.name, ours=rate, reference=zstd, target=target),
        Result(measure=measure, what=image.name, ours=rate, reference=bare),
    ]


def take_unchanged_backup(bench: Bench, image: Image, *, measure: str, target: Target | None) -> list[Result]:
    """Measure the time for the blocks: that of the command minus that of its start.

    The start is a backup of one block into the same repository: interpreter, opening, commits. `ls`, which
    commits nothing, is shown as the stricter choice.
    """
    tiny = bench.images.tiny()
    repository = bench.program.init(bench.workspace.fresh("repository"))
    repository.backup(image)
    repository.backup(tiny)

    def backup_s(source: Image) -> float:
        settle(source.path)
        return repository.backup(source).wall_s

    whole_s, start_s, ls_s, hash_s = alternate(
        bench.repeat,
        lambda: backup_s(image),
        lambda: backup_s(tiny),
        lambda: repository.ls().wall_s,
        lambda: bench.references.bare_hash_s(image),
    )
    reference = rates("bare threads, hash", image.size_bytes, hash_s)
    results = []
    for label, starts_s, bound in (("a tiny backup", start_s, target), ("ls", ls_s, None)):
        if (start := min(starts_s)) < (whole := min(whole_s)):
            results.append(
                Result(
                    measure=measure,
                    what=f"{image.name}, less {label}",
                    ours=rates("backup, net", image.size_bytes, (taken_s - start for taken_s in whole_s)),
                    reference=reference,
                    target=bound,
                    note=f"whole {whole:.2f} s, start {start:.2f} s",
                )
            )
        elif bound is not None:
            raise BenchmarkError(f"the blocks of {image.name} take no time that stands out from {label}")
    return results
