"""Key slots with passphrases, and recovery pages: what they open, and the message for each mistake."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf import argon2
from hypothesis import given
from hypothesis import strategies as st

from backyfs.errors import IntegrityError, KeyMaterialError, MissingKeyError, WrongKeyError
from backyfs.keys import passphrase as kdf
from backyfs.keys import read_key, read_passphrase
from backyfs.keys.passphrase import Cost, derive_key, new_parameters
from backyfs.keys.recovery import GROUPS, read_page, write_groups, write_page
from backyfs.keys.slots import MAX_SLOTS, Secret, SecretSources, affordable_slots, make_slot, open_configured, open_with
from backyfs.model import KeySlot, KeySource, PassphraseSource

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(32))
OTHER_KEY = bytes.fromhex("decafbad" * 8)
REPOSITORY_KEY = bytes(range(100, 132))
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
PAGE = """\
1: 000G-40TY
2: 0G2G-C1YZ
3: 104G-M2R3
4: 1G6G-W3YT
5: 208H-44Z4
6: 2GAH-C5V5
7: 30CH-M6XS
8: 3GEH-W7YG
9: HZJ5-E78M
"""
CHEAP = Cost(memory_kib=64, passes=1, lanes=1)
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def passphrase_slot(text: str, label: str = "words") -> KeySlot:
    return make_slot(Secret(passphrase=text), REPOSITORY_KEY, label=label, created_at=NOON, cost=CHEAP)


def key_slot(key: bytes, label: str = "configuration") -> KeySlot:
    return make_slot(Secret(key=key), REPOSITORY_KEY, label=label, created_at=NOON)


def remove_argon2id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the cryptographic library look as if built without Argon2id."""

    def refuse(**_options: object) -> None:
        raise UnsupportedAlgorithm("argon2id is not supported")

    monkeypatch.setattr(argon2, "Argon2id", refuse)


# Derivation


def test_the_key_that_argon2id_derives_never_changes() -> None:
    parameters = json.dumps({"salt": b"0123456789abcdef".hex(), "memory_kib": 64, "passes": 2, "lanes": 1})
    assert derive_key("words", "argon2id", parameters).hex() == (
        "9a3324ec473d39be8db6581866edb074bb0fd6cd8d1dab6a2eb222cda092c7db"
    )


def test_scrypt_follows_rfc_7914() -> None:
    # Section 12, the vector for "pleaseletmein". Its first 32 bytes do not depend on the length requested.
    parameters = json.dumps({"salt": b"SodiumChloride".hex(), "n": 16384, "r": 8, "p": 1})
    expected = "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
    assert derive_key("pleaseletmein", "scrypt", parameters).hex() == expected


def test_the_default_costs_as_much_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    name, parameters = new_parameters(Cost())
    found = json.loads(parameters)
    assert (name, found.pop("salt") != "") == ("argon2id", True)
    assert found == {"memory_kib": 128 << 10, "passes": 6, "lanes": 4}
    remove_argon2id(monkeypatch)
    name, parameters = new_parameters(Cost())
    found = json.loads(parameters)
    assert (name, 128 * found["n"] * found["r"]) == ("scrypt", 128 << 20)


def test_without_argon2id_a_new_slot_uses_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    remove_argon2id(monkeypatch)
    slot = passphrase_slot("words")
    assert (slot.kdf, json.loads(slot.kdf_parameters)["n"]) == ("scrypt", 64)
    assert open_with([slot], Secret(passphrase="words")).repository_key == REPOSITORY_KEY


def test_equivalent_spellings_of_a_passphrase_are_the_same() -> None:
    name, parameters = new_parameters(CHEAP)
    assert derive_key("Schlu\u0308ssel", name, parameters) == derive_key("Schl\u00fcssel", name, parameters)


@pytest.mark.parametrize(
    "change",
    [
        {"memory_kib": 100 << 20},
        {"memory_kib": 0},
        {"memory_kib": "64"},
        {"memory_kib": True},
        {"passes": 1 << 31},
        {"passes": 0},
        {"lanes": 1000},
        {"salt": ""},
        {"salt": "xyz"},
        {"salt": None},
    ],
)
def test_a_hostile_slot_is_damage_and_costs_nothing(change: dict[str, object]) -> None:
    slot = passphrase_slot("words")
    parameters = json.dumps(json.loads(slot.kdf_parameters) | change)
    with pytest.raises(IntegrityError, match=r"^key slot 'words' has parameters that no slot of backyfs has "):
        open_with([replace(slot, kdf_parameters=parameters)], Secret(passphrase="words"))


