"""The time of every command before it does anything: the interpreter and imports."""

import re

from benchmarks.figures import Result, alternate, at_most, least
from benchmarks.measures.registry import REGISTRY, Bench

REPEAT = 5                                  # short runs, so more of them whatever --repeat says
LS_CPU_S = 0.3
HELP_CPU_S = 0.15
IMPORT_LINE = re.compile(r"^import time:\s+\d+ \|\s+\d+ \|\s*(\S+)$", re.MULTILINE)


@REGISTRY.measure("cli-start", "processor time and imports of `ls` and `--help`")
def cli_start(bench: Bench) -> list[Result]:
    image = bench.images.tiny()
    repository = bench.program.init(bench.workspace.fresh("repository"))
    repository.backup(image)
    repository.ls()
    bench.program.run("--help")
    ls_s, help_s = alternate(
        REPEAT, lambda: repository.ls().cpu_s, lambda: bench.program.run("--help").cpu_s
    )
    return [
        Result(
            measure="cli-start",
            what="ls, user + system",
            ours=least("ls", "s CPU", ls_s),
            target=at_most(LS_CPU_S),
        ),
        Result(
            measure="cli-start",
            what="--help, user + system",
            ours=least("--help", "s CPU", help_s),
            target=at_most(HELP_CPU_S),
        ),
        _unwanted_imports(bench, {"sqlalchemy", "pyfuse3"}, "--help"),
        _unwanted_imports(bench, {"pyfuse3"}, "-c", repository.config, "ls"),
    ]


def _unwanted_imports(bench: Bench, unwanted: set[str], *arguments: str) -> Result:
    """Count the packages that this command imports although it should not."""
    text = bench.program.import_times(*arguments)
    imported = {match.group(1).partition(".")[0] for match in IMPORT_LINE.finditer(text)}
    found = sorted(unwanted & imported)
    return Result(
        measure="cli-start",
        what=f"{arguments[-1]} imports {' or '.join(sorted(unwanted))}",
        ours=least(arguments[-1], "packages", [float(len(found))]),
        target=at_most(0),
        note=", ".join(found),
    )
