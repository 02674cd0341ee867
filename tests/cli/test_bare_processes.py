"""Every command in a process that lacks something: a descriptor, free disk space, a directory, /proc, a home.

Each command has its usual exit status. The commands of one condition run one after the other in one place, because
some need the work of others. At the end, the test checks their results.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass, field

import pytest

from backyfs.metadata.records.versions import list_versions
from tests.cli.cases import CASES, filled_in, make_place, words_of
from tests.support.forkserver import ForkServer
from tests.support.repositories import opened

OUTPUT_LOST = 8
PLACE, NOT_UTF8 = b"place", b"pl\xffce"
CANNOT_ATTACH = {"attach": 10, "detach": 10}


@dataclass(frozen=True)
class Condition:
    """How the processes of the commands are started."""

    name: str
    prepare: str = 'exec "$@"'
    environ: dict[str, str | None] = field(default_factory=dict)
    place: bytes = PLACE
    statuses: dict[str, int] = field(default_factory=dict)  # of commands that cannot do their work and say why
    sees_out: bool = True   # stdout can be examined
    sees_err: bool = True
    shows: bool = True      # commands that are run for their output can print it

    def usual_status(self, case):
        if case.is_shown and not self.shows:
            return OUTPUT_LOST
        return self.statuses.get(case.name, 0)


CONDITIONS = (
    Condition("stdin-is-closed", 'exec "$@" <&-'),
    Condition("stdout-is-closed", 'exec "$@" >&-', sees_out=False),
    Condition("stderr-is-closed", 'exec "$@" 2>&-', sees_err=False),
    Condition("all-three-are-closed", 'exec "$@" <&- >&- 2>&-', sees_out=False, sees_err=False),
    Condition("stdout-is-full", 'exec "$@" >/dev/full', sees_out=False, shows=False),
    Condition("stderr-is-full", 'exec "$@" 2>/dev/full', sees_err=False),
    Condition("stdout-lacks-characters", environ={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}),
    Condition("directory-is-gone", 'mkdir "$PLACE/gone" && cd "$PLACE/gone" && rmdir "$PLACE/gone" && exec "$@"'),
    Condition("no-proc", 'mount -t tmpfs none /proc && exec "$@"', statuses=CANNOT_ATTACH),
    Condition("no-sys", 'mount -t tmpfs none /sys && exec "$@"', statuses=CANNOT_ATTACH),
    Condition("names-are-not-utf-8", place=NOT_UTF8, statuses={"init": 1}),  # a configuration is UTF-8
    Condition("no-home", environ={"HOME": None, "XDG_CONFIG_HOME": None}),
)


NAMES = [condition.name for condition in CONDITIONS]


@pytest.fixture
def place(tmp_path, request):
    """Make the place of a condition; detach loop devices left over after a failure."""
    place = tmp_path / "place"
    place.mkdir()
    make_place(place)
    yield place if request.param.place is PLACE else with_name(place, os.fsdecode(request.param.place))
    listed = subprocess.run(["losetup", "-n", "-l", "-O", "NAME,BACK-FILE"], capture_output=True, check=True).stdout
    for line in listed.splitlines():
        device, _, file = line.partition(b" ")
        if os.fsencode(tmp_path) in file:
            subprocess.run(["losetup", "-d", device], check=True)


def with_name(place, name):
    """Give a place another name. The files that the configurations name stay where they are; links lead to them."""
    other = place.with_name(name)
    other.mkdir()
    for entry in list(place.iterdir()):
        if entry.name in {"repository", "other", "other.cfg"}:
            (other / entry.name).symlink_to(entry)
        else:
            entry.rename(other / entry.name)
    return other


@pytest.mark.root
@pytest.mark.parametrize(("condition", "place"), [(one, one) for one in CONDITIONS], indirect=["place"], ids=NAMES)
def test_every_command_has_its_usual_exit_status(condition, place, tmp_path):
    out, err = tmp_path / "out", tmp_path / "err"
    found, problems = {}, []
    with ForkServer(condition.prepare, environ_of(condition, place)) as server:
        for case in CASES:
            words = ["-c", str(place / case.config), *words_of(case, place)]
            found[case.words] = server.run(
                words, out=out if condition.sees_out else None, err=err if condition.sees_err else None
            )
            text = err.read_text(errors="replace") if condition.sees_err else ""
            if found[case.words] != condition.usual_status(case) or "Traceback" in text:
                problems.append(f"{case.words}: {found[case.words]}: {text}")
            if condition.sees_out and case.is_shown and not out.stat().st_size:
                problems.append(f"{case.words} printed nothing")
    assert problems == []
    assert found == {case.words: condition.usual_status(case) for case in CASES}
    if "init" not in condition.statuses:
        assert (place / "new.cfg").exists()
    expect_work_done(place)


def environ_of(condition, place):
    environ = os.environ | condition.environ | {"PLACE": str(place)}
    return {name: value for name, value in environ.items() if value is not None}


def expect_work_done(place):
    """Fail if the commands of the cases did not do their work."""
    assert digest(place / "restored") == digest(place / "image")
    assert (place / "exported").stat().st_size > 0
    assert not any((place / "mount").iterdir())
    with opened(place / "repository" / "backyfs.cfg") as repository, repository.database.read() as connection:
        versions = list_versions(connection)
    assert [(version.name, version.status.value) for version in versions] == [("disk", "valid")] * 3


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.root
@pytest.mark.parametrize("place", [CONDITIONS[0]], indirect=True, ids=["place"])
def test_every_command_prints_nothing_with_q(place, tmp_path):
    out, err = tmp_path / "out", tmp_path / "err"
    results = {}
    with ForkServer('exec "$@"', os.environ) as server:
        for case in CASES:
            words = ["-q", "-c", str(place / case.config), *words_of(case, place)]
            results[case.words] = (server.run(words, out=out, err=err), out.read_text(), err.read_text())
    assert results == {case.words: (0, "", "") for case in CASES}


@pytest.mark.root
def test_foreign_mounts_are_not_unmounted_without_proc(tmp_path):
    no_proc = next(condition for condition in CONDITIONS if condition.name == "no-proc")
    with ForkServer(no_proc.prepare, os.environ) as server:
        assert server.run(["umount", str(tmp_path)], err=tmp_path / "err") == 10
    assert (tmp_path / "err").read_text() == (
        "backyfs: error: /proc/self/mountinfo does not exist, so mounts and devices in use cannot be seen; run "
        "`mount -t proc proc /proc`\n"
    )


# Relative paths without a current directory


@pytest.mark.parametrize(
    "words",
    [
        "backup image disk", "backup -r hints {dir}/image disk", "restore disk@latest restored", "mount mount",
        "umount mount", "attach disk@latest attached", "detach attached", "export disk@latest exported",
        "import exported", "key export page", "key add x --key-file second.key", "init -c new.cfg",
        "init -c {dir}/new.cfg --data new", "recover repository/data --to x", "scrub disk@latest --source image",
        "db copy sqlite:///one.sqlite sqlite:///two.sqlite", "mount {dir}/mount --writable written",
    ],
)  # fmt: skip
def test_a_relative_path_is_an_error_that_says_what_is_missing(place_without_directory, words):
    place, server = place_without_directory
    status = server.run(["-c", str(place / "repository/backyfs.cfg"), *filled_in(words, place)], err=place / "err")
    error = (place / "err").read_text()
    assert status not in {0, 100}
    assert re.fullmatch("backyfs: error: .*(No such file or directory|the current directory was removed).*\n", error)


@pytest.fixture(scope="module")
def place_without_directory(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    make_place(place)
    gone = next(condition for condition in CONDITIONS if condition.name == "directory-is-gone")
    with ForkServer(gone.prepare, environ_of(gone, place)) as server:
        yield place, server