@pytest.mark.parametrize("change", [{"n": 1 << 21}, {"n": 0}, {"n": 65}, {"n": "64"}, {"r": 16}, {"r": 0}, {"p": 1000}])
def test_a_hostile_scrypt_slot_is_damage_and_costs_nothing(change: dict[str, object]) -> None:
    parameters = json.dumps({"salt": "00" * 16, "n": 64, "r": 8, "p": 2} | change)
    slot = replace(passphrase_slot("words"), kdf="scrypt", kdf_parameters=parameters)
    with pytest.raises(IntegrityError, match=r"^key slot 'words' has parameters that no slot of backyfs has "):
        open_with([slot], Secret(passphrase="words"))


@pytest.mark.parametrize("parameters", ["", "{", "[]", "1", "[" * 100_000, '{"a": 1}' + " " * 1024])
def test_parameters_that_are_not_json_are_damage(parameters: str) -> None:
    with pytest.raises(IntegrityError, match=r"^key slot 'words' has parameters that are not a JSON object"):
        open_with([replace(passphrase_slot("words"), kdf_parameters=parameters)], Secret(passphrase="words"))


# Slots


def test_the_right_passphrase_opens_its_slot_among_others() -> None:
    slots = [key_slot(KEY), passphrase_slot("other", "first"), passphrase_slot("words", "second")]
    opened = open_with(slots, Secret(passphrase="words"))
    assert (opened.slot.label, opened.repository_key) == ("second", REPOSITORY_KEY)


def test_a_damaged_slot_does_not_prevent_another_from_opening() -> None:
    damaged = replace(passphrase_slot("words", "first"), kdf_parameters="")
    opened = open_with([damaged, passphrase_slot("words", "second")], Secret(passphrase="words"))
    assert opened.slot.label == "second"


def test_no_more_than_32_slots_are_tried() -> None:
    others = [passphrase_slot("other", f"{number}") for number in range(32)]
    assert open_with([*others[:31], passphrase_slot("words")], Secret(passphrase="words")).slot.label == "words"
    with pytest.raises(WrongKeyError):
        open_with([*others, passphrase_slot("words")], Secret(passphrase="words"))


def test_the_work_for_all_slots_together_is_bounded() -> None:
    dear = replace(passphrase_slot("words"), kdf_parameters=costing(memory_kib=1 << 20, passes=32))
    slots = [replace(dear, label=f"{number}") for number in range(20)]
    affordable, damage = affordable_slots([*slots, passphrase_slot("words", "ours")])
    assert [slot.label for slot in affordable] == ["ours"]
    assert str(damage) == (
        "key slot '0' was not tried: together with the others it takes more time than all slots of a repository do"
    )
    assert open_with([*slots, passphrase_slot("words", "ours")], Secret(passphrase="words")).slot.label == "ours"


def test_slots_that_need_too_much_work_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    dear = replace(passphrase_slot("words"), kdf_parameters=costing(memory_kib=1 << 20, passes=32))
    slots = [replace(dear, label=f"{number}") for number in range(20)]
    ours = passphrase_slot("words", "ours")
    tried: list[str] = []

    def derive(passphrase: str, name: str, parameters: str) -> bytes:
        tried.append(parameters)
        return derive_key(passphrase, name, parameters) if parameters == ours.kdf_parameters else bytes(32)

    monkeypatch.setattr(kdf, "derive_key", derive)
    assert open_with([*slots, ours], Secret(passphrase="words")).slot.label == "ours"
    assert tried == [ours.kdf_parameters]  # the cheapest is tried first
    tried.clear()
    with pytest.raises(IntegrityError, match="was not tried"):
        open_with(slots, Secret(passphrase="words"))
    assert len(tried) == 1


def test_all_slots_are_tried_up_to_the_maximum_number() -> None:
    slots = [replace(passphrase_slot("words"), kdf_parameters=costing(memory_kib=128 << 10, passes=6))] * MAX_SLOTS
    assert affordable_slots(slots) == (slots, None)


def costing(**cost: int) -> str:
    return json.dumps(json.loads(passphrase_slot("words").kdf_parameters) | cost)


def test_wrong_missing_and_damaged_have_different_messages() -> None:
    slot = passphrase_slot("words")
    with pytest.raises(WrongKeyError, match=r"^the passphrase is not one of this repository, which is "):
        open_with([slot], Secret(passphrase="word"))
    with pytest.raises(MissingKeyError, match=r"^this repository is encrypted, it is opened by the pass"):
        open_configured([slot], SecretSources(key=None, passphrase=None))
    with pytest.raises(IntegrityError, match=r"^key slot 'words' has a wrapped key that is damaged"):
        open_with([replace(slot, wrapped_key=bytes(40))], Secret(passphrase="words"))


def test_secrets_are_not_shown() -> None:
    assert repr(Secret(key=KEY)) == repr(Secret(passphrase="words")) == "Secret()"


