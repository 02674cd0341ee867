"""The configuration: which file is used, how it is read, and how mistakes are reported."""

import configparser
import os
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backyfs.config import (
    DirectoryStorageConfig,
    FileIoConfig,
    IoConfig,
    NullStorageConfig,
    ObjectStoreConfig,
    RbdConfig,
    Scheduler,
    config_text,
    find_config,
    load_config,
)
from backyfs.config.document import Document
from backyfs.config.loader import build
from backyfs.config.table import SCHEDULER_KEYS, SECTION_KEYS, STORAGE_KEYS
from backyfs.errors import ConfigError
from backyfs.model import Deduplication, KeySource

KEY = "decafbad" * 8

BACKY2_VERSION_1 = """\
[DEFAULTS]
logfile: backy.log
block_size: 65536
hash_function: sha512
lock_dir: .
cachedir: .
process_name: bkfix
disallow_rm_when_younger_than_days: 0
deduplication: 1
encryption_key: decafbaddecafbaddecafbaddecafbaddecafbaddecafbaddecafbaddecafbad
encryption_version: 1

[MetaBackend]
type: backy2.meta_backends.sql
engine: sqlite:///backy.sqlite

[DataBackend]
type: backy2.data_backends.file
path: data
simultaneous_writes: 5
simultaneous_reads: 5

[io_file]
simultaneous_reads: 5
simultaneous_writes: 5
"""

BACKY2_VERSION_0 = re.sub(r"encryption_key: .*\n", "", BACKY2_VERSION_1).replace("version: 1", "version: 0")

BACKENDS = """\
[MetaBackend]
engine: sqlite:////var/lib/backyfs/backyfs.sqlite
[DataBackend]
type: file
path: /srv/blobs
"""

ENVIRON = {"HOME": "/home/ada"}

S3 = ["type: s3", "bucket_name: b"]
MINIO = ["type: minio", "bucket_name: b"]

# Allowed values in error messages, if long.
BLOCK_SIZES = "a number of bytes that is a multiple of 512, from 512 to 67108864"
HASHES = "blake3, or a name in Python's hashlib with digests of one length, such as sha512"
INTERVALS = "allowed: a number, 1 or more, and a unit (s, m, h, d, w), as in 1d"
STORAGES = (
    "allowed: file, s3, minio, null, directory; "
    "also as backy2.data_backends.NAME or backyfs.data_backends.NAME"
)


def parse(text, environ=ENVIRON, file="/e/b.cfg") -> tuple[Any, tuple[str, ...]]:
    """Parse a text; return the configuration and the warnings."""
    return build(Document([(file, text)]), environ)


def config_of(text, **options) -> Any:
    config, warnings = parse(text, **options)
    assert warnings == ()
    return config


def refusal(text, **options):
    with pytest.raises(ConfigError) as caught:
        parse(text, **options)
    return caught.value


def said(error):
    """Return the fact and remedy of an error, without its place."""
    return f"{error.fact}; {error.remedy}" if error.remedy else error.fact


def with_defaults(*lines):
    return "[DEFAULTS]\n" + "".join(f"{line}\n" for line in lines) + BACKENDS


def with_storage(*lines):
    return "[MetaBackend]\nengine: sqlite:////m\n[DataBackend]\n" + "".join(f"{line}\n" for line in lines)


def with_engine(url):
    return f"[MetaBackend]\nengine: {url}\n[DataBackend]\ntype: file\npath: /srv/blobs\n"


def write(path, text=BACKENDS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


# Reading values


def test_all_of_a_backy2_configuration_with_encryption_is_read(tmp_path):
    file = write(tmp_path / "backy.cfg", BACKY2_VERSION_1)
    config, warnings = load_config(file, {})
    assert warnings == ()
    assert config.files == (file,)
    assert config.logfile == f"{tmp_path}/backy.log"
    assert config.block_size == 65536
    assert config.hash_function == "sha512"
    assert config.lock_dir == str(tmp_path)
    assert config.cachedir == str(tmp_path)
    assert config.process_name == "bkfix"
    assert config.disallow_rm_when_younger_than_days == 0
    assert config.deduplication is Deduplication.ON
    assert config.encryption_version == 1
    assert config.key == KeySource(hex_digits=KEY)
    assert config.database_url == f"sqlite:///{tmp_path}/backy.sqlite"
    assert config.storage == DirectoryStorageConfig(
        path=f"{tmp_path}/data", simultaneous_writes=5, simultaneous_reads=5
    )
    assert config.io_file == FileIoConfig(simultaneous_reads=5, simultaneous_writes=5)
    assert config.schedulers == ()


def test_a_configuration_of_backy2_without_encryption_has_no_key():
    config = config_of(BACKY2_VERSION_0)
    assert config.encryption_version == 0
    assert config.key is None


@pytest.mark.parametrize("level", [1, 19])
def test_a_compression_level_is_accepted(level):
    assert config_of(with_defaults(f"compression_level: {level}")).compression_level == level


def test_a_key_is_accepted_with_encryption_version_0():
    config = config_of(with_defaults("encryption_version: 0", f"encryption_key: {KEY}"))
    assert config.key == KeySource(hex_digits=KEY)


def test_missing_keys_have_their_defaults():
    config = config_of(BACKENDS)
    assert config.block_size is None
    assert config.hash_function is None
    assert config.logfile is None
    assert config.lock_dir is None
    assert config.cachedir is None
    assert config.process_name == "backyfs"
    assert config.disallow_rm_when_younger_than_days == 0
    assert config.deduplication is Deduplication.ON
    assert config.encryption_version is None
    assert config.key is None
    assert config.storage == DirectoryStorageConfig(
        path="/srv/blobs", simultaneous_writes=None, simultaneous_reads=None, bandwidth_read=0, bandwidth_write=0
    )
    assert config.io_file == FileIoConfig(simultaneous_reads=None, simultaneous_writes=None)
    assert config.io_null == IoConfig(simultaneous_reads=None, simultaneous_writes=None)
    assert config.io_rbd == RbdConfig(
        rados_name="client.admin", cluster_name="ceph", ceph_conffile=None,
        simultaneous_reads=10, simultaneous_writes=10, new_image_features=(),
    )  # fmt: skip
    assert config.schedulers == ()


def test_a_configuration_cannot_be_changed():
    config = config_of(BACKENDS)
    with pytest.raises(FrozenInstanceError):
        config.block_size = 4096


def test_an_equals_sign_works_like_a_colon():
    assert config_of(with_defaults("block_size = 4096", "process_name=x:y")).block_size == 4096


def test_key_names_are_case_insensitive():
    assert config_of(with_defaults("Block_Size: 4096")).block_size == 4096


def test_a_doubled_percent_sign_means_one():
    config = config_of(with_engine("postgresql://ada:p%%40ss@host/backup"))
    assert config.database_url == "postgresql://ada:p%40ss@host/backup"


def test_a_value_can_refer_to_another_key():
    config = config_of("[DEFAULT]\nbase: /srv\n[DEFAULTS]\nlogfile: %(base)s/log\n" + BACKENDS)
    assert config.logfile == "/srv/log"


def test_a_key_in_the_ini_default_section_applies_to_all_existing_sections():
    config = config_of("[DEFAULT]\nsimultaneous_reads: 7\n[DEFAULTS]\n" + BACKENDS)
    assert config.storage.simultaneous_reads == 7


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path):
    file = tmp_path / "b.cfg"
    file.write_bytes(b"\xef\xbb\xbf" + with_defaults("block_size: 4096").replace("\n", "\r\n").encode())
    assert load_config(str(file), {})[0].block_size == 4096


