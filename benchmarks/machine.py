"""The facts without which figures mean nothing: processor, memory, kernel, file system, versions."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Sequence

from benchmarks.runner import Runner

PROGRAMS = (["zstd", "-q", "--version"], ["restic", "version"], ["borg", "--version"])
PACKAGES = ("backyfs", "blake3", "zstandard", "cryptography", "SQLAlchemy", "pyfuse3")


def facts(runner: Runner, work_dir: str) -> dict[str, str]:
    """Return names and values, in the order in which they are shown."""
    return {
        "processor": _field("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "file system": _file_system(work_dir),
        "python": platform.python_version(),
        **{argv[0]: _program_version(runner, argv) for argv in PROGRAMS},
        **{name: _package_version(name) for name in PACKAGES},
    }


def _field(path: str, name: str) -> str:
    """Return the first value with this name in a file of lines `name : value`."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return "unknown"


def _file_system(path: str) -> str:
    """Return the type of the file system that holds `path`."""
    best, kind = "", "unknown"
    with open("/proc/self/mounts", encoding="utf-8") as file:
        for line in file:
            _, place, this_kind, *_ = line.split()
            inside = os.path.commonpath([place, os.path.realpath(path)]) == place
            if inside and len(place) >= len(best):
                best, kind = place, this_kind
    return kind


def _program_version(runner: Runner, argv: Sequence[str]) -> str:
    if shutil.which(argv[0]) is None:
        return "not installed"
    return runner.run(argv).stdout.strip().removeprefix(argv[0]).strip()


def _package_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
