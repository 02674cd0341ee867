"""Completion in real shells: a test types a line, presses TAB, and examines the line."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backyfs.cli.bashline import BashLine, quoted
from backyfs.cli.shells import SHELLS as SHELL_FORMS
from tests.support.images import random_image
from tests.support.program import backyfs
from tests.support.repositories import BLOCK, back_up, make_repository, opened

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
START = {
    "bash": "bind 'set show-all-if-ambiguous on'; eval \"$(backyfs completion bash)\"",
    "zsh": "autoload -U compinit; compinit -D -u; zstyle ':completion:*' insert-tab false; "
    'eval "$(backyfs completion zsh)"',
    "fish": "backyfs completion fish | source",
}
# A key that prints a mark. A shell handles keys in order, so TAB has done its work once the mark appears.
MARK_KEY, MARK = "\x07", "-marked-"
BIND = {
    "bash": """bind -x '"\\C-g": printf %s "-mark""ed-"'""",
    "zsh": "mark() { print -rn -- '-mark''ed-' >$TTY }; zle -N mark; bindkey '^G' mark",
    "fish": "bind \\cg \"printf %s '-mark''ed-'\"",
}
# Run by a shell, these would create the file P, recall a command, or become another word.
HOSTILE = {
    "h0": "h0$(touch P)`touch P`${P:-x};touch P|touch P&<P>P #",
    "h1": "h1'\"\\\\ two  spaces \"$(touch P)\"'$(touch P)'\"'`touch P`\\'\\\"",
    "h2": "h2!!\"!touch!\"'!touch!'!-1 !",
    "h3": "h3*?[a-z]{b,c}~^%:x=y@z$HOME=~:~ö€",
}
LEADING = ["~root", "=ls", "$(touch P)", "`touch P`", "*", "#h", "!!", "%1"]
UNPRINTABLE = ["n\x1b[2J", "n\n; touch P", "n\u202e", "n\x9b", "n\t", "n\r"]
BREAKS = " \t\n\"'@><=;|&(:"
LINE_START = "\x01"
DEADLINE_S = 20
FIXTURES = Path(__file__).parents[1] / "fixtures"


class Typist:
    """A shell on its own terminal, and somebody who types into it."""

    def __init__(self, shell, directory):
        self._master, self._slave = pty.openpty()
        environ = {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "HOME": str(directory),
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
            "INPUTRC": "/dev/null",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        }
        terminal = os.ttyname(self._slave)  # becomes the controlling terminal of the session leader that opens it
        self.process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" <{terminal} >{terminal} 2>&1', "sh", *SHELLS[shell]],
            start_new_session=True,
            env=environ,
            cwd=directory,
        )
        self._numbers = iter(range(1000))

    def enter(self, line):
        """Enter a line and wait until the shell has run it."""
        mark = f"done-{next(self._numbers)}"
        self._write(f"{line}; echo {mark[:2]}''{mark[2:]}\n")
        return self._read_to(f"{mark}\r\n")

    def completed(self, line):
        """Return the words on the line after TAB."""
        self._write(f"{line}\t{MARK_KEY}")
        self._read_to(MARK)
        answer = self.enter(f"{LINE_START}printf '<%s>\\n' \x05")
        return re.findall(r"^<(.*)>\r?$", answer, re.MULTILINE)

    def _write(self, text):
        os.write(self._master, text.encode())

    def _read_to(self, mark):
        shown = ""
        end = time.monotonic() + DEADLINE_S
        while mark not in shown:
            ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            assert ready, shown
            shown += os.read(self._master, 65536).decode(errors="replace")
        return shown

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Make a directory with a configuration, `my.cfg`, and versions with three names."""
    directory = tmp_path_factory.mktemp("home")
    config = make_repository(directory / "repository")
    image = random_image(directory / "image", BLOCK)
    with opened(config) as repository:
        hostile = (*HOSTILE.values(), *LEADING, *UNPRINTABLE, "-rf", "--force")
        for name in ("disk", "disk", "wörld", "my disk's", *hostile):
            back_up(repository, image, name)
    (directory / "my.cfg").symlink_to(config)
    return directory


