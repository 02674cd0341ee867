"""How the program was called: configuration, form of output, logging, progress, signals."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import click

from backyfs.cli.commandline import shown_command_line
from backyfs.cli.logs import follow_config, log_requests, log_start
from backyfs.cli.passphrases import asking
from backyfs.cli.text import printable
from backyfs.cli.title import ProcessName, title_progress
from backyfs.errors import BackyfsError
from backyfs.model import NoProgress
from backyfs.service import Service
from backyfs.trust import load_trusted_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from backyfs.cli.hooks import Facts
    from backyfs.config import Config
    from backyfs.engine.setup.upgrade import UpgradeReport
    from backyfs.hooks import Fact
    from backyfs.model import Progress, RunId
    from backyfs.reports.values import Object, Row
    from backyfs.repository import Repository
    from backyfs.service import OpenDatabase
    from backyfs.work.progress import TextProgress
    from backyfs.work.run import Control

_log = logging.getLogger("backyfs.cli")


class OutputForm(Enum):
    """How results are printed."""

    TABLE = "table"  # for people
    PIPE = "pipe"    # fields separated by |, as backy2
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """The global options, and what follows from them."""

    words: tuple[str, ...] = ()  # after the name of the program
    command: str = ""
    config_file: str | None
    form: OutputForm
    header: bool
    human_sizes: bool
    show_progress: bool
    log_option: str | None  # -v, -d or -q, if one was given
    process_name: ProcessName = field(default_factory=ProcessName)
    interrupted: threading.Event = field(default_factory=threading.Event)  # set by the signals that end a command
    facts: list[Facts] = field(default_factory=list, repr=False)    # for the hooks that run around this command
    loaded: list[Config] = field(default_factory=list, repr=False)  # the configuration, once it was read
    source_warnings: dict[str, int] = field(default_factory=dict)   # by kind, of a backup that is done
    answered: list[str] = field(default_factory=list, repr=False)   # the passphrase, once somebody was asked for it
    results: dict[str, Fact] = field(default_factory=dict, repr=False)  # what the command found out, for the log
    progresses: list[TextProgress] = field(default_factory=list, repr=False)  # all that were made, by `progress`
    odd_rows: set[str] = field(default_factory=set, repr=False)  # of the database, that were left out and logged
    runs: list[RunId] = field(default_factory=list, repr=False)  # of the jobs that the command has ended

    def load_config(self) -> Config:
        """Read the configuration, warn of what is strange in it, and begin to write its log file.

        Raises:
            ConfigError: it has a mistake, or this is root and others can change it.
        """
        if self.loaded:
            return self.loaded[0]
        config, warnings = load_trusted_config(self.config_file, os.environ)
        self.process_name.text = printable(config.process_name)
        follow_config(config)
        log_start(shown_command_line(self.words))
        for warning in warnings:
            _log.warning("%s", warning)
        self.loaded.append(config)
        return config

    def begin_log(self) -> None:
        """Log to the file of the configuration if there is one: for commands that work without."""
        with suppress(BackyfsError):
            self.load_config()

    @contextmanager
    def hooks(self, command: str, **facts: Fact) -> Iterator[Facts]:
        """Run the hooks of a command around the `with`. Later hooks get the facts that it adds.

        Everything that the command does is within it, so hooks also run if the repository cannot be opened.

        Raises:
            HookError: before_COMMAND failed.
            ConfigError: the configuration has a mistake; then no hook runs.
        """
        from backyfs.cli.hooks import around  # noqa: PLC0415 - most commands have none

        with around(self.load_config(), command, facts) as known:
            self.facts.append(known)
            yield known

    def add_facts(self, **facts: Fact) -> None:
        """Add facts for the log and for hooks that run later."""
        self.results.update(facts)
        for known in self.facts:
            known.add(**facts)

    @property
    def service(self) -> Service:
        """The repository of the configuration, as this command uses it.

        Raises:
            ConfigError: as `load_config`.
        """
        return Service(
            config=self.load_config(),
            stop=self.interrupted.is_set,
            ask=self.asking(),
            control=self.control,
            upgraded=self._show_copy,
            odd_rows=self.odd_rows,
            runs=self.runs,
            requested=log_requests,
        )

    @contextmanager
    def open_repository(self, *, insist: bool = False) -> Iterator[Repository]:
        """Open the repository of the configuration, see `Service.repository`."""
        with noting_signals(self.interrupted), self.service.repository(insist=insist) as repository:
            yield repository

    @contextmanager
    def open_database(self, *, resumes: bool = False) -> Iterator[OpenDatabase]:
        """Open the database of the configuration alone, see `Service.database`."""
        with noting_signals(self.interrupted), self.service.database(resumes=resumes) as database:
            yield database

    def asking(self) -> Callable[[], str] | None:
        """Return what asks for the passphrase of the repository, once; None where nobody is there to answer."""
        ask = asking()
        if ask is None:
            return None

        def ask_once() -> str:
            if not self.answered:
                self.answered.append(ask())
            return self.answered[0]

        return ask_once

    def _show_copy(self, report: UpgradeReport) -> None:
        if report.copy is not None and self.form is not OutputForm.TABLE:
            # Not in the log on stderr, which has errors only then.
            click.echo(f"backyfs: the metadata as they were are in {printable(report.copy)}", err=True)

    def record(
        self, repository: Repository, report: Object | Sequence[Row], errors: Sequence[BackyfsError] = ()
    ) -> None:
        """Add a report, and the errors that the command is about to end with, to its run; see `Service.record`."""
        self.service.record(repository, report, errors)

    @contextmanager
    def control(self, *, is_quiet: bool = False) -> Iterator[Control]:
        """Let a command show its progress unless it `is_quiet`, and stop when a signal asks for that."""
        from backyfs.work.run import Control  # noqa: PLC0415 - slow to load

        with stop_on_signals() as stop:
            progress = NoProgress() if is_quiet else self.progress()
            yield Control(progress=progress, stop=stop, recorded=self.runs.append)

    def progress(self) -> Progress:
        """Return the progress to show. The title of the process always shows it."""
        made = title_progress(self.process_name.text, self._shown_progress())
        self.progresses.append(made)
        return made

    def how_far(self) -> str:
        """Return how far the command is, for SIGUSR1. Signal handlers may call this."""
        texts = [text for text in (progress.now() for progress in self.progresses) if text]
        return texts[-1] if texts else f"{self.command} is running and has no progress to report at the moment"

    def _shown_progress(self) -> Progress:
        if not self.show_progress:
            return NoProgress()
        if not sys.stderr.isatty():
            from backyfs.cli.progress import LogProgress  # noqa: PLC0415 - most commands show no progress

            return LogProgress()
        from backyfs.cli.terminal import TerminalProgress  # noqa: PLC0415 - rich is slow to load

        return TerminalProgress()


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a signal has asked to stop. A second SIGINT interrupts immediately.

    These are SIGINT and SIGTERM, and unless they are ignored, as by nohup, SIGHUP and SIGQUIT.
    """
    context = click.get_current_context(silent=True)
    invocation = None if context is None else context.find_object(Invocation)
    # The one of the command, which the storage looks at while it lets a thread wait for its limits.
    came = threading.Event() if invocation is None else invocation.interrupted

    def note(number: int, _frame: object) -> None:
        if came.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.set()
        _log.info("ending after %s; what is under way is finished first", signal.Signals(number).name)

    if not _may_set_handlers():
        yield came.is_set
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [number for number in (signal.SIGHUP, signal.SIGQUIT) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def noting_signals(interrupted: threading.Event) -> Iterator[None]:
    """Set an event when the handler of a signal raises, as it does outside of `stop_on_signals`.

    Without this, only the main thread would end: the others go on waiting for a storage until the event is set, and
    the main thread waits for them.
    """
    if not _may_set_handlers():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            before[signal.Signals(number)](number, frame)
        except BaseException:
            interrupted.set()
            raise

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _may_set_handlers() -> bool:
    """Return whether this is the main thread, to which signal handlers belong. Tests run commands in others."""
    return threading.current_thread() is threading.main_thread()
