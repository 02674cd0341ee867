"""Database URLs broken by their password in every possible way: no message quotes any part of the password."""

from __future__ import annotations

import re
import sys

import pytest

from backyfs.cli.main import run
from backyfs.config import has_password, mistake_in_url
from backyfs.engine.catalog.publish import publish
from tests.cli.cases import CASES, make_place, words_of
from tests.support.certificates import self_signed_certificate
from tests.support.repositories import make_repository, opened
from tests.support.services.impostor import impostor

LEFT, RIGHT = "qzLEFT", "qzRIGHT"  # of a password
SECRET = re.compile("qz(left|right)", re.IGNORECASE)
# The end of the password as its author meant it, and how it is read otherwise: host, port, database, parameter.
BETWEEN = [*"@:/?#%&= \\", "%zz", "%ff", "%00", "%40", "@:", "/@", "?@", "#@", "@[", "]@", "@/", "@?x=", "é€"]
ODD = [f"{LEFT}{between}{RIGHT}" for between in BETWEEN]
CLOSED = "127.0.0.1:1/x"
PLACES = [
    CLOSED, f"{CLOSED}?y=z", "127.0.0.1:99999/x", "127.0.0.1:port/x", "[::1/x", "[nonsense]/x", "[::1]:port/x", "",
]  # fmt: skip
WHOLE = [
    *(f"{scheme}://user:{password}@{CLOSED}" for scheme in ("postgresql", "mysql") for password in ODD),
    *(f"{scheme}://user:{LEFT}@{place}" for scheme in ("postgresql", "mysql") for place in PLACES),
    f"postgresql://user:{LEFT}",                              # the host was forgotten
    f"mysql://user:{LEFT}/{RIGHT}",
    f"postgresql://us/er:{LEFT}@{CLOSED}",
    f"oracle://user:{LEFT}@{CLOSED}",                         # a dialect of another program
    f"nonsense+x://user:{LEFT}@{CLOSED}",
    f"postgresql:/user:{LEFT}@{CLOSED}",
    f"postgresql//user:{LEFT}@{CLOSED}",
    f"postgresql:user:{LEFT}@{CLOSED}",
    f"user:{LEFT}@{CLOSED}",
    f"postgresql:user:{LEFT}@host",
    f"sqlite://user:{LEFT}@host/x",
    f"postgresql://user@{CLOSED}?password={LEFT}",
    f"mysql://user@{CLOSED}?password={LEFT}&connect_timeout=long",
    f"postgresql://user@{CLOSED}?sslpassword={LEFT}&nonsense=1",
    f"mysql://user@{CLOSED}?passwd={LEFT}&nonsense=1",
    f"mysql://user:{LEFT}@{CLOSED}?plugin=nonsense",
]  # fmt: skip
COMMANDS = [
    ["ls"],
    ["--debug", "backup", "/dev/null", "disk"],
    ["--json", "check-config"],
    ["-m", "check-config"],
    ["upgrade", "--check"],
    ["initdb"],
]


class CommandLine:
    """A directory in which commands run, and everything they print and write."""

    def __init__(self, directory, capfd):
        self._directory, self._capfd = directory, capfd

    def configure(self, url):
        file = self._directory / "x.cfg"
        file.write_text(
            f"[DEFAULTS]\nlogfile: {self._directory}/x.log\n[MetaBackend]\nengine: {url.replace('%', '%%')}\n"
            f"[DataBackend]\ntype: file\npath: {self._directory}/data\n"
        )
        return file

    def run(self, *words):
        """Run a command that fails; return its status and everything it printed, logged or wrote."""
        metrics = self._directory / "x.prom"
        status = run(["--metrics-file", str(metrics), *map(str, words)])
        written = [file.read_text() for file in (metrics, self._directory / "x.log") if file.exists()]
        captured = self._capfd.readouterr()
        return status, "".join([captured.out, captured.err, *written])