@pytest.fixture(scope="module", params=SHELLS)
def shell(request):
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture(scope="module")
def typist(shell, place):
    typist = Typist(shell, place)
    try:
        typist.enter(START[shell])
        typist.enter(BIND[shell])
        yield typist
    finally:
        typist.close()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("backyfs unpro", ["backyfs", "unprotect"]),
        ("backyfs --confi", ["backyfs", "--configfile"]),
        ("backyfs -c my", ["backyfs", "-c", "my.cfg"]),
        ("backyfs --configfile=my", ["backyfs", "--configfile=my.cfg"]),
        ("backyfs -c my.cfg restore --for", ["backyfs", "-c", "my.cfg", "restore", "--force"]),
        ("backyfs -c my.cfg restore dis", ["backyfs", "-c", "my.cfg", "restore", "disk@latest"]),
        ("backyfs -c my.cfg restore disk@la", ["backyfs", "-c", "my.cfg", "restore", "disk@latest"]),
        ("backyfs -c ~/my.cfg restore wö", ["backyfs", "-c", "{home}/my.cfg", "restore", "wörld@latest"]),
        ("backyfs -c my.cfg restore my", ["backyfs", "-c", "my.cfg", "restore", "my disk's@latest"]),
        ('backyfs -c my.cfg restore "my di', ["backyfs", "-c", "my.cfg", "restore", "my disk's@latest"]),
        ("backyfs -c my.cfg restore disk@latest im", ["backyfs", "-c", "my.cfg", "restore", "disk@latest", "image"]),
        ("backyfs -c my.cfg ls wö", ["backyfs", "-c", "my.cfg", "ls", "wörld"]),
        ("backyfs completion fi", ["backyfs", "completion", "fish"]),
        ("backyfs -c missing.cfg restore dis", ["backyfs", "-c", "missing.cfg", "restore", "dis"]),
    ],
)  # fmt: skip
def test_a_shell_completes(typist, place, line, words):
    assert typist.completed(line) == [word.format(home=place) for word in words]


def test_a_shell_completes_a_uid(typist, place):
    with opened(place / "my.cfg") as repository, repository.database.read() as connection:
        from backyfs.metadata.records.versions import list_versions

        uid = list_versions(connection)[0].uid
    assert typist.completed(f"backyfs -c my.cfg restore {uid[:13]}")[-1] == uid


# Names that an attacker wants the shell to run


@pytest.mark.parametrize("quote", ["", '"', "'", "$'"])
@pytest.mark.parametrize("typed", HOSTILE)
def test_a_name_remains_text_in_any_quotes(typist, shell, place, quote, typed):
    if shell == "fish":
        quote = quote.lstrip("$")  # it has no $'...'
    assert typist.completed(f"backyfs -c my.cfg restore {quote}{typed}")[4:] == [f"{HOSTILE[typed]}@latest"]
    assert not (place / "P").exists()


@pytest.mark.parametrize("start", ["--version=", '--version="', "'--version=", "--version "])
@pytest.mark.parametrize("typed", ["h0", "h3"])
def test_a_name_remains_text_as_the_value_of_an_option(typist, place, start, typed):
    words = typist.completed(f"backyfs -c my.cfg mount {start}{typed}")[4:]
    assert "=".join(words) == f"--version={HOSTILE[typed]}@latest"
    assert not (place / "P").exists()


@pytest.mark.parametrize("name", LEADING)
def test_a_name_may_begin_with_something_the_shell_expands(typist, shell, place, name):
    words = typist.completed(f"backyfs -c my.cfg restore '{name[:2]}")[4:]
    # Fish then completes only files.
    assert words == ([name] if (shell, name) == ("fish", "*") else [f"{name}@latest"])
    assert not (place / "P").exists()


@pytest.mark.parametrize(("typed", "name"), [(r"\~ro", "~root"), (r"\=l", "=ls"), (r"\$\(to", "$(touch P)")])
def test_a_name_may_begin_with_escaped_characters(typist, place, typed, name):
    assert typist.completed(f"backyfs -c my.cfg restore {typed}")[4:] == [f"{name}@latest"]
    assert not (place / "P").exists()


def test_unprintable_names_are_not_offered(typist, place):
    assert typist.completed("backyfs -c my.cfg restore n")[4:] == ["n"]
    assert not (place / "P").exists()


@pytest.mark.parametrize("typed", ["'my 'di", "m'y di's", "\"my\"' 'd"])
def test_a_name_continues_after_closing_quotes(typist, typed):
    assert typist.completed(f"backyfs -c my.cfg restore {typed}")[4:] == ["my disk's@latest"]


# What must never happen while somebody types


QUOTES = st.sampled_from(["", '"', "'", "$'", '$"'])
ANY = st.characters(exclude_categories=("C", "Z"), include_characters=" ")
PRINTABLE = st.text(ANY | st.sampled_from("'\"\\$`!~@=:"))


@settings(deadline=None)
@given(name=PRINTABLE, quote=QUOTES, breaks=st.sampled_from([BREAKS, BREAKS.replace(":", ""), BREAKS.replace("=", "")]))
@example(name="'$(touch P)'", quote="'", breaks=BREAKS)
@example(name='"$(touch P)"!', quote='"', breaks=BREAKS)
@example(name="\\'$(touch P)", quote="$'", breaks=BREAKS)
def test_bash_inserts_an_offer_as_text(tmp_path_factory, name, quote, breaks):
    name = f"h{name}"
    asked = SHELL_FORMS["bash"].asked((), {"COMP_LINE": f"backyfs mount --version={quote}h", "COMP_BREAKS": breaks})
    kind, value = SHELL_FORMS["bash"].line(CompletionItem(name), asked).split("\t")
    assert kind == "plain"
    typed = "" if value.startswith("--version=") else f"--version={quote}"
    here = tmp_path_factory.mktemp("here")
    script = f"printf %s {typed}{value}{quote[-1:]}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=here)
    assert done.stdout == f"--version={name}"
    assert list(here.iterdir()) == []