@pytest.mark.parametrize("prefix", ["", "backy2.meta_backends.", "backyfs.meta_backends."])
def test_the_type_of_the_metadata_has_three_spellings(prefix):
    config_of(BACKENDS.replace("engine", f"type: {prefix}sql\nengine"))


@pytest.mark.parametrize("prefix", ["", "backy2.data_backends.", "backyfs.data_backends."])
@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("file", ["path: /b"], DirectoryStorageConfig),
        ("directory", ["path: /b"], DirectoryStorageConfig),
        ("s3", ["bucket_name: b"], ObjectStoreConfig),
        ("minio", ["bucket_name: b", "host: h"], ObjectStoreConfig),
        ("null", [], NullStorageConfig),
    ],
)
def test_the_type_of_the_storage_has_three_spellings(prefix, name, keys, expected):
    assert type(config_of(with_storage(f"type: {prefix}{name}", *keys)).storage) is expected


def test_all_keys_of_s3_are_read():
    lines = [
        "type: s3", "aws_access_key_id: AK", "aws_secret_access_key_file: secret", "region_name: eu-1",
        "endpoint_url: https://s3.example.com", "signature_version: s3v4", "use_ssl: true", "bucket_name: bb",
        "addressing_style: path", "disable_encoding_type: yes", "simultaneous_writes: 2",
        "simultaneous_reads: 3", "bandwidth_read: 4", "bandwidth_write: 5",
    ]  # fmt: skip
    assert config_of(with_storage(*lines)).storage == ObjectStoreConfig(
        kind="s3", aws_access_key_id="AK", aws_secret_access_key_file="/e/secret", region_name="eu-1",
        endpoint_url="https://s3.example.com", signature_version="s3v4", use_ssl=True, bucket_name="bb",
        addressing_style="path", disable_encoding_type=True, simultaneous_writes=2,
        simultaneous_reads=3, bandwidth_read=4, bandwidth_write=5,
    )  # fmt: skip


def test_host_and_secure_of_minio_become_an_endpoint():
    plain = config_of(with_storage(*MINIO, "host: localhost:9000")).storage
    assert (plain.kind, plain.endpoint_url, plain.use_ssl) == ("minio", "http://localhost:9000", False)
    secure = config_of(with_storage(*MINIO, "host: h", "secure: 1")).storage
    assert (secure.endpoint_url, secure.use_ssl) == ("https://h", True)


def test_the_scheme_of_the_endpoint_decides_whether_tls_is_used():
    lines = [*S3, "endpoint_url: http://localhost:9000", "use_ssl: true"]
    config, warnings = parse(with_storage(*lines))
    assert config.storage.use_ssl is False
    [warning] = warnings
    assert warning.endswith("[DataBackend] use_ssl: is ignored, because endpoint_url says otherwise")


def test_without_an_endpoint_tls_is_on_unless_it_is_switched_off():
    assert config_of(with_storage(*S3)).storage.use_ssl is True
    assert config_of(with_storage(*S3, "use_ssl: false")).storage.use_ssl is False


def test_empty_keys_of_an_object_store_are_treated_as_missing():
    lines = [*S3, "region_name:", "endpoint_url:", "use_ssl:", "addressing_style:",
             "aws_access_key_id:", "aws_access_key_id_file: /k"]  # fmt: skip
    assert config_of(with_storage(*lines)).storage == ObjectStoreConfig(
        kind="s3", bucket_name="b", aws_access_key_id_file="/k"
    )


def test_an_access_key_takes_precedence_over_its_file_with_a_warning():
    lines = [*S3, "aws_access_key_id: AK", "aws_access_key_id_file: /k"]
    config, [warning] = parse(with_storage(*lines))
    assert config.storage.aws_access_key_id == "AK"
    assert config.storage.aws_access_key_id_file is None
    assert warning == (
        "/e/b.cfg, line 7: [DataBackend] aws_access_key_id_file: "
        "is ignored, because aws_access_key_id is set"
    )


@pytest.mark.parametrize(("value", "read_holes"), [("1", True), ("no", False), ("", False)])
def test_holes_of_files_are_read_if_configured(value, read_holes):
    assert config_of(BACKENDS + f"[io_file]\nread_holes: {value}\n").io_file == FileIoConfig(read_holes=read_holes)


