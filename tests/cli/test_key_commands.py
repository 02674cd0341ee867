"""`backyfs key` and `backyfs rekey`: what opens a repository before and after, and the message for each mistake."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shutil
import sqlite3
import stat
import subprocess
import termios
import time
from contextlib import suppress

import pytest

from backyfs.cli.main import run
from backyfs.errors import KeyMaterialError
from backyfs.keys import passphrase as kdf
from backyfs.keys.recovery import read_page
from backyfs.metadata.db.database import Database
from backyfs.repository import open_repository
from backyfs.work.job import Job
from tests.cli.test_intruders import readable
from tests.support.images import random_image
from tests.support.jobs import spec
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, back_up, make_repository, opened
from tests.upgrade.reference import Reference

pytestmark = pytest.mark.usefixtures("cheap_passphrases")

DEADLINE_S = 60
K1 = "decafbad" * 8
K2 = "5e" * 32
WORDS = "correct horse"


@pytest.fixture
def place(tmp_path):
    """Make an encrypted repository with a version, and keys to choose from."""
    config = make_repository(tmp_path / "repository")
    with opened(config) as repository:
        back_up(repository, random_image(tmp_path / "image", 3 * BLOCK))
    for name, text in (("k1", K1), ("k2", K2), ("words", WORDS + "\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return tmp_path


@pytest.fixture
def call(place, capfd):
    def call(*words, config=None):
        status = run(["-c", str(config or place / "repository/backyfs.cfg"), *map(str, words)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


def configure(place, line):
    """Replace the line of the configured key; return the old line."""
    file = place / "repository/backyfs.cfg"
    before = file.read_text()
    [old] = [text for text in before.splitlines() if text.startswith(("encryption_key", "encryption_pass"))]
    file.write_text(before.replace(old, line))
    return old


def restores(call, place, config=None, version="disk@latest", image="image"):
    target = place / "restored"
    target.unlink(missing_ok=True)
    status, _, err = call("-q", "restore", version, target, config=config)
    assert (status, err) == (0, "")
    return target.read_bytes() == (place / image).read_bytes()


def labels(call):
    return [row["label"] for row in json.loads(call("--json", "key", "list")[1])]


def test_a_passphrase_opens_the_repository_as_well_as_the_key(call, place):
    assert call("-q", "key", "add", "ann", "--passphrase-file", place / "words")[0] == 0
    rows = json.loads(call("--json", "key", "list")[1])
    assert [(row["label"], row["kind"], row["kdf"]) for row in rows] == [
        ("configuration", "key", None),
        ("ann", "passphrase", "argon2id"),
    ]
    configure(place, f"encryption_passphrase_file: {place / 'words'}")
    assert json.loads(call("--json", "key", "check")[1])["label"] == "ann"
    assert "the passphrase opens this repository" in call("check-config")[1]
    assert restores(call, place)
    assert call("-q", "backup", place / "image", "disk")[0] == 0


def test_no_passphrase_is_derived_if_a_key_opens_the_repository(call, place, monkeypatch):
    call("key", "add", "ann", "--passphrase-file", place / "words")
    monkeypatch.setattr(kdf, "derive_key", lambda *_arguments: pytest.fail("derived"))
    assert call("-q", "ls")[0] == 0
    assert call("-q", "key", "check")[0] == 0


def test_a_new_repository_can_have_only_a_passphrase(call, place):
    config = place / "other.cfg"
    text = (place / "repository/backyfs.cfg").read_text().replace(str(place / "repository"), str(place / "other"))
    lines = [line for line in text.splitlines() if not line.startswith("encryption_key")]
    lines.insert(lines.index("[DEFAULTS]") + 1, f"encryption_passphrase_file: {place / 'words'}")
    config.write_text("\n".join(lines))
    (place / "other").mkdir()
    assert call("-q", "initdb", config=config)[0] == 0
    assert call("-q", "backup", place / "image", "disk", config=config)[0] == 0
    assert restores(call, place, config=config)


def test_a_passphrase_is_asked_for_on_a_terminal(call, place, monkeypatch):
    call("key", "add", "ann", "--passphrase-file", place / "words")
    configure(place, "")
    file = place / "repository/backyfs.cfg"
    file.write_text(file.read_text().replace("encryption_version", "# encryption_version"))
    assert call("-q", "ls")[0] == 3
    monkeypatch.setattr("backyfs.cli.invocation.asking", lambda: lambda: WORDS)
    assert call("-q", "ls")[0] == 0


def test_wrong_missing_and_damaged_keys_are_distinguished(call, place):
    old = configure(place, f"encryption_key_file: {place / 'k2'}")
    status, _, err = call("key", "check")
    assert (status, "is not the key of this repository" in err) == (3, True)
    configure(place, f"encryption_key_file: {place / 'none'}")
    status, _, err = call("key", "check")
    assert (status, "cannot be read: No such file" in err) == (3, True)
    configure(place, old)
    with sqlite3.connect(place / "repository/backyfs.sqlite") as connection:
        connection.execute("UPDATE key_slots SET wrapped_key = zeroblob(40)")
    status, _, err = call("key", "check")
    assert (status, "key slot 'configuration' has a wrapped key that is damaged" in err) == (20, True)


def test_slots_can_be_changed_and_removed_except_the_last_one(call, place):
    status, _, err = call("key", "remove", "configuration", "--force")
    assert (status, "is the last one" in err) == (1, True)
    call("key", "add", "ann", "--key-file", place / "k1")
    assert call("-q", "key", "add", "ann", "--key-file", place / "k2")[0] == 1
    assert call("-q", "key", "change", "ann", "--key-file", place / "k2")[0] == 0
    assert call("-q", "key", "change", "bob", "--key-file", place / "k2")[0] == 1
    status, _, err = call("key", "remove", "configuration")
    assert (status, "--force" in err) == (1, True)
    configure(place, f"encryption_key_file: {place / 'k1'}")
    assert call("-q", "key", "check")[0] == 3
    configure(place, f"encryption_key_file: {place / 'k2'}")
    assert call("-q", "key", "remove", "configuration")[0] == 0
    assert labels(call) == ["ann"]
    assert restores(call, place)


def test_a_recovery_page_opens_the_repository_when_no_slot_does(call, place):
    assert call("-q", "key", "export", place / "page")[0] == 0
    assert stat.S_IMODE((place / "page").stat().st_mode) == 0o600
    assert call("-q", "key", "export", place / "page")[0] == 1
    assert call("key", "print")[1] == (place / "page").read_text()
    with sqlite3.connect(place / "repository/backyfs.sqlite") as connection:
        connection.execute("UPDATE key_slots SET wrapped_key = zeroblob(40)")
    status, _, err = call("-q", "key", "add", "rescue", "--from-recovery", place / "page", "--key-file", place / "k2")
    assert (status, err) == (0, "")
    configure(place, f"encryption_key_file: {place / 'k2'}")
    assert restores(call, place)


def test_a_recovery_page_of_another_repository_is_refused(call, place):
    other = make_repository(place / "other")
    assert call("-q", "key", "export", place / "page", config=other)[0] == 0
    status, _, err = call("key", "add", "x", "--from-recovery", place / "page", "--key-file", place / "k2")
    assert (status, "of another repository" in err) == (3, True)
    assert labels(call) == ["configuration"]


def test_rekey_rewrites_one_slot_even_while_others_work(call, place):
    old = place / "repository/backyfs.key"
    configure(place, f"encryption_key_file: {place / 'k2'}")
    database = Database(f"sqlite:///{place / 'repository/backyfs.sqlite'}")
    with Job(database, spec("backup other")):
        status, out, _ = call("--json", "rekey", "--old-key-file", old)
    database.close()
    assert (status, json.loads(out)["rewrapped"], json.loads(out)["changed"]) == (0, 0, True)
    assert restores(call, place)
    configure(place, f"encryption_key_file: {old}")
    assert call("-q", "ls")[0] == 3


@pytest.mark.parametrize("way", ["file", "command"])
def test_rekey_accepts_an_old_passphrase(call, place, way):
    assert call("-q", "key", "change", "configuration", "--passphrase-file", place / "words")[0] == 0
    configure(place, f"encryption_key_file: {place / 'k2'}")
    assert call("-q", "rekey", "--old-passphrase-command", "echo wrong")[0] == 3
    word = {"file": place / "words", "command": f"cat {place / 'words'}"}[way]
    assert call("-q", "rekey", f"--old-passphrase-{way}", word)[0] == 0
    assert restores(call, place)


def test_a_removed_key_opens_only_old_copies_of_the_database(call, place):
    old = place / "repository/backyfs.key"
    copy = place / "copy.sqlite"
    assert call("-q", "key", "add", "ann", "--key-file", place / "k1")[0] == 0
    shutil.copy(place / "repository/backyfs.sqlite", copy)
    assert call("-q", "key", "remove", "configuration", "--force")[0] == 0
    assert labels(call) == ["ann"]
    for words in (["ls"], ["restore", "disk@latest", place / "restored"], ["key", "print"]):
        assert call(*words)[0] == 3
    configure(place, f"encryption_key_file: {place / 'k1'}")
    assert restores(call, place)
    configure(place, f"encryption_key_file: {old}")
    shutil.copy(copy, place / "repository/backyfs.sqlite")
    assert restores(call, place)


def test_no_more_than_32_slots_can_be_added(call, place):
    with sqlite3.connect(place / "repository/backyfs.sqlite") as connection:
        names = "kdf, kdf_parameters, key_check, wrapped_key, created_at"
        for number in range(31):
            connection.execute(f"INSERT INTO key_slots (label, {names}) SELECT '{number}', {names} FROM key_slots "
                               "WHERE label = 'configuration'")  # fmt: skip
    status, _, err = call("key", "add", "ann", "--key-file", place / "k1")
    assert (status, "has 32 key slots, and the limit is 32; remove one" in err) == (1, True)
    assert call("-q", "key", "remove", "7")[0] == 0
    assert call("-q", "key", "add", "ann", "--key-file", place / "k1")[0] == 0


def test_a_database_with_more_slots_than_possible_is_refused(call, place):
    with sqlite3.connect(place / "repository/backyfs.sqlite") as connection:
        names = "kdf, kdf_parameters, key_check, wrapped_key, created_at"
        for number in range(256):
            connection.execute(f"INSERT INTO key_slots (label, {names}) SELECT '{number}', {names} FROM key_slots "
                               "WHERE label = 'configuration'")  # fmt: skip
    for words in (["ls"], ["key", "list"], ["key", "add", "ann", "--key-file", place / "k1"]):
        status, _, err = call(*words)
        assert (status, "has more than 256 key slots" in err) == (20, True)


def test_the_key_of_the_repository_is_on_a_recovery_page_and_nowhere_else(call, place):
    assert call("-q", "key", "add", "ann", "--passphrase-file", place / "words")[0] == 0
    with opened(place / "repository/backyfs.cfg") as repository:
        key = repository.blocks.keyring.repository_key
        fingerprint_key = repository.blocks.keyring.fingerprint_key
    assert key is not None
    assert fingerprint_key is not None
    export = ["export", "--all", place / "export"]
    for words in (export, ["key", "list"], ["key", "check"], ["catalog", "push", "--all"]):
        status, out, err = call("--debug", *words)
        assert status == 0
        assert key.hex() not in (out + err).lower()
    passphrase_key = derived_of(place, WORDS)
    for file in (file for file in place.rglob("*") if file.is_file()):
        content = readable(file)
        for secret in (key, fingerprint_key, passphrase_key):
            assert secret not in content, file
            assert secret.hex().encode() not in content.lower(), file
    assert read_page(call("key", "print")[1]) == key


def derived_of(place, passphrase):
    with sqlite3.connect(place / "repository/backyfs.sqlite") as connection:
        [(name, parameters)] = connection.execute("SELECT kdf, kdf_parameters FROM key_slots WHERE label = 'ann'")
    return kdf.derive_key(passphrase, name, parameters)


def test_rekey_with_the_wrong_old_key_changes_nothing(call, place):
    old = configure(place, f"encryption_key_file: {place / 'k2'}")
    assert call("-q", "rekey", K1)[0] == 3
    assert call("-q", "rekey", K1, "--old-key-file", place / "k1")[0] == 1
    assert call("-q", "rekey")[0] == 3  # without a terminal, it cannot ask
    configure(place, old)
    assert restores(call, place)


@pytest.mark.parametrize("name", ["v1-sqlite", "mixed-sqlite"])
@pytest.mark.parametrize("way", ["argument", "file", "command"])
def test_a_repository_of_backy2_is_rekeyed_and_restored(call, place, name, way):
    reference = Reference(name, place)
    config = reference.config_file
    assert call("-q", "upgrade", config=config)[0] == 0
    reference.change_config(K1, K2)
    assert call("-q", "ls", config=config)[0] == 3
    words = {
        "argument": [K1],
        "file": ["--old-key-file", place / "k1"],
        "command": ["--old-key-command", f"cat {place / 'k1'}"],
    }[way]
    status, out, err = call("--json", "rekey", *words, config=config)
    assert (status, err) == (0, "")
    assert json.loads(out)["rewrapped"] > 0
    for uid, version in reference.expected["versions"].items():
        if version["complete"]:
            (place / "restored").unlink(missing_ok=True)
            assert call("-q", "restore", uid, place / "restored", config=config)[0] == 0
            assert hashlib.sha256((place / "restored").read_bytes()).hexdigest() == version["sha256"]
    assert call("-q", "backup", place / "image", "new", config=config)[0] == 0
    assert restores(call, place, config=config, version="new@latest")
    reference.change_config(K2, K1)
    status, _, err = call("restore", "new@latest", place / "elsewhere", config=config)
    assert (status, "is not the key of this repository" in err) == (3, True)
    reference.change_config(K1, K2)
    assert json.loads(call("--json", "rekey", K1, config=config)[1])["changed"] is False


def test_a_repository_of_backy2_is_not_rekeyed_under_running_commands(call, place):
    reference = Reference("v1-sqlite", place)
    assert call("-q", "upgrade", config=reference.config_file)[0] == 0
    reference.change_config(K1, K2)
    database = Database(f"sqlite:///{reference.sqlite_file}")
    with Job(database, spec("backup other")):
        status, _, err = call("rekey", K1, config=reference.config_file)
    database.close()
    assert (status, "are in use by backup other (process " in err) == (1, True)
    assert call("-q", "rekey", K1, config=reference.config_file)[0] == 0


@pytest.mark.parametrize(("new", "expected"), [(K1, 0), (K2, 3)])
def test_an_export_made_before_a_rekey_needs_its_original_key(call, place, new, expected):
    reference = Reference("v1-sqlite", place)
    config = reference.config_file
    assert call("-q", "upgrade", config=config)[0] == 0
    uid = next(uid for uid, version in reference.expected["versions"].items() if version["complete"])
    assert call("-q", "export", uid, place / "export", config=config)[0] == 0
    if new != K1:
        reference.change_config(K1, new)
    assert call("-q", "rekey", K1, config=config)[0] == 0
    assert call("-q", "rm", "--force", uid, config=config)[0] == 0
    assert call("-q", "cleanup", "--dangerous-force", config=config)[0] == 0
    status, _, err = call("import", place / "export", config=config)
    assert (status, "that the key of this repository does not open" in err) == (expected, expected == 3)


def test_a_command_that_has_read_the_old_key_stores_nothing_after_rekey(call, place):
    reference = Reference("v1-sqlite", place)
    assert call("-q", "upgrade", config=reference.config_file)[0] == 0
    with open_repository(reference.config) as repository:
        assert call("-q", "rekey", K1, config=reference.config_file)[0] == 0  # to the same key, which is allowed
        with pytest.raises(KeyMaterialError, match="run the command again"):
            back_up(repository, place / "image")
    with open_repository(reference.config) as repository:
        back_up(repository, place / "image")


def test_rekey_reports_data_keys_that_the_old_key_does_not_open(call, place):
    reference = Reference("v1-sqlite", place)
    config = reference.config_file
    assert call("-q", "upgrade", config=config)[0] == 0
    with sqlite3.connect(reference.sqlite_file) as connection:
        connection.execute("UPDATE blobs SET wrapped_key = zeroblob(40) WHERE id = 2")
    reference.change_config(K1, K2)
    status, _, err = call("rekey", "ab" * 32, config=config)
    assert (status, "opens none of the data keys" in err) == (3, True)
    status, _, err = call("rekey", K1, config=config)
    assert (status, "the old key does not open 1 data keys" in err) == (20, True)
    status, out, _ = call("--json", "rekey", K1, "--leave-damaged", config=config)
    assert (status, json.loads(out)["left"]) == (0, 1)


def test_if_the_configured_key_opens_nothing_the_passphrase_is_used_with_a_warning(call, place):
    call("key", "add", "ann", "--passphrase-file", place / "words")
    configure(place, f"encryption_key_file: {place / 'k2'}\nencryption_passphrase_file: {place / 'words'}")
    status, out, err = call("key", "check")
    assert (status, out.startswith("The configuration opens slot ann: passphrase ")) == (0, True)
    assert "trying the configured passphrase, because the configured key " in err


def test_two_configured_passphrases_are_a_mistake(call, place):
    configure(place, "encryption_passphrase_file: /x\nencryption_passphrase_command: y")
    status, _, err = call("key", "check")
    assert (status, "are set together; allowed: one of them" in err) == (1, True)


def test_without_slots_none_can_be_added(call, place):
    config = make_repository(place / "plain", encrypted=False)
    assert json.loads(call("--json", "key", "list", config=config)[1]) == []
    for words in (["check"], ["add", "x", "--key-file", place / "k1"], ["print"], ["remove", "x"]):
        status, _, err = call("key", *words, config=config)
        assert (status, "has no key slots" in err) == (3, True)


@pytest.mark.parametrize("label", ["", "x" * 256, "a\nb"])
def test_a_label_must_be_short_and_printable(call, place, label):
    assert call("-q", "key", "add", label, "--key-file", place / "k1")[0] == 1


def test_a_typing_error_in_a_recovery_page_is_located(call, place):
    page = call("key", "print")[1]
    [line] = [line for line in page.splitlines() if line.startswith("5: ")]
    wrong = line[:-1] + ("0" if line[-1] != "0" else "1")
    (place / "page").write_text(page.replace(line, wrong))
    status, _, err = call("key", "add", "x", "--from-recovery", place / "page", "--key-file", place / "k2")
    assert (status, "group 5 of the recovery page has a mistake" in err) == (3, True)


def on_terminal(place, words, answers):
    """Run a command on a terminal and type an answer at each prompt; return its status and everything it printed."""
    master, slave = pty.openpty()
    command = [BACKYFS, "-c", str(place / "repository/backyfs.cfg"), *words]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        os.close(slave)
        shown = before = b""
        for prompt, answer in answers:
            while prompt not in shown:
                shown += os.read(master, 4096)
            shown, before = b"", before + shown
            end = time.monotonic() + DEADLINE_S
            while termios.tcgetattr(master)[3] & termios.ECHO:
                assert time.monotonic() < end, before
                time.sleep(0.01)
            os.write(master, answer.encode() + b"\n")
        with suppress(OSError):  # EIO: the other end is closed
            while more := os.read(master, 4096):
                shown += more
    os.close(master)
    return process.returncode, (before + shown).decode()


def test_passphrases_are_asked_for_and_not_shown(call, place):
    status, shown = on_terminal(
        place, ["key", "add", "ann"], [(b"New passphrase", WORDS), (b"Repeat for confirmation", WORDS)]
    )
    assert (status, WORDS in shown) == (0, False), shown
    configure(place, "")
    file = place / "repository/backyfs.cfg"
    file.write_text(file.read_text().replace("encryption_version", "# encryption_version"))
    status, shown = on_terminal(place, ["key", "check"], [(b"Passphrase", WORDS)])
    assert (status, "opens slot ann" in shown, WORDS in shown) == (0, True, False), shown
    status, shown = on_terminal(place, ["ls"], [(b"Passphrase", "wrong")])
    assert (status, "the passphrase is not one of this repository" in shown) == (3, True), shown


def test_rekey_asks_for_the_old_key(call, place):
    old = (place / "repository/backyfs.key").read_text().strip()
    configure(place, f"encryption_key_file: {place / 'k2'}")
    status, shown = on_terminal(place, ["rekey"], [(b"Old key or passphrase", old)])
    assert (status, old in shown) == (0, False), shown
    assert restores(call, place)
