"""Credentials from the configuration, from files that it names, a profile of the AWS command line, or the environment.

Without any of these, the library looks for a web identity, and at the metadata services of containers and hosts.
"""

from __future__ import annotations

import configparser
import logging
import os
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from backyfs.errors import ConfigError, StorageError
from backyfs.files import read_input

if TYPE_CHECKING:
    from collections.abc import Callable

    from obstore.store import S3Credential

    from backyfs.config import ObjectStoreConfig

    Provider = Callable[[], S3Credential]

_log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20
_RETRY_AFTER = timedelta(minutes=1)
_VALID_FOR = timedelta(minutes=15)  # files are read again after this time: they may hold new keys


def credentials_of(config: ObjectStoreConfig) -> Provider | None:
    """Return a function that returns the credentials; None: the library finds them.

    Raises:
        ConfigError: only one half is configured.
        StorageError: a file cannot be read, or does not contain them.
    """
    has_id = config.aws_access_key_id is not None or config.aws_access_key_id_file is not None
    has_secret = config.aws_secret_access_key is not None or config.aws_secret_access_key_file is not None
    if has_id != has_secret:
        missing = "aws_secret_access_key" if has_id else "aws_access_key_id"
        raise ConfigError(
            "is missing, and the other half of the credentials is set",
            section="DataBackend",
            key=missing,
            remedy=f"set {missing} or {missing}_file",
        )
    provide = _provider(config, has_keys=has_id)
    return None if provide is None else _Renewed(provide)


class _Renewed:
    """Credentials that are read again from time to time. If that fails, the last ones are used once more."""

    def __init__(self, provide: Provider) -> None:
        """Read them now, so that a mistake is reported before the first request."""
        self._provide = provide
        self._last = provide()

    def __call__(self) -> S3Credential:
        try:
            self._last = self._provide()
        except StorageError as error:  # somebody may be writing the file
            _log.warning("credentials are not renewed: %s", error)
            self._last = {**self._last, "expires_at": datetime.now(UTC) + _RETRY_AFTER}
        return self._last


def _provider(config: ObjectStoreConfig, *, has_keys: bool) -> Provider | None:
    environ = os.environ
    if has_keys:
        return lambda: _credential(
            _value(config.aws_access_key_id, config.aws_access_key_id_file),
            _value(config.aws_secret_access_key, config.aws_secret_access_key_file),
        )
    if config.aws_profile is not None:
        return partial(_of_profile, config.aws_profile)
    if "AWS_ACCESS_KEY_ID" in environ and "AWS_SECRET_ACCESS_KEY" in environ:
        key_id, secret, token = (
            environ.get(f"AWS_{name}") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
        )
        return lambda: _credential(key_id or "", secret or "", token)
    if "AWS_PROFILE" in environ:
        return partial(_of_profile, environ["AWS_PROFILE"])
    return None


def _credential(key_id: str, secret: str, token: str | None = None) -> S3Credential:
    return {
        "access_key_id": key_id,
        "secret_access_key": secret,
        "token": token,
        "expires_at": datetime.now(UTC) + _VALID_FOR,
    }


def _value(value: str | None, file: str | None) -> str:
    if value is not None:
        return value
    assert file is not None, "one of them is set"
    text = _read(file).strip()
    if not text or len(text.split()) != 1:
        raise StorageError("does not contain a key on a single line", subject=file)
    return text


def _of_profile(profile: str) -> S3Credential:
    files = [
        (os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials"), profile),
        (
            os.environ.get("AWS_CONFIG_FILE") or os.path.expanduser("~/.aws/config"),
            profile if profile == "default" else f"profile {profile}",
        ),
    ]
    for file, section in files:
        if not os.path.exists(file):
            continue
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(_read(file))
        except configparser.Error:
            raise StorageError("is not a file of credentials", subject=file) from None  # it would quote a key
        if parser.has_option(section, "aws_access_key_id") and parser.has_option(section, "aws_secret_access_key"):
            return _credential(
                parser.get(section, "aws_access_key_id"),
                parser.get(section, "aws_secret_access_key"),
                parser.get(section, "aws_session_token", fallback=None),
            )
    raise StorageError(
        "has no aws_access_key_id and aws_secret_access_key",
        subject=f"profile {profile} in {' and '.join(file for file, _ in files)}",
        remedy="add them, or correct `aws_profile` of [DataBackend]",
    )


def _read(file: str) -> str:
    try:
        return read_input(file, _MAX_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", subject=file) from error