def test_without_a_number_of_writes_that_of_reads_is_used():
    config = config_of(BACKENDS + "[io_file]\nsimultaneous_reads: 4\n[io_null]\nsimultaneous_writes: 3\n")
    assert config.io_file == FileIoConfig(simultaneous_reads=4, simultaneous_writes=4)
    assert config.io_null == IoConfig(simultaneous_reads=None, simultaneous_writes=3)


def test_features_of_new_images_can_span_several_lines():
    config = config_of(
        BACKENDS
        + "[io_rbd]\nrados_name: client.b\nceph_conffile: ceph.conf\nnew_image_features:\n"
        + "    RBD_FEATURE_LAYERING\n# not this one\n    RBD_FEATURE_EXCLUSIVE_LOCK\nsimultaneous_writes: 5\n"
    )
    assert config.io_rbd == RbdConfig(
        rados_name="client.b",
        ceph_conffile="/e/ceph.conf",
        simultaneous_writes=5,
        new_image_features=("RBD_FEATURE_LAYERING", "RBD_FEATURE_EXCLUSIVE_LOCK"),
    )


def test_other_sections_with_an_interval_are_schedulers_in_their_order():
    config = config_of(
        BACKENDS
        + "[weekly]\ninterval: 1w\nkeep: 5\nsla: 12h\n[hourly]\ninterval: 60m\nkeep: 0\nsla: 90s\n"
        + "[daily]\ninterval: 1d\nkeep: 8\nsla: 0s\n"
    )
    assert config.schedulers == (
        Scheduler(name="weekly", interval_s=604800, keep=5, sla_s=43200),
        Scheduler(name="hourly", interval_s=3600, keep=0, sla_s=90),
        Scheduler(name="daily", interval_s=86400, keep=8, sla_s=0),
    )


def test_white_space_around_the_name_of_a_scheduler_is_dropped_as_it_is_around_tags():
    config = config_of(BACKENDS + "[ daily ]\ninterval: 1d\nkeep: 8\nsla: 1h\n")
    assert [scheduler.name for scheduler in config.schedulers] == ["daily"]


@pytest.mark.parametrize(
    ("header", "fact"),
    [("[ daily ]", "is defined twice"), ("[ ]", "has a name that no tag can have")],
)
def test_duplicate_and_empty_names_of_schedulers_are_refused(header, fact):
    keys = "interval: 1d\nkeep: 8\nsla: 1h\n"
    error = refusal(BACKENDS + f"[daily]\n{keys}{header}\n{keys}")
    assert (error.section, error.line) == (header[1:-1], 10)
    assert said(error) == f"{fact}; rename or remove the section"


@pytest.mark.parametrize("text", ["1", "true", "Yes", "on"])
def test_words_for_true(text):
    assert config_of(with_defaults(f"deduplication: {text}")).deduplication is Deduplication.ON


@pytest.mark.parametrize("text", ["0", "false", "NO", "off"])
def test_words_for_false(text):
    assert config_of(with_defaults(f"deduplication: {text}")).deduplication is Deduplication.OFF


def test_deduplication_can_be_limited_to_blocks_of_the_same_version():
    config = config_of(with_defaults("deduplication: same-version"))
    assert config.deduplication is Deduplication.SAME_VERSION


@pytest.mark.parametrize("name", ["blake3", "sha512", "sha256", "sha3_256", "blake2b", "md5"])
def test_known_hash_functions_are_accepted(name):
    assert config_of(with_defaults(f"hash_function: {name}")).hash_function == name


@pytest.mark.parametrize("size", [512, 1536, 65536, 4194304, 67108864])
def test_allowed_block_sizes_are_accepted(size):
    assert config_of(with_defaults(f"block_size: {size}")).block_size == size


@pytest.mark.parametrize("version", [0, 2, 99])
def test_encryption_versions_are_not_checked_here(version):
    config = config_of(with_defaults(f"encryption_version: {version}", "encryption_key_file: /k"))
    assert config.encryption_version == version


# Sources of the key


def test_a_key_file_is_a_path():
    assert config_of(with_defaults("encryption_key_file: key")).key == KeySource(file="/e/key")


def test_a_key_command_is_kept_unchanged():
    config = config_of(with_defaults("encryption_key_command: pass show backup | head -1"))
    assert config.key == KeySource(command="pass show backup | head -1")


def test_two_sources_of_the_key_are_a_mistake_that_names_both():
    error = refusal(with_defaults(f"encryption_key: {KEY}", "encryption_key_file: /k"))
    assert error.line == 3
    assert said(error) == (
        "encryption_key (line 2 of /e/b.cfg) and encryption_key_file (line 3 of /e/b.cfg) "
        "are set together; allowed: one of them"
    )


def test_encryption_without_a_key_says_what_to_do():
    error = refusal(with_defaults("encryption_version: 1"))
    assert (error.line, error.section, error.key) == (2, "DEFAULTS", "encryption_version")
    assert said(error) == (
        "encryption_version is 1, which needs a key; set encryption_key_file, encryption_key_command or "
        "encryption_key, or set encryption_version to 0 to store plain blocks"
    )


@pytest.mark.parametrize("key", [KEY[:-1], KEY + "0", KEY[:-1] + "g", ""])
def test_a_wrong_key_is_described_by_its_length_only(key):
    error = refusal(with_defaults(f"encryption_key: {key}"))
    assert said(error) == f"encryption_key has {len(key)} characters; allowed: 64 hex digits"
    assert "decafbad" not in str(error)


# Paths


def test_relative_paths_start_at_the_directory_of_the_file():
    lines = ["logfile: log/b.log", "lock_dir: ./", "cachedir: ./a//b/", "encryption_key_file: ../k"]
    config = config_of(with_defaults(*lines))
    assert config.logfile == "/e/log/b.log"
    assert config.lock_dir == "/e"
    assert config.cachedir == "/e/a/b"
    assert config.key == KeySource(file="/e/../k")


