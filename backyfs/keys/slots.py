"""Create key slots, and open them with a key or a passphrase."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.errors import IntegrityError, MissingKeyError, WrongKeyError
from backyfs.keys import passphrase as kdf
from backyfs.keys.passphrase import Cost
from backyfs.model import KeySlot
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from backyfs.model import KeySource, PassphraseSource

DEFAULT_COST = Cost()
MAX_SLOTS = 32  # per repository, as in LUKS; if someone has added more, only the oldest ones are tried

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What opens a slot: a 256-bit key or a passphrase; exactly one is set. Never shown."""

    key: bytes | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSlot:
    """A slot that was opened, and its repository key."""

    slot: KeySlot
    repository_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSources:
    """Where to get a key or passphrase from, in the order in which they are tried."""

    key: KeySource | None
    passphrase: PassphraseSource | None
    ask: Callable[[], str] | None = None  # asks the user for a passphrase, if neither is configured


def make_slot(
    secret: Secret, repository_key: bytes, *, label: str, created_at: datetime, cost: Cost | None = None
) -> KeySlot:
    """Return a slot that a key or a passphrase opens; `cost` is for passphrases."""
    if secret.key is not None:
        return keys.new_slot(secret.key, repository_key, label=label, created_at=created_at)
    assert secret.passphrase is not None
    name, parameters = kdf.new_parameters(cost or DEFAULT_COST)
    derived = kdf.derive_key(secret.passphrase, name, parameters)
    return KeySlot(
        label=label,
        kdf=name,
        kdf_parameters=parameters,
        key_check=keys.key_check(derived),
        wrapped_key=keys.wrap_key(derived, repository_key),
        created_at=created_at,
    )


def open_with(slots: list[KeySlot], secret: Secret) -> OpenedSlot:
    """Return the slot that a key or passphrase opens, and the repository key.

    Raises:
        WrongKeyError: it opens no slot.
        IntegrityError: the slot is damaged.
        MissingKeyError: this host does not support the key derivation of the slot.
    """
    if secret.key is not None:
        slot = keys.slot_of_key(slots, secret.key)
        key = keys.open_slots(slots, secret.key)  # raises if there is no slot
        assert slot is not None
        return OpenedSlot(slot=slot, repository_key=key)
    assert secret.passphrase is not None
    affordable, damage = affordable_slots(with_passphrase(slots))
    for slot in affordable:
        try:
            derived = kdf.derive_key(secret.passphrase, slot.kdf, slot.kdf_parameters)
        except IntegrityError as error:
            error.subject = f"key slot {slot.label!r}"
            damage = error
            continue  # the passphrase may open another slot
        if keys.key_check(derived) == slot.key_check:
            return OpenedSlot(slot=slot, repository_key=keys.open_slot(slot, derived))
    if damage is not None:
        raise damage
    raise WrongKeyError(
        f"is not one of this repository, which is opened by {keys.expected_keys(slots)}",
        subject="the passphrase",
        remedy=Advice.OPEN_LISTED_SLOT(),
    )


def affordable_slots(slots: list[KeySlot]) -> tuple[list[KeySlot], IntegrityError | None]:
    """Return the slots to try a passphrase on, the cheapest first, and an error if a slot must be skipped.

    Anyone who can write to the database or the catalog can add slots, and each may take a minute.
    """
    damage = None
    costs: list[tuple[int, int]] = []  # cost and number of each slot
    for number, slot in enumerate(slots[:MAX_SLOTS]):
        try:
            costs.append((kdf.work_kib(slot.kdf, slot.kdf_parameters), number))
        except IntegrityError as error:
            error.subject = f"key slot {slot.label!r}"
            damage = error
    affordable: list[KeySlot] = []
    left_kib = kdf.MAX_WORK_KIB
    for work_kib, number in sorted(costs):
        left_kib -= work_kib
        if left_kib < 0:
            fact = "was not tried: together with the others it takes more time than all slots of a repository do"
            return affordable, IntegrityError(fact, subject=f"key slot {slots[number].label!r}")
        affordable.append(slots[number])
    return affordable, damage


def open_configured(slots: list[KeySlot], sources: SecretSources) -> OpenedSlot:
    """Return the slot that the configuration opens, and the repository key. The key is tried before the passphrase.

    Raises:
        MissingKeyError: there is neither a key nor a passphrase.
        WrongKeyError: they do not open this repository.
        IntegrityError: their slot is damaged.
    """
    if sources.key is not None:
        try:
            return open_with(slots, Secret(key=keys.read_key(sources.key)))
        except (MissingKeyError, WrongKeyError, IntegrityError) as error:
            if sources.passphrase is None:
                raise
            _log.warning("trying the configured passphrase, because %s", error)
    if sources.passphrase is not None:
        return open_with(slots, Secret(passphrase=keys.read_passphrase(sources.passphrase)))
    if sources.ask is not None and with_passphrase(slots):
        return open_with(slots, Secret(passphrase=sources.ask()))
    if with_passphrase(slots):
        raise MissingKeyError(
            f"is encrypted, it is opened by {keys.expected_keys(slots)}, and the configuration has neither key nor "
            "passphrase",
            subject="this repository",
            remedy="set encryption_passphrase_file, encryption_passphrase_command or one of the encryption_key keys",
        )
    raise MissingKeyError(
        f"is encrypted with key {keys.expected_keys(slots)} and the configuration has none",
        subject="this repository",
        remedy="set encryption_key_file, encryption_key_command or encryption_key",
    )


def with_passphrase(slots: list[KeySlot]) -> list[KeySlot]:
    """Return the slots that are opened by passphrases."""
    return [slot for slot in slots if slot.kdf in kdf.KDFS]
