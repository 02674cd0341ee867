"""Run one program at a time and return its cost: wall time, processor time, peak memory.

The only module that starts processes and receives signals. Every child is waited for or, when the benchmark is
stopped, terminated by its process id, never by name.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

TERMINATE_TIMEOUT_S = 10.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The cost and the output of a finished program."""

    wall_s: float
    cpu_s: float           # user and system, of the child and of those it waited for
    peak_rss_bytes: int
    stdout: str
    stderr: str


class BenchmarkError(Exception):
    """A measure cannot be taken. The message says why."""


class ProgramFailedError(BenchmarkError):
    """A program ended with an exit status other than 0."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr
        last_lines = " | ".join(stderr.strip().splitlines()[-3:])
        super().__init__(f"{' '.join(argv)}: exit status {returncode}: {last_lines}")


class Runner:
    """Starts programs in the main thread, with one environment for all of them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._spawning = False
        self._stopped_by: int | None = None
        self._has_raised = False

    @contextlib.contextmanager
    def receiving_signals(self) -> Iterator[None]:
        """End the `with` block by SystemExit when a signal asks the benchmark to stop."""
        before = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, signum: int, _frame: FrameType | None) -> None:
        if self._stopped_by is not None:
            return  # A second signal must not interrupt the cleanup after the first.
        self._stopped_by = signum
        if not self._spawning:
            self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        # Only once, because programs started afterwards clean up, such as umount.
        if self._stopped_by is not None and not self._has_raised:
            self._has_raised = True
            raise SystemExit(128 + self._stopped_by)

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
        discard_stdout: bool = False,
    ) -> Run:
        """Run `argv` to its end and return its cost; `environment` is added to the runner's own.

        Raises:
            ProgramFailedError: its exit status is not 0.
            BenchmarkError: it cannot be started.
        """
        # Files, not pipes: a full pipe would make the child wait for us, and we wait for the child.
        with tempfile.TemporaryFile() as stderr, tempfile.TemporaryFile() as stdout:
            start_s = time.perf_counter()
            output = subprocess.DEVNULL if discard_stdout else stdout.fileno()
            full_environment = {**self.environment, **(environment or {})}
            child = self._spawn(argv, output, stderr.fileno(), cwd, full_environment)
            try:
                self._spawning = False
                self._raise_if_stopped()
                _, status, usage = os.wait4(child.pid, 0)
                wall_s = time.perf_counter() - start_s
                child.returncode = os.waitstatus_to_exitcode(status)
            finally:
                _terminate(child)
            if child.returncode:
                raise ProgramFailedError(argv, child.returncode, _text(stderr.fileno()))
            return Run(
                wall_s=wall_s,
                cpu_s=usage.ru_utime + usage.ru_stime,
                peak_rss_bytes=usage.ru_maxrss << 10,  # Linux counts KiB.
                stdout=_text(stdout.fileno()),
                stderr=_text(stderr.fileno()),
            )

    def _spawn(
        self, argv: Sequence[str], stdout: int, stderr: int, cwd: str | None, environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        # A signal that arrives during Popen would leave an unknown child. So the signal is kept until `run` has
        # the child and has entered the `try` that ends it.
        self._spawning = True
        try:
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=cwd, env=environment
            )
        except OSError as error:
            self._spawning = False
            self._raise_if_stopped()
            raise BenchmarkError(f"{argv[0]} cannot be started: {error}") from error


def _terminate(child: subprocess.Popen[bytes]) -> None:
    """End a child that is still running; do nothing if it has been waited for."""
    if child.returncode is not None:
        return
    child.terminate()
    try:
        child.wait(TERMINATE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _text(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode(errors="replace")