@pytest.fixture
def command_line(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return CommandLine(tmp_path, capfd)


@pytest.mark.parametrize("url", WHOLE)
def test_no_message_quotes_any_part_of_a_password(url, command_line):
    file = command_line.configure(url)
    for words in COMMANDS:
        status, text = command_line.run("-c", file, *words)
        assert not SECRET.search(text), text
        assert "report it" not in text
        assert status == 1, text


@pytest.mark.parametrize("url", WHOLE)
def test_no_message_quotes_any_part_of_a_password_given_as_an_argument(url, command_line, tmp_path):
    file = command_line.configure(f"sqlite:///{tmp_path}/none.sqlite")
    for words in (
        ["-c", tmp_path / "new.cfg", "--debug", "init", "--data", tmp_path / "new", "--db", url],
        ["-c", file, "--debug", "db", "copy", url, f"sqlite:///{tmp_path}/copy.sqlite"],
        ["-c", file, "--debug", "recover", tmp_path / "data", "--to", url],
        ["-c", file, "ls", "--nonsense", url],
        ["-c", file, "initdb", url],
        ["-c", file, "upgrade", "--check", url],
    ):
        status, text = command_line.run(*words)
        assert not SECRET.search(text), text
        assert "report it" not in text
        assert status != 0, text
    assert not any(SECRET.search(str(path)) for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("url", [f"postgresql://user:{LEFT}@{RIGHT}@{CLOSED}", f"mysql://user:{LEFT}@{CLOSED}"])
def test_no_command_shows_any_part_of_a_password(url, tmp_path, capfd):
    make_place(tmp_path)
    config = tmp_path / "repository" / "backyfs.cfg"
    config.write_text(re.sub("engine: .*", lambda _: f"engine: {url}", config.read_text()))
    capfd.readouterr()
    for case in CASES:
        words = words_of(case, tmp_path, version="disk@latest")
        if "-c" in words or case.config != "repository/backyfs.cfg" or case.mounts or case.name in {"umount", "detach"}:
            continue
        run(["-c", str(config), "--debug", *words])
        captured = capfd.readouterr()
        assert not SECRET.search(captured.out + captured.err), (case, captured)
    log = next(iter(tmp_path.rglob("*.log")), None)
    assert log is None or not SECRET.search(log.read_text())


def test_the_error_of_a_server_that_refuses_the_password_is_quoted_without_it(mariadb_server, command_line):
    mariadb_server.execute(f"CREATE OR REPLACE USER careful IDENTIFIED BY '{RIGHT}'")
    for password in (LEFT, f"{LEFT}%E2%82%AC"):  # the driver's charset cannot encode the second
        file = command_line.configure(f"mysql://careful:{password}@127.0.0.1:{mariadb_server.port}/x")
        for words in COMMANDS:
            status, text = command_line.run("-c", file, *words)
            assert status == 1, text
            assert not SECRET.search(text), text
            assert "€" not in text


def test_the_error_of_a_server_without_such_a_user_is_quoted_without_the_password(postgresql_server, command_line):
    file = command_line.configure(f"postgresql://nobody:{LEFT}@127.0.0.1:{postgresql_server.port}/x")
    for words in COMMANDS:
        status, text = command_line.run("-c", file, *words)
        assert status == 1, text
        assert not SECRET.search(text), text


TLS = {"postgresql": "sslmode=verify-full&sslrootcert={}", "mysql": "ssl_ca={}"}


@pytest.mark.parametrize("scheme", TLS)
@pytest.mark.parametrize("offers_tls", [False, True])
def test_a_man_in_the_middle_learns_nothing_if_the_url_asks_for_tls(command_line, tmp_path, scheme, offers_tls):
    own = self_signed_certificate(tmp_path / "own.pem") if offers_tls else None
    authority = self_signed_certificate(tmp_path / "authority.pem")
    with impostor(scheme, own) as server:
        url = f"{scheme}://overheard:{LEFT}@127.0.0.1:{server.port}/x?{TLS[scheme].format(authority)}"
        status, text = command_line.run("-c", command_line.configure(url), "ls")
    assert (status, server.clients > 0) == (1, True), text
    assert b"overheard" not in server.heard
    # It would learn the password if the URL did not ask for TLS, or if its certificate were valid.
    with impostor(scheme, own) as server:
        parameters = TLS[scheme].format(own) if offers_tls else ""
        url = f"{scheme}://overheard:{LEFT}@127.0.0.1:{server.port}/x?{parameters}"
        assert command_line.run("-c", command_line.configure(url), "ls")[0] == 1
    assert b"overheard" in server.heard


@pytest.fixture
def asked(postgresql_server):
    """Make an empty database; yield the URL of a role that needs its password, with placeholders for the password."""
    role = postgresql_server.asked
    postgresql_server.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{RIGHT}'")
    url = postgresql_server.new_database()
    yield url.replace(f"{postgresql_server.superuser}@", f"{role}{{}}@") + "{}"
    postgresql_server.drop(url)
    postgresql_server.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f":{LEFT}", ""),
        (f":{LEFT}%E2%82%AC", ""),
        (f":{LEFT}", f"?password={LEFT}"),
        ("", f"?password={LEFT}"),
        (f":{RIGHT}%20", "?application_name=x"),  # almost right
    ],
)
def test_the_error_of_postgresql_that_refuses_a_password_is_quoted_without_it(
    asked, command_line, tmp_path, before, after
):
    url = asked.format(before, after)
    file = command_line.configure(url)
    other = tmp_path / "other.cfg"
    other.write_text(file.read_text().replace(url.replace("%", "%%"), f"sqlite:///{tmp_path}/none.sqlite"))
    for words in (
        *(["-c", file, *words] for words in COMMANDS),
        ["-c", file, "--json", "ls"],
        ["-c", tmp_path / "new.cfg", "--debug", "init", "--data", tmp_path / "new", "--db", url],
        ["-c", other, "--debug", "db", "copy", url, f"sqlite:///{tmp_path}/copy.sqlite"],
    ):
        status, text = command_line.run(*words)
        assert not SECRET.search(text), text
        assert "€" not in text
        assert status == 1, text
        if words[2:] == ["ls"]:
            assert "password authentication failed for user" in text
    assert not any(SECRET.search(str(path)) for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("words", ["recover {data} --to {url}", "db copy {database} {url}", "db copy {url} {database}"])
def test_the_error_of_postgresql_about_another_database_is_quoted_without_its_password(
    asked, command_line, tmp_path, words
):
    config = make_repository(tmp_path / "repository")
    with opened(config) as repository:
        publish(repository)
    home = config.parent
    url, database = asked.format(f":{LEFT}", ""), f"sqlite:///{home}/backyfs.sqlite"
    words = words.format(data=home / "data", url=url, database=database).split()
    status, text = command_line.run("-c", config, "--debug", *words)
    assert "password authentication failed for user" in text
    for written in (text, *(file.read_text() for file in tmp_path.rglob("*.log"))):
        assert not SECRET.search(written), written
    assert status == 1, text


def test_a_password_that_postgresql_requires_is_reported_missing(asked, command_line):
    status, text = command_line.run("-c", command_line.configure(asked.format("", "")), "ls")
    assert status == 1
    assert "no password supplied" in text


def test_postgresql_accepts_the_right_password(asked, command_line):
    file = command_line.configure(asked.format(f":{RIGHT}", ""))
    status, text = command_line.run("-c", file, "ls")
    assert "password" not in text
    assert not SECRET.search(text), text
    assert status == 1
    assert "holds no repository" in text


@pytest.mark.parametrize(("scheme", "module"), [("postgresql", "psycopg"), ("mysql", "pymysql")])
def test_a_missing_driver_is_reported_without_the_password(command_line, monkeypatch, scheme, module):
    monkeypatch.setitem(sys.modules, module, None)
    file = command_line.configure(f"{scheme}://user:{LEFT}@{CLOSED}?password={RIGHT}&sslmode=require")
    for words in COMMANDS:
        status, text = command_line.run("-c", file, *words)
        assert status == 1
        assert not SECRET.search(text), text
        if words == ["ls"]:
            assert f"needs a driver that is not installed (import of {module} halted" in text
            assert f":***@{CLOSED}?sslmode=require" in text


# The rule itself


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/db",
        "postgresql://user@host/db",
        "postgresql://user:p:a/s?s#w%40rd@host:5432/db",
        "postgresql://user@tenant:password@host/db",  # as on Azure
        "postgresql://user:50%off@host/db",
        "postgresql://user@/db?host=/run/postgresql",
        "postgresql:///db",
        "mysql+pymysql://u:p@[fe80::1]:3306/db?charset=utf8mb4",
        "mariadb://user:%C3%A9@db-1.example.org",
        "sqlite:////a@b:c@d",
    ],
)
def test_an_unambiguous_url_is_accepted(url):
    assert mistake_in_url(url) is None


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("postgresql://u:p@q@host/db", "too many @"),
        ("postgresql://u:p@host/db?x=a@b", "too many @"),
        ("postgresql://u/v:p@host/db", "too many @"),
        ("mysql://u:p@host:0/db", "port"),
        ("mysql://u:p@host:65536/db", "port"),
        ("mysql://u:p@host:٣/db", "port"),
        ("mysql://u:p@[::1/db", "host"),
        ("mysql://u:p@[::g]/db", "host"),
        ("mysql://u:p@ho st/db", "host"),
        ("mysql://u:p@h#ost/db", "host"),
        ("mysql://u:p%ff@host/db", "UTF-8"),
        ("mysql://u:p%00@host/db", "NUL"),
        ("mysql://u:p\n@host/db", "line break"),
    ],
)
def test_an_ambiguous_url_is_refused(url, word):
    mistake = mistake_in_url(url)
    assert mistake is not None
    assert word in mistake.fact


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p/q@host/db", True),
        ("postgresql://host/db?password=x", True),
        ("mysql://host/db?ssl_key=x", True),
        ("postgresql://u@host/db?sslmode=require", False),
        ("sqlite:////x/y", False),
    ],
)
def test_a_password_is_found_anywhere_in_a_url(url, expected):
    assert has_password(url) is expected


def test_the_password_of_a_url_without_a_host_is_not_logged(command_line, tmp_path):
    file = command_line.configure(f"sqlite:///{tmp_path}/none.sqlite")
    _, text = command_line.run("-c", file, "db", "copy", f"postgresql://user:{LEFT}", f"mysql:///x?password={RIGHT}")
    assert "ended with status" not in text or "***" in text
    assert not SECRET.search(text)