def test_absolute_paths_are_kept_unchanged():
    assert config_of(with_defaults("logfile: /var//log/./b.log")).logfile == "/var//log/./b.log"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/home/ada"),
        ("~/x", "/home/ada/x"),
        ("~//x", "/home/ada/x"),
        ("./~ada", "/e/~ada"),
        ("a~", "/e/a~"),
    ],
)
def test_a_tilde_means_home_in_the_environment(text, path):
    assert config_of(with_defaults(f"lock_dir: {text}")).lock_dir == path


def test_a_tilde_without_a_home_is_a_mistake():
    error = refusal(with_defaults("lock_dir: ~/x"), environ={})
    assert said(error) == (
        "lock_dir begins with ~, but the variable HOME does not contain a directory; write the whole path"
    )


def test_the_home_of_another_user_is_not_looked_up():
    error = refusal(with_defaults("lock_dir: ~eve/x"))
    assert said(error) == "lock_dir begins with ~eve/, but only ~/ is supported; write the whole path, or ./~eve"


def test_a_relative_path_starts_at_the_file_that_contains_its_key(tmp_path):
    write(tmp_path / "backy.cfg", BACKY2_VERSION_0)
    write(tmp_path / "backy" / "conf.d" / "50-storage", "[DataBackend]\npath: elsewhere\n")
    config, _ = load_config(None, {}, etc=str(tmp_path))
    assert config.storage == DirectoryStorageConfig(
        path=f"{tmp_path}/backy/conf.d/elsewhere", simultaneous_writes=5, simultaneous_reads=5
    )
    assert config.logfile == f"{tmp_path}/backy.log"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///x.sqlite", "sqlite:////e/x.sqlite"),
        ("sqlite:///d/x.sqlite?timeout=5", "sqlite:////e/d/x.sqlite?timeout=5"),
        ("sqlite+pysqlite:///x", "sqlite+pysqlite:////e/x"),
        ("sqlite:////abs/x.sqlite", "sqlite:////abs/x.sqlite"),
        ("sqlite:///~/x.sqlite", "sqlite:////home/ada/x.sqlite"),
        ("postgresql:///backup", "postgresql:///backup"),
        ("mysql+pymysql://a:b@h:1/d?charset=utf8mb4", "mysql+pymysql://a:b@h:1/d?charset=utf8mb4"),
    ],
)
def test_only_relative_sqlite_urls_are_changed(url, expected):
    assert config_of(with_engine(url)).database_url == expected


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://?cache=shared"])
def test_a_database_in_memory_is_refused(url):
    error = refusal(with_engine(url))
    assert said(error) == (
        "engine is a database in memory, which is lost when the command ends; name a file: sqlite:////path"
    )


def test_an_sqlite_url_with_two_slashes_is_refused():
    error = refusal(with_engine("sqlite://x.sqlite"))
    assert said(error) == "engine has a host, which SQLite does not use; write sqlite:///relative or sqlite:////path"


def test_a_relative_database_is_refused_if_a_url_cannot_name_the_directory():
    error = refusal(with_engine("sqlite:///x"), file="/what?/b.cfg")
    assert said(error) == "engine is relative to a directory with ? or % in its name; write sqlite:////another/path"


# Mistakes and their places


def test_the_error_for_a_wrong_number_names_its_line():
    error = refusal(with_defaults("# a comment", "", "block_size: 4MB"))
    assert (error.file, error.section, error.key, error.line) == ("/e/b.cfg", "DEFAULTS", "block_size", 4)
    assert said(error) == (
        "block_size is '4MB'; allowed: a number of bytes that is a multiple of 512, from 512 to 67108864"
    )
    assert str(error) == f"/e/b.cfg, line 4: [DEFAULTS] block_size: {said(error)}"


