"""The command: makes the images, takes the measures, prints the table.

Exit status 0: every target was reached; 1: one was missed or could not be measured; 2: wrong usage.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from benchmarks import machine, report
from benchmarks.images import CHUNK_BYTES, STANDARD_MIB, Images
from benchmarks.measures.registry import REGISTRY, Bench, Measure
from benchmarks.program import Program
from benchmarks.references import References
from benchmarks.runner import BenchmarkError, Runner
from benchmarks.workspace import Workspace, default_path, open_workspace

if TYPE_CHECKING:
    from benchmarks.figures import Result

# Images (the sparse one has the data of the first), the largest repository, a restored image and its
# reference, the archive: less than this many times the size of the ext4 image.
SPACE_FACTOR = 6
SMALLEST_MIB = 64
NAMES = tuple(measure.name for measure in REGISTRY)


def chosen(only: Sequence[str], *, peers: bool) -> list[Measure]:
    """Return the measures to take, in the order of the report."""
    if only:
        return [measure for measure in REGISTRY if measure.name in only or (peers and measure.peers)]
    return [measure for measure in REGISTRY if peers or not measure.peers]


def take(bench: Bench, wanted: Sequence[Measure]) -> report.Report:
    """Take the measures one after the other; if one fails, the others are still taken."""
    results: list[Result] = []
    failures: list[report.Failure] = []
    for measure in wanted:
        start_s = time.monotonic()
        print(f"{measure.name} …", end=" ", file=sys.stderr, flush=True)
        try:
            results += measure.take(bench)
        except (BenchmarkError, OSError) as error:
            failures.append(report.Failure(measure=measure.name, reason=str(error)))
        print(f"{time.monotonic() - start_s:.0f} s", file=sys.stderr)
    return report.Report(
        machine=machine.facts(bench.runner, bench.workspace.path),
        options={"repeat": bench.repeat, "size_mib": bench.images.size_mib},
        results=results,
        failures=failures,
    )


def environment(workspace: Workspace) -> dict[str, str]:
    """Return our environment with an empty home, and without variables that change how Python starts."""
    refused = ("PYTHON", "XDG_", "BACKYFS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(refused)}
    return {**kept, "HOME": workspace.home, "TMPDIR": workspace.runs, "LC_ALL": "C.UTF-8"}


def run(
    workspace: Workspace, runner: Runner, wanted: Sequence[Measure], *, repeat: int, size_mib: int
) -> report.Report:
    """Make a bench and take the measures with it."""
    program = Program(runner=runner)
    program.require()
    workspace.require_space(SPACE_FACTOR * size_mib << 20)
    bench = Bench(
        workspace=workspace,
        runner=runner,
        images=Images(workspace=workspace, runner=runner, size_mib=size_mib),
        program=program,
        references=References(workspace=workspace, runner=runner),
        repeat=repeat,
    )
    return take(bench, wanted)


@click.command(help="Measure backyfs against references that are measured in the same run.")
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Take this measure; may be repeated.")
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Runs of each side.")
@click.option("--work-dir", default=default_path, help="Where images and repositories lie (new or empty).")
@click.option("--keep", is_flag=True, help="Keep the images for the next run.")
@click.option("--peers", is_flag=True, help="Also measure restic and borg.")
@click.option(
    "--size-mib",
    default=STANDARD_MIB,
    show_default=True,
    type=click.IntRange(SMALLEST_MIB),
    help="Size of the ext4 image, the others with it. Targets are stated for the default.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write every figure to this file.")
@click.option("--list", "only_list", is_flag=True, help="List the measures and do nothing.")
def main(
    *, only: tuple[str, ...], repeat: int, work_dir: str, keep: bool, peers: bool, size_mib: int,
    json_file: str | None, only_list: bool,
) -> None:  # fmt: skip
    if only_list:
        for measure in REGISTRY:
            click.echo(f"{measure.name:18}{measure.summary}{' (--peers)' if measure.peers else ''}")
        return
    runner = Runner({})
    try:
        with runner.receiving_signals(), open_workspace(work_dir, keep=keep) as workspace:
            runner.environment.update(environment(workspace))
            size_mib -= size_mib % (CHUNK_BYTES >> 20)
            found = run(workspace, runner, chosen(only, peers=peers), repeat=repeat, size_mib=size_mib)
    except BenchmarkError as error:
        raise click.ClickException(str(error)) from error
    click.echo(report.table(found))
    if size_mib != STANDARD_MIB:
        click.echo(f"\nImages of {size_mib} MiB: the targets are stated for {STANDARD_MIB} MiB.")
    if json_file:
        with open(json_file, "w", encoding="utf-8") as file:
            file.write(report.document(found))
    sys.exit(0 if found.passed else 1)


if __name__ == "__main__":
    main()