def test_the_configured_key_is_tried_before_a_passphrase(tmp_path: Path) -> None:
    source = PassphraseSource(command="echo words")
    slots = [passphrase_slot("words"), key_slot(KEY)]
    sources = SecretSources(key=KeySource(hex_digits=KEY.hex()), passphrase=source)
    assert open_configured(slots, sources).slot == slots[1]
    for key in (KeySource(hex_digits=OTHER_KEY.hex()), KeySource(file=str(tmp_path / "none"))):
        assert open_configured(slots, SecretSources(key=key, passphrase=source)).slot == slots[0]


def test_a_passphrase_is_asked_for_only_if_a_slot_needs_one() -> None:
    sources = SecretSources(key=None, passphrase=None, ask=lambda: "words")
    assert open_configured([passphrase_slot("words")], sources).repository_key == REPOSITORY_KEY
    with pytest.raises(MissingKeyError):
        open_configured([key_slot(KEY)], sources)


# Reading


def test_a_key_is_read_from_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = KeySource(credential="backyfs.key")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(MissingKeyError, match="CREDENTIALS_DIRECTORY is not set"):
        read_key(source)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(MissingKeyError, match=r"^the credential backyfs\.key cannot be read: .*No such file"):
        read_key(source)
    (tmp_path / "backyfs.key").write_text(KEY.hex())
    assert read_key(source) == KEY


def test_a_passphrase_ends_before_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "words"
    file.write_text(" two w\u00f6rds \n", encoding="utf-8")
    file.chmod(0o600)
    assert read_passphrase(PassphraseSource(file=str(file))) == " two w\u00f6rds "
    assert read_passphrase(PassphraseSource(command="printf 'a b'")) == "a b"
    with pytest.raises(MissingKeyError, match=r"^the output of encryption_passphrase_command holds no passphrase"):
        read_passphrase(PassphraseSource(command="echo"))
    with pytest.raises(MissingKeyError, match=r"^encryption_passphrase_command ended with status 3"):
        read_passphrase(PassphraseSource(command="exit 3"))


# Recovery pages


def test_the_format_of_a_page_never_changes() -> None:
    assert write_page(KEY) == PAGE


@given(st.binary(min_size=32, max_size=32))
def test_a_written_page_can_be_read(key: bytes) -> None:
    assert read_page(f"any text\n{write_page(key)}and more\n") == key
    assert read_page(write_page(key).lower().replace("-", " ").replace("0", "o").replace(": ", ".")) == key


@given(st.binary(min_size=32, max_size=32), st.integers(1, GROUPS), st.integers(0, 7), st.sampled_from(ALPHABET))
def test_the_error_for_a_wrong_character_names_its_group(key: bytes, number: int, place: int, letter: str) -> None:
    groups = [group.replace("-", "") for group in write_groups(key)]
    wrong = groups[number - 1]
    if wrong[place] == letter:
        return
    groups[number - 1] = wrong[:place] + letter + wrong[place + 1 :]
    page = "\n".join(f"{n}: {group}" for n, group in enumerate(groups, start=1))
    with pytest.raises(KeyMaterialError, match=rf"^group {number} of the recovery page has a mistake"):
        read_page(page)


@given(st.binary(min_size=32, max_size=32), st.integers(1, GROUPS), st.integers(1, GROUPS))
def test_the_error_for_a_group_in_the_place_of_another_names_it(key: bytes, number: int, other: int) -> None:
    groups = list(write_groups(key))
    if number == other:
        return
    groups[number - 1] = groups[other - 1]
    page = "\n".join(f"{n}: {group}" for n, group in enumerate(groups, start=1))
    with pytest.raises(KeyMaterialError, match=rf"^group {number} of the recovery page has a mistake"):
        read_page(page)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("4: 1G6G-W3YT\n", "4: 1G6G-W3YT\n" * 2, r"has group 4 twice"),
        ("3: ", "x", r"lacks group 3;"),
        ("3: ", "12: ", r"has a group 12;"),
        ("3: ", "3: A", r"^group 3 of the recovery page has 9 characters and not 8"),
    ],
)
def test_other_mistakes_are_reported(old: str, new: str, message: str) -> None:
    with pytest.raises(KeyMaterialError, match=message):
        read_page(PAGE.replace(old, new))


def test_the_error_for_an_invalid_character_names_it() -> None:
    with pytest.raises(KeyMaterialError, match=r"^group 1 .* has a character that is in no group, 'U'"):
        read_page("1: UUUU-UUUU\n")


def test_groups_of_two_pages_cannot_be_mixed() -> None:
    mixed = write_page(OTHER_KEY).splitlines()[:1] + PAGE.splitlines()[1:]
    with pytest.raises(KeyMaterialError, match="do not belong together"):
        read_page("\n".join(mixed))