@pytest.mark.parametrize(
    ("key", "text", "allowed"),
    [
        ("block_size", "511", BLOCK_SIZES),
        ("block_size", "0", BLOCK_SIZES),
        ("block_size", "1000", BLOCK_SIZES),
        ("block_size", "134217728", BLOCK_SIZES),
        ("hash_function", "sha99", HASHES),
        ("hash_function", "shake_128", HASHES),
        ("disallow_rm_when_younger_than_days", "-1", "a whole number, 0 or more"),
        ("disallow_rm_when_younger_than_days", "1.5", "a whole number, 0 or more"),
        ("disallow_rm_when_younger_than_days", "\N{FULLWIDTH DIGIT ONE}", "a whole number, 0 or more"),
        ("disallow_rm_when_younger_than_days", "", "a whole number, 0 or more"),
        ("deduplication", "older-version", "1, 0, true, false, yes, no, on, off, same-version"),
        ("deduplication", "2", "1, 0, true, false, yes, no, on, off, same-version"),
        ("encryption_version", "-1", "a whole number, 0 or more"),
        ("compression_level", "0", "a whole number from 1 to 19"),
        ("compression_level", "20", "a whole number from 1 to 19"),
        ("compression_level", "-1", "a whole number from 1 to 19"),
        ("compression_level", "fast", "a whole number from 1 to 19"),
        ("process_name", "", "any text"),
        ("logfile", "", "a path"),
        ("encryption_key_file", "", "a path"),
        ("encryption_key_command", "", "any text"),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_allowed(key, text, allowed):
    error = refusal(with_defaults("lock_dir: /run", f"{key}: {text}"))
    assert (error.key, error.line) == (key, 3)
    assert said(error) == f"{key} is '{text}'; allowed: {allowed}"


def test_a_number_with_thousands_of_digits_is_refused_and_shortened_in_the_message():
    error = refusal(with_defaults(f"block_size: {'9' * 5000}"))
    assert len(said(error)) < 200


@pytest.mark.parametrize(
    ("lines", "key", "fact"),
    [
        (["interval: 1 d"], "interval", "interval is '1 d'; " + INTERVALS),
        (["interval: 0d"], "interval", "interval is '0d'; " + INTERVALS),
        (["interval: 1d", "keep: all"], "keep", "keep is 'all'; allowed: a whole number, 0 or more"),
        (
            ["interval: 1d", "keep: 1", "sla: 36501d"],
            "sla",
            "sla is '36501d'; allowed: a number and a unit (s, m, h, d, w), as in 12h, up to 36500d",
        ),
    ],
)
def test_the_error_for_a_mistake_in_a_scheduler_names_its_place(lines, key, fact):
    error = refusal(BACKENDS + "[daily]\n" + "\n".join(lines))
    assert (error.section, error.key, error.line) == ("daily", key, 6 + len(lines))
    assert said(error) == fact


def test_a_scheduler_needs_all_three_keys():
    error = refusal(BACKENDS + "[daily]\ninterval: 1d\nkep: 3\nsla: 1h\n")
    assert (error.section, error.key, error.line) == ("daily", "keep", None)
    assert said(error) == "keep is missing; allowed: a whole number, 0 or more; line 8 of /e/b.cfg has kep"


@pytest.mark.parametrize(
    ("lines", "fact"),
    [
        (["path: /b"], "type is missing; " + STORAGES),
        (["type: tape"], "type is 'tape'; " + STORAGES),
        (["type: file"], "path is missing; allowed: a path"),
        (S3[:1], "bucket_name is missing; allowed: letters, digits and . _ - :"),
        (["type: s3", "bucket_name:"], "bucket_name is ''; allowed: letters, digits and . _ - :"),
        ([*MINIO], "host is missing; allowed: host or host:port, without http://"),
        ([*MINIO, "host: http://h"], "host is 'http://h'; allowed: host or host:port, without http://"),
        ([*S3, "endpoint_url: h"], "endpoint_url is 'h'; allowed: http://host:port or https://host:port"),
        ([*S3, "endpoint_url: http://h:99999"],
         "endpoint_url is 'http://h:99999'; allowed: http://host:port or https://host:port"),
        ([*S3, "endpoint_url: http://[::1"],
         "endpoint_url is 'http://[::1'; allowed: http://host:port or https://host:port"),
        ([*S3, "endpoint_url: http://h?x"], "endpoint_url is 'http://h?x'; allowed: http://host:port or https://host:port"),
        ([*S3, "proxy_url: http://h:0"], "proxy_url has 10 characters; allowed: http://host:port"),
        (["type: s3", "bucket_name: a b"], "bucket_name is 'a b'; allowed: letters, digits and . _ - :"),
        ([*S3, "minimum_storage_days: 36501"],
         "minimum_storage_days is '36501'; allowed: a whole number from 0 to 36500"),
        ([*S3, "addressing_style: x"], "addressing_style is 'x'; allowed: path, virtual, auto"),
        ([*S3, "simultaneous_reads: 0"], "simultaneous_reads is '0'; allowed: a whole number, 1 or more"),
        (["type: null", "bandwidth_read: 1M"], "bandwidth_read is '1M'; allowed: a whole number, 0 or more"),
    ],
)
def test_a_mistake_in_the_storage_says_what_is_allowed(lines, fact):
    error = refusal(with_storage(*lines))
    assert error.section == "DataBackend"
    assert said(error) == fact


def test_a_missing_section_is_reported():
    error = refusal("[MetaBackend]\nengine: sqlite:////m\n")
    assert (error.section, error.key, error.line) == ("DataBackend", "type", None)


def test_a_section_in_the_wrong_case_is_suggested():
    error = refusal(BACKENDS.replace("[MetaBackend]", "[metabackend]"))
    assert error.key == "engine"
    assert said(error).endswith("; line 1 of /e/b.cfg has [metabackend]")


def test_metadata_other_than_sql_are_refused():
    error = refusal(BACKENDS.replace("engine", "type: ldap\nengine"))
    assert said(error) == (
        "type is 'ldap'; allowed: sql; also as backy2.meta_backends.NAME or backyfs.meta_backends.NAME"
    )


def test_unknown_features_of_new_images_are_refused():
    error = refusal(BACKENDS + "[io_rbd]\nnew_image_features: layering\n")
    assert said(error) == "new_image_features is 'layering'; allowed: names such as RBD_FEATURE_LAYERING"


def test_an_indented_key_is_detected():
    error = refusal(with_defaults("block_size: 4096", "  deduplication: 0"))
    assert (error.key, error.line) == ("block_size", 2)
    assert said(error) == "block_size has several lines; an indented line continues the key above it"


def test_a_comment_after_a_value_is_detected():
    error = refusal(with_defaults("block_size: 4096 # small"))
    assert said(error).startswith("block_size is '4096 # small'; allowed: ")
    assert said(error).endswith("; write comments on separate lines")


def test_the_error_for_a_duplicate_key_names_both_lines():
    error = refusal("[DEFAULTS]\n\nblock_size: 512\n# again\nblock_size: 1024\n" + BACKENDS)
    assert (error.file, error.section, error.key, error.line) == ("/e/b.cfg", "DEFAULTS", "block_size", 5)
    assert said(error) == "is set twice, first in line 3; remove one of them"


def test_the_error_for_a_duplicate_section_names_both_lines():
    error = refusal(BACKENDS + "[MetaBackend]\n")
    assert (error.section, error.key, error.line) == ("MetaBackend", "", 6)
    assert said(error) == "is set twice, first in line 1; remove one of them"


def test_the_error_for_a_key_before_the_first_section_names_its_line():
    error = refusal("# hello\nblock_size: 512\n" + BACKENDS)
    assert error.line == 2
    assert said(error) == "is before the first section; begin a section above it, such as [DEFAULTS]"


def test_the_error_for_an_invalid_line_names_the_line():
    error = refusal("[DEFAULTS]\nlock_dir: /run\nblock_size\n" + BACKENDS)
    assert error.line == 3
    assert said(error) == (
        "is neither a section nor a key; allowed: [section], key: value, key = value, # comment"
    )


@pytest.mark.parametrize("text", ["100%", "50%x", "%(nothing)s", "%(logfile)s"])
def test_the_error_for_a_single_percent_sign_names_its_line(text):
    error = refusal(with_defaults("lock_dir: /run", f"logfile: {text}"))
    assert (error.section, error.key, error.line) == ("DEFAULTS", "logfile", 3)
    assert said(error) == "logfile has a % that does not name a key; write a plain % as %%"


def test_the_error_for_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(f"{tmp_path}/none.cfg", {})
    assert str(caught.value) == (
        f"{tmp_path}/none.cfg: does not exist; create a repository, or name another configuration file"
    )


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(str(tmp_path), {})
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory"


@pytest.fixture
def _as_a_user():
    """Act as nobody if this is root, which could read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def test_a_file_without_permission_cannot_be_read(tmp_path, request):
    file = write(tmp_path / "b.cfg")
    Path(file).chmod(0)
    request.getfixturevalue("_as_a_user")
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_config(file, {})


def test_the_error_for_invalid_utf_8_names_its_line(tmp_path):
    (tmp_path / "b.cfg").write_bytes(b"[DEFAULTS]\n# caf\xe9\n")
    with pytest.raises(ConfigError) as caught:
        load_config(f"{tmp_path}/b.cfg", {})
    assert str(caught.value) == f"{tmp_path}/b.cfg, line 2: has bytes that are not UTF-8 text"


def test_the_error_for_a_nul_byte_names_its_line(tmp_path):
    (tmp_path / "b.cfg").write_bytes(b"[DEFAULTS]\n\nlogfile: /a\0b\n")
    with pytest.raises(ConfigError) as caught:
        load_config(f"{tmp_path}/b.cfg", {})
    assert str(caught.value) == f"{tmp_path}/b.cfg, line 3: has a NUL byte, so it is not a text file"


# Unknown keys and sections


def test_an_unknown_key_is_a_warning_with_its_place_and_a_suggestion():
    config, warnings = parse(with_defaults("lock_dir: /run", "blocksize: 512"))
    assert config.block_size is None
    assert warnings == (
        "/e/b.cfg, line 3: [DEFAULTS] blocksize: is not a known key and is ignored; did you mean block_size?",
    )


def test_an_unknown_key_unlike_any_other_is_a_warning_without_a_suggestion():
    assert parse(with_defaults("colour: red"))[1] == (
        "/e/b.cfg, line 2: [DEFAULTS] colour: is not a known key and is ignored",
    )


def test_an_unknown_section_is_one_warning():
    assert parse(BACKENDS + "[NBD]\ncachedir: /tmp\nx: 1\n")[1] == (
        "/e/b.cfg, line 6: [NBD]: is not a known section and is ignored",
    )


def test_an_unknown_section_in_the_wrong_case_has_a_suggestion():
    assert parse(BACKENDS + "[defaults]\nblock_size: x\n")[1] == (
        "/e/b.cfg, line 6: [defaults]: is not a known section and is ignored; did you mean DEFAULTS?",
    )


def test_the_ini_default_section_in_place_of_ours_is_a_warning():
    assert parse("[DEFAULT]\nblock_size: 512\n" + BACKENDS)[1] == (
        "/e/b.cfg, line 1: [DEFAULT]: is not a known section and is ignored; did you mean DEFAULTS?",
    )


def test_a_key_of_another_storage_is_a_warning():
    assert parse(with_storage(*S3, "path: /b"))[1] == (
        "/e/b.cfg, line 6: [DataBackend] path: is not a key of the storage type s3 and is ignored",
    )


def test_an_unknown_key_of_a_scheduler_is_a_warning():
    assert parse(BACKENDS + "[daily]\ninterval: 1d\nkeep: 1\nsla: 1h\nkeeps: 2\n")[1] == (
        "/e/b.cfg, line 10: [daily] keeps: is not a known key and is ignored; did you mean keep?",
    )


def test_warnings_name_the_file_of_a_chain(tmp_path):
    write(tmp_path / "backy.cfg", BACKY2_VERSION_0)
    extra = write(tmp_path / "backy" / "backy.cfg", "[DEFAULTS]\n\nlogfle: /x\n")
    assert load_config(None, {}, etc=str(tmp_path))[1] == (
        f"{extra}, line 3: [DEFAULTS] logfle: is not a known key and is ignored; did you mean logfile?",
    )


# Secrets


def test_no_secret_is_in_the_repr():
    config = config_of(
        f"[DEFAULTS]\nencryption_key: {KEY}\n[MetaBackend]\nengine: postgresql://ada:hunter2@h/d\n"
        "[DataBackend]\ntype: s3\nbucket_name: b\naws_access_key_id: AKIA\naws_secret_access_key: sesame\n"
    )
    for secret in (KEY, "hunter2", "AKIA", "sesame"):
        assert secret not in repr(config)
        assert secret not in str(config)


@pytest.mark.parametrize(
    "text",
    [
        with_engine("hunter2"),
        with_engine("ada:hunter2@host/db"),
        with_engine("postgresql//ada:hunter2@host/db"),
        with_engine("POSTGRESQL://ada:hunter2@host/db"),
        with_engine("postgresql://ada:100%hunter2@host/db"),
        with_engine("postgresql://ada:%(hunter2)s@host/db"),
        with_engine("postgresql://ada:\n  hunter2@host/db"),
        with_engine("sqlite://ada:hunter2@host/db"),
        with_engine("sqlite+pysqlcipher://:hunter2@/db"),
        with_engine("sqlite:///x?key=hunter2") + "[io_file]\nsimultaneous_reads: none\n",
        with_defaults("postgresql//ada@hunter2"),
        "postgresql://ada:hunter2@host/db\n",
        with_defaults("encryption_key: hunter2"),
        with_defaults("encryption_key: %hunter2"),
        with_defaults("encryption_key: 1\n hunter2"),
        with_defaults("encryption_key: hunter2", "encryption_key: hunter2"),
        with_storage(*S3, "aws_secret_access_key: %hunter2"),
        with_storage(*S3, "aws_secret_access_key: a\n hunter2"),
        with_storage(*S3, "endpoint_url: https://ada:hunter2@h"),
        with_storage(*S3, "endpoint_url: ada:hunter2@h"),
        with_storage(*MINIO, "host: ada:hunter2@h"),
    ],
)
def test_no_secret_is_in_an_error(text):
    error = refusal(text)
    assert "hunter2" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


def test_an_invalid_database_url_is_not_shown():
    with pytest.raises(ConfigError) as caught:
        new_text(database_url="postgresql://ada:hunter2@host/db\n")
    assert "hunter2" not in str(caught.value)


# Search for files


def home_config(tmp_path):
    return tmp_path / "home" / ".config" / "backyfs" / "backyfs.cfg"


def test_only_a_named_file_is_read(tmp_path):
    write(home_config(tmp_path))
    environ = {"HOME": f"{tmp_path}/home", "BACKYFS_CONFIG": "/x/environment.cfg"}
    assert find_config("/x/named.cfg", environ, etc=str(tmp_path)) == ("/x/named.cfg",)


def test_a_file_named_in_the_environment_takes_precedence_over_found_ones(tmp_path):
    write(home_config(tmp_path))
    environ = {"HOME": f"{tmp_path}/home", "BACKYFS_CONFIG": "/x/environment.cfg"}
    assert find_config(None, environ, etc=str(tmp_path)) == ("/x/environment.cfg",)


def test_an_empty_environment_variable_names_nothing(tmp_path):
    file = write(home_config(tmp_path))
    environ = {"HOME": f"{tmp_path}/home", "BACKYFS_CONFIG": ""}
    assert find_config(None, environ, etc=str(tmp_path)) == (file,)


def test_a_relative_name_starts_at_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("./d/b.cfg", {}) == (f"{tmp_path}/d/b.cfg",)


def test_a_relative_name_in_a_removed_directory_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="the current directory is gone; give an absolute path"):
        find_config("b.cfg", {})


def test_the_home_directory_comes_before_etc(tmp_path):
    file = write(home_config(tmp_path))
    write(tmp_path / "backyfs" / "backyfs.cfg")
    assert find_config(None, {"HOME": f"{tmp_path}/home"}, etc=str(tmp_path)) == (file,)


def test_xdg_config_home_replaces_the_usual_place(tmp_path):
    write(home_config(tmp_path))
    file = write(tmp_path / "xdg" / "backyfs" / "backyfs.cfg")
    environ = {"HOME": f"{tmp_path}/home", "XDG_CONFIG_HOME": f"{tmp_path}/xdg"}
    assert find_config(None, environ, etc=str(tmp_path)) == (file,)


@pytest.mark.parametrize("value", ["", "relative/xdg"])
def test_an_xdg_config_home_that_is_not_absolute_is_ignored(tmp_path, value):
    file = write(home_config(tmp_path))
    environ = {"HOME": f"{tmp_path}/home", "XDG_CONFIG_HOME": value}
    assert find_config(None, environ, etc=str(tmp_path)) == (file,)


def test_etc_backyfs_comes_before_the_files_of_backy2(tmp_path):
    write(tmp_path / "backy.cfg")
    file = write(tmp_path / "backyfs" / "backyfs.cfg")
    assert find_config(None, {}, etc=str(tmp_path)) == (file,)


def test_a_dangling_link_is_an_error_and_ends_the_search(tmp_path):
    write(tmp_path / "backy.cfg")
    (tmp_path / "backyfs").mkdir()
    (tmp_path / "backyfs" / "backyfs.cfg").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(None, {}, etc=str(tmp_path))


def test_the_files_of_backy2_are_found_in_their_order(tmp_path):
    second = write(tmp_path / "backy" / "conf.d" / "10-b")
    third = write(tmp_path / "backy" / "conf.d" / "20-a")
    write(tmp_path / "backy" / "conf.d" / ".hidden")
    (tmp_path / "backy" / "conf.d" / "15-directory").mkdir()
    os.mkfifo(tmp_path / "backy" / "conf.d" / "16-fifo")
    first = write(tmp_path / "backy" / "backy.cfg")
    zeroth = write(tmp_path / "backy.cfg")
    assert find_config(None, {}, etc=str(tmp_path)) == (zeroth, first, second, third)


def test_a_later_file_of_backy2_takes_precedence(tmp_path):
    files = (
        write(tmp_path / "backy.cfg", BACKY2_VERSION_1),
        write(tmp_path / "backy" / "backy.cfg", "[DEFAULTS]\nblock_size: 512\nlogfile: second.log\n"),
        write(tmp_path / "backy" / "conf.d" / "a", "[DEFAULTS]\nlogfile: third.log\n"),
    )
    config, _ = load_config(None, {}, etc=str(tmp_path))
    assert config.files == files
    assert config.block_size == 512
    assert config.logfile == f"{tmp_path}/backy/conf.d/third.log"
    assert config.hash_function == "sha512"


def test_the_error_for_a_mistake_in_a_later_file_names_that_file(tmp_path):
    write(tmp_path / "backy.cfg", BACKY2_VERSION_1)
    extra = write(tmp_path / "backy" / "conf.d" / "a", "[DEFAULTS]\n\n\nblock_size: big\n")
    with pytest.raises(ConfigError) as caught:
        load_config(None, {}, etc=str(tmp_path))
    assert (caught.value.file, caught.value.line) == (extra, 4)


def test_the_current_directory_is_not_searched(tmp_path, monkeypatch):
    write(tmp_path / "backy.cfg")
    write(tmp_path / "backyfs.cfg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no configuration"):
        find_config(None, {}, etc=f"{tmp_path}/etc")


def test_when_nothing_is_found_the_places_are_listed():
    with pytest.raises(ConfigError) as caught:
        find_config(None, {"HOME": "/nowhere/ada"}, etc="/nowhere/etc")
    assert str(caught.value) == (
        "there is no configuration (looked for /nowhere/ada/.config/backyfs/backyfs.cfg, "
        "/nowhere/etc/backyfs/backyfs.cfg, /nowhere/etc/backy.cfg, /nowhere/etc/backy/backy.cfg, "
        "/nowhere/etc/backy/conf.d/*); create a repository, or name another configuration file"
    )


# The text of a new file


def new_text(**changes):
    values = {
        "database_url": "sqlite:////var/lib/backyfs/backyfs.sqlite",
        "storage": {"type": "file", "path": "/srv/blobs"},
        "key_file": None,
        "encryption_version": 0,
        "block_size": 4194304,
        "logfile": "/var/log/backyfs.log",
    }
    return config_text(**(values | changes))


def odd_paths():
    allowed = st.characters(exclude_characters="\n\0", exclude_categories=["Cs"])
    names = st.text(allowed | st.sampled_from("% #;:=[]~?'\""), min_size=1, max_size=40)
    return names.map(lambda name: f"/{name}").filter(lambda path: path == path.strip())


@given(
    database=odd_paths(),
    storage=odd_paths(),
    key_file=st.none() | odd_paths(),
    logfile=st.none() | odd_paths(),
    block_size=st.integers(1, 131072).map(lambda sectors: sectors * 512),
    version=st.integers(0, 9),
)
@example(
    database="/a b%20c",
    storage="/50 %(x)s # ; = : [é]",
    key_file="/%%",
    logfile="/~\x85\r%",
    block_size=512,
    version=1,
)
def test_a_new_file_is_read_back_as_intended(database, storage, key_file, logfile, block_size, version):
    text = new_text(
        database_url=f"sqlite:///{database}",
        storage={"type": "file", "path": storage},
        key_file=key_file,
        encryption_version=version if key_file else 0,
        block_size=block_size,
        logfile=logfile,
    )
    config = config_of(text, environ={})
    assert config.database_url == f"sqlite:///{database}"
    assert config.storage.path == storage
    assert config.key == (KeySource(file=key_file) if key_file else None)
    assert config.encryption_version == (version if key_file else 0)
    assert config.block_size == block_size
    assert config.logfile == logfile


def test_a_new_file_is_read_back_from_the_disk(tmp_path):
    file = write(tmp_path / "b.cfg", new_text(storage={"type": "file", "path": "/srv/50% \r ü"}, database_url="postgresql://a:%40@h/d"))
    config, warnings = load_config(file, {})
    assert warnings == ()
    assert config.storage == DirectoryStorageConfig(path="/srv/50% \r ü")
    assert config.database_url == "postgresql://a:%40@h/d"


def test_every_key_of_a_new_file_has_a_comment_above_it():
    lines = new_text(key_file="/k", encryption_version=1).split("\n")
    keys = [number for number, line in enumerate(lines) if re.match("[a-z_]+:", line)]
    assert len(keys) == 8
    assert all(lines[number - 1].startswith("# ") for number in keys)


@pytest.mark.parametrize("path", ["/a\nb", "/a\n b", "/a ", " /a", "/a\0b", "/\udcff", "/a\xa0"])
def test_a_path_that_a_file_cannot_express_is_refused(path):
    with pytest.raises(ConfigError) as caught:
        new_text(storage={"type": "file", "path": path})
    assert (caught.value.section, caught.value.key) == ("DataBackend", "path")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"encryption_version": 1}, "encryption_version"),
        ({"block_size": 1000}, "block_size"),
        ({"database_url": "sqlite://"}, "engine"),
        ({"storage": {"type": "file", "path": ""}}, "path"),
    ],
)
def test_a_new_file_with_a_mistake_is_not_created(changes, key):
    with pytest.raises(ConfigError) as caught:
        new_text(**changes)
    assert (caught.value.key, caught.value.file, caught.value.line) == (key, "", None)


# One table for everything


LINES = [
    "[a]", "[b]", "[DEFAULT]", "   [c]", "[d] e: 1", "x: 1", "y = 2", "Z : 3", "  w: 4", "\tv=", "k:\r",
    "u u = 1", "# x: 1", " ; y", "", "  ",
]  # fmt: skip


@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_places_agree_with_configparser(lines):
    text = "\n".join(lines)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
    except configparser.Error:
        with pytest.raises(ConfigError) as caught:
            Document([("f", text)])
        assert caught.value.line is not None
        return
    document = Document([("f", text)])
    for section in parser.sections():
        own = {place.key for place in document.own_keys(section)}
        assert own | set(parser.defaults()) == set(parser[section])
        for key in own:
            place = document.place(section, key)
            assert place is not None
            assert lines[place.line - 1].strip().lower().startswith(key)


def all_keys():
    for section, keys in SECTION_KEYS.items():
        yield from ((section, key) for key in keys)
    for keys in STORAGE_KEYS.values():
        yield from (("DataBackend", key) for key in keys)
    yield from (("scheduler", key) for key in SCHEDULER_KEYS)


def test_every_key_is_in_the_manual():
    manual = (Path(__file__).parents[2] / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    missing = [f"[{section}] {key.name}" for section, key in all_keys() if f"| `{key.name}` |" not in manual]
    assert missing == []


def test_the_example_in_the_manual_is_a_valid_configuration():
    manual = (Path(__file__).parents[2] / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    example_text = manual.partition("```ini\n")[2].partition("```")[0]
    config = config_of(example_text)
    assert [scheduler.name for scheduler in config.schedulers] == ["hourly", "daily", "monthly"]


def test_the_configuration_is_read_without_heavy_imports():
    heavy = {"sqlalchemy", "click", "cryptography", "blake3", "trio", "rich", "difflib", "subprocess"}
    program = "import sys, backyfs.config; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.split()) == set()
