"""Turn the text of a document into a checked Config, and collect warnings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from backyfs.config.document import Document
from backyfs.config.kind import PathContext, Refused
from backyfs.config.places import find_config
from backyfs.config.settings import (
    Config,
    DirectoryStorageConfig,
    FileIoConfig,
    HooksConfig,
    IoConfig,
    NullStorageConfig,
    ObjectStoreConfig,
    RbdConfig,
    Scheduler,
)
from backyfs.config.table import SCHEDULER_KEYS, SECTION_KEYS, STORAGE_KEYS, STORAGE_TYPE
from backyfs.errors import ConfigError
from backyfs.model import KeySource, PassphraseSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from backyfs.config.document import Location
    from backyfs.config.settings import StorageConfig
    from backyfs.config.table import Key

_STORAGE = "DataBackend"
_KEY_SOURCES = {  # key of [DEFAULTS] -> field of KeySource
    "encryption_key": "hex_digits",
    "encryption_key_file": "file",
    "encryption_key_command": "command",
    "encryption_key_credential": "credential",
}
_PASSPHRASE_SOURCES = {"encryption_passphrase_file": "file", "encryption_passphrase_command": "command"}
_LIKENESS = 0.7  # of difflib: block-size and blocksize match block_size, cachedir does not match lock_dir


def load_config(
    file: str | None, environ: Mapping[str, str], *, etc: str = "/etc"
) -> tuple[Config, tuple[str, ...]]:
    """Return the configuration and warnings about it, one sentence each.

    `file` is the file that the user named, if any; see `find_config`. Warnings name sections and keys that backyfs does
    not know or ignores.

    Raises:
        ConfigError: there is no configuration, it cannot be read, or it has a mistake.
    """
    return build(Document.read(find_config(file, environ, etc=etc)), environ)


def find_mistakes(
    file: str | None, environ: Mapping[str, str], *, etc: str = "/etc"
) -> tuple[Config | None, tuple[ConfigError, ...], tuple[str, ...]]:
    """Return the configuration (None if it has mistakes), all its mistakes, and warnings.

    If a file cannot be read or parsed, that is the only mistake.
    """
    try:
        loader = _Loader(Document.read(find_config(file, environ, etc=etc)), environ.get("HOME", ""))
    except ConfigError as error:
        return None, (error,), ()
    mistakes = loader.mistakes()
    if not mistakes:
        try:
            config = loader.config()  # keys can be valid individually but not together
            return config, (), (*loader.unknown(), *loader.warnings)
        except ConfigError as error:
            mistakes = [error]
    return None, tuple(mistakes), ()


def build(document: Document, environ: Mapping[str, str]) -> tuple[Config, tuple[str, ...]]:
    """Return the configuration in a document, and warnings.

    Raises:
        ConfigError: the document has a mistake.
    """
    loader = _Loader(document, environ.get("HOME", ""))
    config = loader.config()
    return config, (*loader.unknown(), *loader.warnings)


def build_storage(document: Document) -> StorageConfig:
    """Return the configuration of the storage in a document that may have nothing else.

    Raises:
        ConfigError: the document has a mistake.
    """
    return _Loader(document, "").storage()


class _Loader:
    """Builds a Config from one document."""

    def __init__(self, document: Document, home: str) -> None:
        self._document = document
        self._home = home if os.path.isabs(home) else None
        self._storage_type = ""
        self.warnings: list[str] = []

    def config(self) -> Config:
        """Return the configuration."""
        defaults = self._values("DEFAULTS", SECTION_KEYS["DEFAULTS"])
        return Config(
            files=self._document.files,
            **self._key_sources(defaults),
            database_url=self._values("MetaBackend", SECTION_KEYS["MetaBackend"])["engine"],
            storage=self.storage(),
            io_file=FileIoConfig(**self._io("io_file")),
            io_null=IoConfig(**self._io("io_null")),
            io_rbd=RbdConfig(**self._io("io_rbd")),
            hooks=self._hooks(),
            schedulers=self._schedulers(),
            **defaults,
        )

    def mistakes(self) -> list[ConfigError]:
        """Return the mistakes of all keys, checking each key separately."""
        found: list[ConfigError] = []

        def look(section: str, keys: Iterable[Key]) -> None:
            for key in keys:
                try:
                    self._values(section, [key])
                except ConfigError as error:
                    found.append(error)

        for section, keys in SECTION_KEYS.items():
            look(section, keys)
        try:
            self._storage_type = self._values(_STORAGE, [STORAGE_TYPE])["type"]
        except ConfigError as error:
            found.append(error)
        else:
            look(_STORAGE, STORAGE_KEYS[self._storage_type])
        for scheduler in self._scheduler_names():
            look(scheduler, SCHEDULER_KEYS)
        return sorted(found, key=lambda error: (error.file, error.line or 0))

    def unknown(self) -> list[str]:
        """Return warnings about unknown sections and keys."""
        places = {place.section: place for place in self._document.sections()}
        # The keys of [DEFAULT] are defaults for other sections, unless the user meant [DEFAULTS].
        if "DEFAULTS" in places:
            places.pop("DEFAULT", None)
        found: list[str] = []
        for section, header in places.items():
            keys = self._keys_of(section)
            if keys is None:
                found.append(_ignored(header, "is not a known section", section, [*SECTION_KEYS, _STORAGE]))
                continue
            names = [key.name for key in keys]
            found += [
                _ignored(place, self._not_known(place), place.key, names)
                for place in self._document.own_keys(section)
                if place.key not in names
            ]
        return found

    def _keys_of(self, section: str) -> tuple[Key, ...] | None:
        if section == _STORAGE:
            return (STORAGE_TYPE, *STORAGE_KEYS[self._storage_type])
        if section in self._scheduler_names():
            return SCHEDULER_KEYS
        return SECTION_KEYS.get(section)

    def _not_known(self, place: Location) -> str:
        elsewhere = {key.name for keys in STORAGE_KEYS.values() for key in keys}
        if place.section == _STORAGE and place.key in elsewhere:
            return f"is not a key of the storage type {self._storage_type}"
        return "is not a known key"

    def _schedulers(self) -> tuple[Scheduler, ...]:
        """Return the schedulers. Their names are stripped of white space, as tags are."""
        found: dict[str, Scheduler] = {}
        for section in self._scheduler_names():
            name = section.strip()
            if not name or name in found:
                fact = "is defined twice" if name else "has a name that no tag can have"
                raise self._place(section, "").error(fact, "rename or remove the section")
            values = self._values(section, SCHEDULER_KEYS)
            found[name] = Scheduler(
                name=name, interval_s=values["interval"], keep=values["keep"], sla_s=values["sla"]
            )
        return tuple(found.values())

    def _scheduler_names(self) -> list[str]:
        marks = {key.name for key in SCHEDULER_KEYS}
        return [
            place.section
            for place in self._document.sections()
            if place.section not in (*SECTION_KEYS, _STORAGE, "DEFAULT")
            and any(own.key in marks for own in self._document.own_keys(place.section))
        ]

    def _values(self, section: str, keys: Iterable[Key]) -> dict[str, Any]:
        """Return the values of the keys that are set in the section, by name."""
        values: dict[str, Any] = {}
        for key in keys:
            place = self._document.place(section, key.name)
            if place is not None:
                text = self._document.text(section, place)
                if text or not key.kind.optional:
                    values[key.name] = self._value(key, place, text)
            elif key.required:
                raise self._missing(section, key)
        return values

    def _value(self, key: Key, place: Location, text: str) -> object:
        try:
            return key.kind.value(text, PathContext(directory=os.path.dirname(place.file), home=self._home))
        except Refused as refused:
            raise place.error(f"{key.name} {refused.fact}", refused.remedy) from None

    def _missing(self, section: str, key: Key) -> ConfigError:
        remedy = f"allowed: {key.kind.allowed}"
        for place in self._document.own_keys(section):
            if _nearest(place.key, [key.name]):
                remedy += f"; line {place.line} of {place.file} has {place.key}"
        for place in self._document.sections():
            if place.section not in (section, *SECTION_KEYS, _STORAGE) and _nearest(place.section, [section]):
                remedy += f"; line {place.line} of {place.file} has [{place.section}]"
        files = ", ".join(self._document.files)
        return ConfigError(f"{key.name} is missing", file=files, section=section, key=key.name, remedy=remedy)

    def _key_sources(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """Move the keys that say where key and passphrase are out of `defaults`, and check them together."""
        key = self._one_of(_KEY_SOURCES, defaults)
        passphrase = self._one_of(_PASSPHRASE_SOURCES, defaults)
        version = defaults.get("encryption_version")
        if version and not key and not passphrase:
            raise self._place("DEFAULTS", "encryption_version").error(
                f"encryption_version is {version}, which needs a key",
                "set encryption_key_file, encryption_key_command or encryption_key, or set encryption_version to 0 to "
                "store plain blocks",
            )
        return {
            "key": KeySource(**key) if key else None,
            "passphrase": PassphraseSource(**passphrase) if passphrase else None,
        }

    def _one_of(self, fields: dict[str, str], defaults: dict[str, Any]) -> dict[str, Any]:
        """Move the values of these keys out of `defaults`. At most one of the keys may be set."""
        sources = {name: defaults.pop(name) for name in fields if name in defaults}
        places = [self._place("DEFAULTS", name) for name in sources]
        if len(places) > 1:
            *others, last = (f"{place.key} (line {place.line} of {place.file})" for place in places)
            raise places[-1].error(f"{', '.join(others)} and {last} are set together", "allowed: one of them")
        return {fields[name]: value for name, value in sources.items()}

    def _place(self, section: str, key: str) -> Location:
        place = self._document.place(section, key)
        assert place is not None, "called for a key that has a value"
        return place

    def _hooks(self) -> HooksConfig:
        values = self._values("hooks", SECTION_KEYS["hooks"])
        timeout_s = values.pop("timeout", HooksConfig().timeout_s)
        return HooksConfig(commands=tuple(values.items()), timeout_s=timeout_s)

    def _io(self, section: str) -> dict[str, Any]:
        values = self._values(section, SECTION_KEYS[section])
        # backy2 used simultaneous_reads for both.
        if "simultaneous_reads" in values:
            values.setdefault("simultaneous_writes", values["simultaneous_reads"])
        return values

    def storage(self) -> StorageConfig:
        """Return the configuration of the storage."""
        self._storage_type = self._values(_STORAGE, [STORAGE_TYPE])["type"]
        values = self._values(_STORAGE, STORAGE_KEYS[self._storage_type])
        match self._storage_type:
            case "file":
                return DirectoryStorageConfig(**values)
            case "null":
                return NullStorageConfig(**values)
            case "minio":
                values["use_ssl"] = values.pop("secure", False)
                values["endpoint_url"] = f"http{'s' * values['use_ssl']}://{values.pop('host')}"
        for name in ("aws_access_key_id", "aws_secret_access_key"):
            if name in values and values.pop(f"{name}_file", None):
                ignored = self._place(_STORAGE, f"{name}_file")
                self.warnings.append(str(ignored.error(f"is ignored, because {name} is set")))
        if "endpoint_url" in values:
            uses_tls = values["endpoint_url"].startswith("https:")
            if values.get("use_ssl", uses_tls) is not uses_tls:
                ignored = self._place(_STORAGE, "use_ssl")
                self.warnings.append(str(ignored.error("is ignored, because endpoint_url says otherwise")))
            values["use_ssl"] = uses_tls
        return ObjectStoreConfig(kind="minio" if self._storage_type == "minio" else "s3", **values)


def _ignored(place: Location, fact: str, name: str, known: list[str]) -> str:
    nearest = _nearest(name, known)
    question = f"; did you mean {nearest}?" if nearest else ""
    return str(place.error(f"{fact} and is ignored{question}"))


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return the most similar of the `known` names, ignoring case; empty if none is similar."""
    import difflib  # noqa: PLC0415 - 5 ms, and only mistakes need it

    by_folded = {one.casefold(): one for one in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=_LIKENESS)
    return by_folded[found[0]] if found else ""
