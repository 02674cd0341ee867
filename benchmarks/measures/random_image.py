"""The same backups and restore with data that cannot be compressed. For orientation: there are no targets."""

from benchmarks.figures import Result
from benchmarks.measures.backup import take_first_backup, take_unchanged_backup
from benchmarks.measures.registry import REGISTRY, Bench
from benchmarks.measures.restore import take_restore


@REGISTRY.measure("random", "first backup, unchanged backup and restore of random data, for orientation")
def random_image(bench: Bench) -> list[Result]:
    image = bench.images.random()
    return [
        *take_first_backup(bench, image, measure="first-backup", target=None),
        *take_unchanged_backup(bench, image, measure="unchanged-backup", target=None),
        *take_restore(bench, image, measure="restore", target=None),
    ]