@given(text=PRINTABLE, quote=QUOTES)
def test_an_inserted_name_is_understood_at_the_next_tab(text, quote):
    inserted = quoted(text, '"' if quote == '$"' else quote)
    line = BashLine.of(f"backyfs x {quote}{inserted}", BREAKS)
    assert (line.words, line.last, line.expands) == (("backyfs", "x"), text, False)


def test_the_result_of_an_expansion_is_not_guessed(place):
    for line in ("$(touch", "`touch", '"$(touch', '"h0$', "h0$", '"h0`'):
        assert asked(f"backyfs -c {place}/my.cfg restore {line}") == (0, [], "")


def test_unknown_escapes_of_bash_have_no_completions(place):
    assert asked(rf"backyfs -c {place}/my.cfg restore $'h\x30") == (0, [], "")


def test_a_backslash_in_double_quotes_is_literal_where_bash_keeps_it(place):
    assert asked(rf'backyfs -c {place}/my.cfg restore "h1\'')[1] == []
    assert len(asked(rf"""backyfs -c {place}/my.cfg restore "h1'\"\\""")[1]) == 1


def test_a_name_that_looks_like_an_option_is_offered_only_after_two_hyphens(place):
    offers = asked(f"backyfs -c {place}/my.cfg ls ")[1]
    assert "plain\tdisk" in offers
    assert not any(offer.startswith("plain\t-") for offer in offers)
    assert asked(f"backyfs -c {place}/my.cfg ls -- --for")[1] == ["plain\t--force"]


def asked(line, **environ):
    """Ask the program as bash does; return status, offers and stderr."""
    asking = {"_BACKYFS_COMPLETE": "bash", "COMP_LINE": line, "COMP_BREAKS": "@:=", **environ}
    done = backyfs(env={**os.environ, **asking})
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


def test_commands_are_offered_without_loading_them(place):
    status, offers, err = asked("backyfs ")
    assert (status, err) == (0, "")
    assert {"plain\tbackup", "plain\tcheck-config"} <= set(offers)


def test_an_at_sign_offers_dates_too(place):
    _, offers, _ = asked(f"backyfs -c {place}/my.cfg restore disk@")
    assert offers[0] == "plain\t@latest"
    assert re.fullmatch(r"plain\t@\d{4}-\d\d-\d\d", offers[1])


def test_the_environment_variable_for_the_configuration_is_used(place):
    assert asked("backyfs restore dis", BACKYFS_CONFIG=f"{place}/my.cfg")[1] == ["plain\tdisk@latest"]


def test_older_databases_are_not_upgraded_and_offer_nothing(tmp_path):
    shutil.copytree(FIXTURES / "v1-sqlite", tmp_path / "adopted")
    config = tmp_path / "adopted" / "backy.cfg"
    before = (config.parent / "backy.sqlite").read_bytes()
    assert asked(f"backyfs -c {config} restore ") == (0, [], "")
    assert (config.parent / "backy.sqlite").read_bytes() == before
    assert sorted(path.name for path in config.parent.glob("backy*")) == ["backy.cfg", "backy.sqlite"]


@pytest.mark.parametrize("text", ["nonsense", "[DEFAULTS]\nblock_size: x\n", ""])
def test_a_broken_configuration_is_not_reported(tmp_path, text):
    (tmp_path / "b.cfg").write_text(text)
    assert asked(f"backyfs -c {tmp_path}/b.cfg restore ") == (0, [], "")


def test_a_locked_database_does_not_block_the_terminal(place):
    began = time.monotonic()
    with sqlite3.connect(place / "repository" / "backyfs.sqlite", isolation_level=None) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        status, _, err = asked(f"backyfs -c {place}/my.cfg restore dis")
        holder.execute("ROLLBACK")
    holder.close()
    assert (status, err) == (0, "")
    assert time.monotonic() - began < DEADLINE_S


def test_an_unknown_shell_gets_nothing(place):
    assert asked("backyfs ", _BACKYFS_COMPLETE="csh") == (1, [], "")


@pytest.mark.parametrize("line", ["", "backyfs nonsense ", "backyfs ls --nonsense ", "backyfs -c", "backyfs 'x", "\\"])
def test_a_nonsensical_line_is_not_an_error(line):
    status, _, err = asked(line)
    assert (status, err) == (0, "")


def test_completion_prints_a_script_that_the_shell_accepts(shell):
    script = backyfs("completion", shell).stdout
    assert script
    subprocess.run([shell, "-n"], input=script, text=True, check=True)
