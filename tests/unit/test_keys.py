"""Keys: where they are read from, how they are wrapped, and that no message contains them."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from backyfs.errors import IntegrityError, MissingKeyError, WrongKeyError
from backyfs.keys import Keyring, key_check, new_key, new_slot, open_slots, read_key, show_check, unwrap_key, wrap_key
from backyfs.keys.sources import PATIENCE_S
from backyfs.model import KeySlot, KeySource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = bytes(range(32))
OTHER_KEY = bytes.fromhex("decafbad" * 8)
DATA_KEY = bytes(range(100, 132))
WRAPPED = bytes.fromhex("026115d00cb6ace96d9e2c074ef78f464aa18a532bc68cecfb5117109910dedd924b6e9142333c0f")
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


@contextmanager
def warnings_of_keys() -> Iterator[list[str]]:
    """Collect the warnings of `backyfs.keys`, whatever a command has done to the loggers above it."""
    messages: list[str] = []

    class _Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.getLogger("backyfs.keys")
    collector = _Collector(logging.WARNING)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagate


def slot(configured_key: bytes, repository_key: bytes, label: str = "configuration") -> KeySlot:
    return new_slot(configured_key, repository_key, label=label, created_at=NOON)


def key_file(directory: Path, content: str, mode: int = 0o600) -> KeySource:
    path = directory / "backyfs.key"
    path.write_text(content, encoding="utf-8")
    path.chmod(mode)
    return KeySource(file=str(path))


def assert_contains_no_key(text: str, *secret_keys: bytes) -> None:
    for key in secret_keys:
        assert key.hex()[:8] not in text.lower()
        assert repr(key)[2:10] not in text


# Check values


def test_the_check_value_of_a_key_never_changes() -> None:
    assert key_check(KEY) == bytes.fromhex("8fe4571d683fb529")
    assert key_check(OTHER_KEY) == bytes.fromhex("298c7508abe7881e")


def test_a_check_value_is_shown_in_groups_of_four_digits() -> None:
    assert show_check(bytes.fromhex("1a2b3c4d5e6f7081")) == "1a2b-3c4d-5e6f-7081"


# Wrapping


def test_keys_are_wrapped_according_to_rfc_3394() -> None:
    # Section 4.6 of the RFC.
    wrapping_key = bytes.fromhex("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F")
    key = bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
    wrapped = bytes.fromhex("28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21")
    assert wrap_key(wrapping_key, key) == wrapped
    assert unwrap_key(wrapping_key, wrapped) == key


def test_a_wrapped_key_is_not_opened_by_another_key() -> None:
    with pytest.raises(IntegrityError, match=r"^has a wrapped key that is damaged or belongs to another key$"):
        unwrap_key(OTHER_KEY, WRAPPED)


@pytest.mark.parametrize("wrapped", [b"", WRAPPED[:-1], WRAPPED[:-8], WRAPPED + bytes(8), bytes(40)])
def test_a_damaged_wrapped_key_is_refused(wrapped: bytes) -> None:
    with pytest.raises(IntegrityError, match="has a wrapped key that is damaged"):
        unwrap_key(KEY, wrapped)


@pytest.mark.parametrize("position", range(40))
def test_a_wrapped_key_with_a_flipped_bit_is_refused(position: int) -> None:
    wrapped = bytearray(WRAPPED)
    wrapped[position] ^= 1
    with pytest.raises(IntegrityError, match="has a wrapped key that is damaged"):
        unwrap_key(KEY, bytes(wrapped))


def test_new_keys_are_256_bits_and_differ() -> None:
    first, second = new_key(), new_key()
    assert (len(first), len(second)) == (32, 32)
    assert first != second


# The keyring


def test_a_keyring_wraps_and_unwraps_data_keys() -> None:
    keyring = Keyring(repository_key=KEY, fingerprint_key=None)
    assert keyring.wrap(DATA_KEY) == WRAPPED
    assert keyring.unwrap(WRAPPED) == DATA_KEY


def test_the_error_for_a_keyring_without_a_key_says_what_to_configure() -> None:
    keyring = Keyring(repository_key=None, fingerprint_key=None)
    with pytest.raises(MissingKeyError, match=r"configuration has no key; set encryption_key_file, "):
        keyring.unwrap(WRAPPED)
    with pytest.raises(MissingKeyError):
        keyring.wrap(DATA_KEY)


def test_a_blob_without_a_data_key_is_refused() -> None:
    with pytest.raises(IntegrityError, match=r"^has no data key in the database$"):
        Keyring(repository_key=KEY, fingerprint_key=None).unwrap(None)


def test_the_repr_of_a_keyring_shows_no_key() -> None:
    shown = repr(Keyring(repository_key=KEY, fingerprint_key=OTHER_KEY))
    assert shown == "Keyring()"


# Slots


def test_a_key_opens_its_slot() -> None:
    assert open_slots([slot(KEY, DATA_KEY)], KEY) == DATA_KEY


def test_a_key_opens_its_slot_among_several() -> None:
    assert open_slots([slot(OTHER_KEY, DATA_KEY, "old"), slot(KEY, DATA_KEY, "new")], KEY) == DATA_KEY


def test_a_slot_identifies_the_key_that_opens_it_and_contains_the_repository_key_wrapped() -> None:
    assert slot(KEY, DATA_KEY) == KeySlot(
        label="configuration",
        kdf="configured-key",
        kdf_parameters="",
        key_check=bytes.fromhex("8fe4571d683fb529"),
        wrapped_key=WRAPPED,
        created_at=NOON,
    )


def test_the_error_for_the_wrong_key_names_it_and_the_right_one() -> None:
    with pytest.raises(WrongKeyError) as caught:
        open_slots([slot(KEY, DATA_KEY)], OTHER_KEY)
    assert str(caught.value) == (
        "the configured key 298c-7508-abe7-881e is not the key of this repository, which is 8fe4-571d-683f-b529; "
        "configure that one (encryption_key_file, encryption_key_command or encryption_key)"
    )


def test_the_error_for_the_wrong_key_names_every_slot() -> None:
    with pytest.raises(WrongKeyError, match="which is 8fe4-571d-683f-b529 or 298c-7508-abe7-881e;"):
        open_slots([slot(KEY, DATA_KEY), slot(OTHER_KEY, DATA_KEY)], bytes(32))


def test_the_message_about_a_wrong_key_contains_no_key() -> None:
    with pytest.raises(WrongKeyError) as caught:
        open_slots([slot(KEY, DATA_KEY)], OTHER_KEY)
    assert_contains_no_key(str(caught.value), KEY, OTHER_KEY, DATA_KEY)


def test_a_damaged_slot_is_not_reported_as_a_wrong_key() -> None:
    whole = slot(KEY, DATA_KEY)
    damaged = KeySlot(
        label=whole.label,
        kdf=whole.kdf,
        kdf_parameters=whole.kdf_parameters,
        key_check=whole.key_check,
        wrapped_key=bytes(40),
        created_at=whole.created_at,
    )
    with pytest.raises(IntegrityError, match=r"^key slot 'configuration' has a wrapped key that is damaged"):
        open_slots([damaged], KEY)


def test_a_slot_of_an_unknown_kind_is_not_opened() -> None:
    other_kind = KeySlot(
        label="passphrase",
        kdf="scrypt",
        kdf_parameters="{}",
        key_check=key_check(KEY),
        wrapped_key=WRAPPED,
        created_at=NOON,
    )
    with pytest.raises(WrongKeyError):
        open_slots([other_kind], KEY)


# Sources of a key


@pytest.mark.parametrize("text", [KEY.hex(), KEY.hex().upper(), f"  {KEY.hex()}\n"])
def test_a_key_is_read_from_the_configuration(text: str) -> None:
    assert read_key(KeySource(hex_digits=text)) == KEY


@pytest.mark.parametrize(
    ("text", "characters"),
    [
        ("", 0),
        ("00" * 31, 62),
        ("00" * 33, 66),
        ("0" * 63, 63),
        ("0x" + "0" * 62, 64),
        ("00 " * 21 + "0", 64),
        (" ".join(["00"] * 32), 95),
        ("zz" * 32, 64),
        ("\N{ARABIC-INDIC DIGIT ONE}" * 64, 64),
    ],
)
def test_the_error_for_an_invalid_key_gives_its_length(text: str, characters: int) -> None:
    with pytest.raises(MissingKeyError) as caught:
        read_key(KeySource(hex_digits=text))
    assert str(caught.value) == (
        f"encryption_key holds no key: {characters} characters, needed are 64 hexadecimal digits"
    )


def test_a_key_is_read_from_a_file(tmp_path: Path) -> None:
    with warnings_of_keys() as warnings:
        assert read_key(key_file(tmp_path, f"{KEY.hex()}\n")) == KEY
    assert warnings == []


@pytest.mark.parametrize("content", ["", "\n", "no key\n", KEY.hex()[:-1], f"{KEY.hex()}\n{KEY.hex()}\n", "é" * 64])
def test_a_file_without_a_key_is_refused_by_name(tmp_path: Path, content: str) -> None:
    source = key_file(tmp_path, content)
    with pytest.raises(MissingKeyError, match=rf"^key file {source.file} holds no key: \d+ characters, needed are 64 "):
        read_key(source)


def test_the_message_about_an_invalid_key_does_not_quote_it(tmp_path: Path) -> None:
    with pytest.raises(MissingKeyError) as caught:
        read_key(key_file(tmp_path, KEY.hex()[:-2]))
    assert_contains_no_key(str(caught.value), KEY)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "none.key"
    with pytest.raises(MissingKeyError, match=rf"^key file {path} cannot be read: No such file or directory$"):
        read_key(KeySource(file=str(path)))


def test_a_directory_is_refused_as_a_key_file(tmp_path: Path) -> None:
    with pytest.raises(MissingKeyError, match=r"cannot be read: Is a directory$"):
        read_key(KeySource(file=str(tmp_path)))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_key_file_that_others_can_read_is_used_with_a_warning(tmp_path: Path, mode: int) -> None:
    source = key_file(tmp_path, KEY.hex(), mode)
    with warnings_of_keys() as warnings:
        assert read_key(source) == KEY
    assert warnings == [
        f"users other than its owner can read key file {source.file}; run `chmod 600 {source.file}`"
    ]


def test_a_private_key_file_gives_no_warning(tmp_path: Path) -> None:
    source = key_file(tmp_path, KEY.hex(), 0o400)
    with warnings_of_keys() as warnings:
        assert read_key(source) == KEY
    assert warnings == []


def test_a_key_is_read_from_the_output_of_a_command() -> None:
    assert read_key(KeySource(command=f"printf '%s\\n' {KEY.hex()} | cat")) == KEY


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"echo {KEY.hex()}; exit 3", "^encryption_key_command ended with status 3; run it by hand"),
        ("no-such-command-anywhere 2>&-", "ended with status 127"),
        ("echo wrong", "^the output of encryption_key_command holds no key: 5 characters"),
        ("printf '\\377\\000\\376'", "the output of encryption_key_command holds no key"),
    ],
    ids=["fails, even if it prints a key", "does not exist", "prints no key", "prints binary"],
)
def test_no_key_comes_from_a_command_that(command: str, words: str) -> None:
    with pytest.raises(MissingKeyError, match=words):
        read_key(KeySource(command=command))


def refusal_without_terminal(command: str, timeout_s: float) -> str:
    """Return the reason why a command run in a session without a terminal, as under cron, gives no key."""
    script = (
        "import sys\nfrom backyfs.errors import MissingKeyError\nfrom backyfs.keys import read_key\n"
        "from backyfs.model import KeySource\n"
        "try:\n    read_key(KeySource(command=sys.argv[1]), timeout_s=float(sys.argv[2]))\n"
        "except MissingKeyError as error:\n    print(error)\n"
    )
    words = [sys.executable, "-c", script, command, str(timeout_s)]
    return subprocess.run(words, start_new_session=True, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("command", ["exec sleep 600", "sleep 600; :", "sleep 600 | cat", "trap '' TERM; sleep 600; :"])
def test_a_command_that_does_not_end_is_abandoned(command: str) -> None:
    refusal = refusal_without_terminal(command, 0.2)
    assert refusal == "encryption_key_command gave no key within 0.2 s; run it by hand to see why"


def test_an_abandoned_command_leaves_nothing_running(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "alive")  # its reader gets POLLHUP when the last writer closes it
    reader = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    try:
        # It redirects stdout and stderr, so waiting for their end does not wait for it.
        command = f"exec 9>{tmp_path}/alive; sleep 600 > /dev/null 2>&1 & echo $! > {tmp_path}/pid; yes"
        assert "prints 4096 bytes or more" in refusal_without_terminal(command, 300)
        poll = select.poll()
        poll.register(reader, 0)
        try:
            assert poll.poll(60_000), "a process of the command is still running"
        finally:
            with suppress(ProcessLookupError):
                os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    finally:
        os.close(reader)


def test_processes_that_a_command_leaves_running_are_not_waited_for() -> None:
    command = f"sleep 600 & echo $! >&2; echo {KEY.hex()}"
    with tempfile.TemporaryFile() as pids:
        before = os.dup(2)
        os.dup2(pids.fileno(), 2)
        try:
            assert read_key(KeySource(command=command), timeout_s=300) == KEY
        finally:
            os.dup2(before, 2)
            os.close(before)
            pids.seek(0)
            os.kill(int(pids.read()), signal.SIGKILL)


def test_a_silent_source_is_abandoned_after_a_minute_as_documented() -> None:
    assert PATIENCE_S == 60


def test_a_command_that_prints_endlessly_is_refused() -> None:
    with pytest.raises(MissingKeyError, match=r"^encryption_key_command prints 4096 bytes or more, which cannot be"):
        read_key(KeySource(command="yes"), timeout_s=300)


def test_a_silent_key_file_is_abandoned(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(MissingKeyError, match=rf"^key file {tmp_path}/key gave no key within 0\.2 s$"):
        read_key(KeySource(file=str(tmp_path / "key")), timeout_s=0.2)


def test_a_key_can_be_read_from_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with subprocess.Popen(["sh", "-c", f"echo {KEY.hex()} > {tmp_path}/key"]):
        assert read_key(KeySource(file=str(tmp_path / "key")), timeout_s=300) == KEY


def test_a_command_gets_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "BACKYFS_TEST_KEY", KEY.hex())
    assert read_key(KeySource(command="echo $BACKYFS_TEST_KEY")) == KEY


def test_the_repr_of_a_source_shows_no_key() -> None:
    shown = repr(KeySource(hex_digits=KEY.hex()))
    assert shown == "KeySource(file=None, command=None, credential=None)"
