"""Read the configuration, backyfs.cfg or the backy.cfg of backy2, into one frozen `Config`.

Loading opens nothing that the configuration names: no key file, database or storage. A returned configuration is
completely checked. Every mistake is a ConfigError with file, line, section and key. No message and no repr shows a key
or a password.
"""

from backyfs.config.databaseurl import has_password, mistake_in_url
from backyfs.config.loader import find_mistakes, load_config
from backyfs.config.places import CONFIG_VARIABLE, find_config
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
    StorageConfig,
)
from backyfs.config.template import config_text, storage_config

__all__ = [
    "CONFIG_VARIABLE",
    "Config",
    "DirectoryStorageConfig",
    "FileIoConfig",
    "HooksConfig",
    "IoConfig",
    "NullStorageConfig",
    "ObjectStoreConfig",
    "RbdConfig",
    "Scheduler",
    "StorageConfig",
    "config_text",
    "find_config",
    "find_mistakes",
    "has_password",
    "load_config",
    "mistake_in_url",
    "storage_config",
]
