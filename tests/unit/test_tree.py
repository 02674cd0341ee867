"""The tree of a mount: listings, lookups, the contents of small files, and how names are escaped."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backyfs.model import Version, VersionId, VersionStatus, VersionUid
from backyfs.mount.tree import (
    Data,
    Fact,
    Link,
    NameDirectory,
    Node,
    PartitionDirectory,
    Top,
    Tree,
    VersionDirectory,
    escape,
)
from backyfs.text import is_control

FIRST = VersionUid("11111111-1111-4111-8111-111111111111")
SECOND = VersionUid("22222222-2222-4222-8222-222222222222")
THIRD = VersionUid("33333333-3333-4333-8333-333333333333")
NOWHERE = VersionUid("ffffffff-ffff-4fff-8fff-ffffffffffff")

VALID, INVALID, INCOMPLETE = VersionStatus.VALID, VersionStatus.INVALID, VersionStatus.INCOMPLETE
ODD_NAMES = ("", ".", "..", "/", "\0", "a/b", "a\nb", "%", "%2F", "%~", "\x7f", "\x1b[31m",
             "\x9b1m", "\u202e", "\ud800", "ä" * 300, "x" * 2000, " ")
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too


def version(
    uid: VersionUid = FIRST,
    name: str = "disk",
    *,
    day: int = 1,
    status: VersionStatus = VALID,
    size_bytes: int = 4096,
    snapshot_name: str = "",
    protected: bool = False,
    expire_at: datetime | None = None,
    tags: tuple[str, ...] = (),
) -> Version:
    return Version(
        id=VersionId(1),
        uid=uid,
        created_at=datetime(2024, 2, day, 13, 5, 9, 123456, tzinfo=UTC),
        name=name,
        snapshot_name=snapshot_name,
        size_bytes=size_bytes,
        status=status,
        protected=protected,
        expire_at=expire_at,
        tags=tags,
    )


def unescape(escaped: bytes) -> str:
    """Return the text that a file name stands for, if it is not shortened."""
    return "" if escaped == b"%" else unquote_to_bytes(escaped).decode(errors="surrogatepass")


def names(tree: Tree, node: Node) -> list[bytes]:
    return [name for name, _ in tree.children(node)]


def facts(of: Version) -> dict[bytes, bytes]:
    tree = Tree([of])
    children = tree.children(VersionDirectory(of.uid))
    return {name: tree.content(node) for name, node in children if isinstance(node, Fact)}


# Listings.


def test_the_root_lists_two_directories() -> None:
    assert Tree([version()]).children(Top.ROOT) == [
        (b"by_version_uid", Top.BY_VERSION_UID),
        (b"by_name", Top.BY_NAME),
    ]


def test_the_root_has_an_unlisted_file_of_statistics() -> None:
    assert Tree([]).child(Top.ROOT, b"stats") is Top.STATS


def test_a_tree_without_versions_has_two_empty_directories() -> None:
    tree = Tree([])
    assert names(tree, Top.ROOT) == [b"by_version_uid", b"by_name"]
    assert tree.children(Top.BY_VERSION_UID) == []
    assert tree.children(Top.BY_NAME) == []


def test_every_version_is_listed_by_its_uid() -> None:
    tree = Tree([version(FIRST, "a"), version(SECOND, "b", status=INVALID), version(THIRD, "b", status=INCOMPLETE)])
    assert tree.children(Top.BY_VERSION_UID) == [
        (FIRST.encode(), VersionDirectory(FIRST)),
        (SECOND.encode(), VersionDirectory(SECOND)),
        (THIRD.encode(), VersionDirectory(THIRD)),
    ]


def test_every_name_is_listed_once() -> None:
    tree = Tree([version(FIRST, "a"), version(SECOND, "b/c", day=1), version(THIRD, "b/c", day=2)])
    assert tree.children(Top.BY_NAME) == [(b"a", NameDirectory("a")), (b"b%2Fc", NameDirectory("b/c"))]


def test_a_valid_version_lists_its_image_and_its_facts() -> None:
    assert Tree([version()]).children(VersionDirectory(FIRST)) == [
        (b"data", Data(FIRST)),
        (b"partitions", PartitionDirectory(FIRST)),
        (b"name", Fact(FIRST, b"name")),
        (b"snapshot_name", Fact(FIRST, b"snapshot_name")),
        (b"tags", Fact(FIRST, b"tags")),
        (b"date", Fact(FIRST, b"date")),
        (b"expire", Fact(FIRST, b"expire")),
        (b"protected", Fact(FIRST, b"protected")),
        (b"valid", Fact(FIRST, b"valid")),
    ]


@pytest.mark.parametrize("status", [INVALID, INCOMPLETE])
def test_an_invalid_version_has_a_file_invalid_instead_of_valid(status: VersionStatus) -> None:
    listed = names(Tree([version(status=status)]), VersionDirectory(FIRST))
    assert listed == [
        b"data", b"partitions", b"name", b"snapshot_name", b"tags", b"date", b"expire", b"protected", b"invalid",
    ]  # fmt: skip


def test_a_name_lists_its_versions_by_date_and_latest() -> None:
    tree = Tree([version(FIRST, day=1), version(SECOND, day=2)])
    assert tree.children(NameDirectory("disk")) == [
        (b"2024-02-01T13-05-09_" + FIRST.encode(), Link("disk", FIRST)),
        (b"2024-02-02T13-05-09_" + SECOND.encode(), Link("disk", SECOND)),
        (b"latest", Link("disk", None)),
    ]


def test_a_name_does_not_list_versions_of_other_names() -> None:
    tree = Tree([version(FIRST, "a"), version(SECOND, "b")])
    assert names(tree, NameDirectory("b")) == [b"2024-02-01T13-05-09_" + SECOND.encode(), b"latest"]


@pytest.mark.parametrize("node", [Data(FIRST), Fact(FIRST, b"name"), Link("disk", FIRST), Link("disk", None)])
def test_only_directories_can_be_listed(node: Node) -> None:
    with pytest.raises(LookupError):
        Tree([version()]).children(node)


# Lookups.


def test_every_listed_entry_is_found_by_its_name() -> None:
    tree = Tree([version(FIRST, "a"), version(SECOND, "b", status=INVALID), version(THIRD, "ü/\n")])
    waiting: list[Node] = [Top.ROOT]
    seen = 0
    while waiting:
        directory = waiting.pop()
        try:
            children = tree.children(directory)
        except LookupError:
            continue
        for name, node in children:
            assert tree.child(directory, name) == node
            waiting.append(node)
            seen += 1
    assert seen == 2 + 3 + 3 * 9 + 3 + (2 + 1 + 2)  # root; uids and their entries; names and their entries


def test_a_version_is_found_below_its_name_only_by_its_uid() -> None:
    tree = Tree([version(FIRST), version(SECOND)])
    assert tree.child(NameDirectory("disk"), SECOND.encode()) == Link("disk", SECOND)
    assert SECOND.encode() not in names(tree, NameDirectory("disk"))


def test_a_version_is_not_found_below_another_name() -> None:
    tree = Tree([version(FIRST, "a"), version(SECOND, "b")])
    with pytest.raises(LookupError):
        tree.child(NameDirectory("a"), SECOND.encode())


@pytest.mark.parametrize("directory", [Top.ROOT, Top.BY_VERSION_UID, Top.BY_NAME, NameDirectory("disk")])
@pytest.mark.parametrize("name", [b"nothing", NOWHERE.encode(), b"\xff\xfe", b"", b"data"])
def test_an_unknown_name_is_not_found(directory: Node, name: bytes) -> None:
    with pytest.raises(LookupError):
        Tree([version()]).child(directory, name)


@pytest.mark.parametrize("name", [b"nothing", b"invalid", b"DATA", b"\xff"])
def test_an_unknown_file_of_a_version_is_not_found(name: bytes) -> None:
    with pytest.raises(LookupError):
        Tree([version()]).child(VersionDirectory(FIRST), name)


@pytest.mark.parametrize("node", [Data(FIRST), Fact(FIRST, b"name"), Link("disk", FIRST)])
def test_nothing_is_found_below_a_file(node: Node) -> None:
    with pytest.raises(LookupError):
        Tree([version()]).child(node, b"data")


@pytest.mark.parametrize(
    "node", [VersionDirectory(NOWHERE), NameDirectory("elsewhere")], ids=["version", "name"]
)
def test_a_directory_of_an_unknown_version_is_not_listed(node: Node) -> None:
    with pytest.raises(LookupError):
        Tree([version()]).children(node)
    with pytest.raises(LookupError):
        Tree([version()]).child(node, b"data")


@pytest.mark.parametrize(
    "node",
    [
        Fact(NOWHERE, b"name"),
        Fact(FIRST, b"invalid"),
        Link("disk", NOWHERE),
        Link("elsewhere", None),
        Data(FIRST),
        VersionDirectory(FIRST),
        NameDirectory("disk"),
        Top.ROOT,
    ],
    ids=str,
)
def test_unknown_nodes_and_other_kinds_of_nodes_have_no_content(node: Node) -> None:
    with pytest.raises(LookupError):
        Tree([version()]).content(node)


def test_an_unknown_version_is_a_lookup_error() -> None:
    with pytest.raises(LookupError):
        Tree([version()]).version(NOWHERE)


def test_a_node_remains_valid_in_the_next_snapshot() -> None:
    before = Tree([version(FIRST)])
    node = before.child(VersionDirectory(FIRST), b"tags")
    after = Tree([version(FIRST, tags=("new",)), version(SECOND)])
    assert after.content(node) == b"new\n"


def test_the_total_is_the_sum_of_all_images() -> None:
    assert Tree([version(FIRST, size_bytes=4097), version(SECOND, size_bytes=1 << 40)]).total_bytes == (1 << 40) + 4097


# Links.


def test_a_link_points_to_the_directory_of_its_version() -> None:
    assert Tree([version()]).content(Link("disk", FIRST)) == b"../../by_version_uid/" + FIRST.encode()


def test_latest_points_to_the_newest_version() -> None:
    tree = Tree([version(FIRST, day=1), version(SECOND, day=2), version(THIRD, day=3)])
    assert tree.content(Link("disk", None)) == b"../../by_version_uid/" + THIRD.encode()


def test_latest_skips_incomplete_and_invalid_versions() -> None:
    tree = Tree(
        [version(FIRST, day=1), version(SECOND, day=2, status=INVALID), version(THIRD, day=3, status=INCOMPLETE)]
    )
    assert tree.content(Link("disk", None)) == b"../../by_version_uid/" + FIRST.encode()


def test_latest_skips_versions_dated_in_the_future() -> None:
    now = datetime(2024, 2, 2, tzinfo=UTC)
    versions = [version(FIRST, day=1), version(SECOND, day=3)]
    tree = Tree(versions, now)
    assert tree.content(Link("disk", None)) == b"../../by_version_uid/" + FIRST.encode()
    assert len(names(tree, NameDirectory("disk"))) == 3
    assert tree.is_true_at(now + timedelta(days=1))
    later = now + timedelta(days=2)
    assert not tree.is_true_at(later)
    assert Tree(versions, later).content(Link("disk", None)) == b"../../by_version_uid/" + SECOND.encode()


def test_there_is_no_latest_without_a_valid_version() -> None:
    tree = Tree([version(FIRST, day=1, status=INVALID), version(SECOND, day=2, status=INCOMPLETE)])
    assert names(tree, NameDirectory("disk")) == [
        b"2024-02-01T13-05-09_" + FIRST.encode(),
        b"2024-02-02T13-05-09_" + SECOND.encode(),
    ]
    with pytest.raises(LookupError):
        tree.child(NameDirectory("disk"), b"latest")
    with pytest.raises(LookupError):
        tree.content(Link("disk", None))


def test_each_name_has_its_own_latest() -> None:
    tree = Tree([version(FIRST, "a"), version(SECOND, "b")])
    assert tree.content(Link("a", None)) == b"../../by_version_uid/" + FIRST.encode()
    assert tree.content(Link("b", None)) == b"../../by_version_uid/" + SECOND.encode()


# Facts.


def test_the_facts_of_a_minimal_version_are_short() -> None:
    assert facts(version()) == {
        b"name": b"disk\n",
        b"snapshot_name": b"\n",
        b"tags": b"\n",
        b"date": b"2024-02-01T13:05:09\n",
        b"expire": b"\n",
        b"protected": b"0\n",
        b"valid": b"valid\n",
    }


def test_a_year_has_four_digits() -> None:
    first = replace(version(expire_at=datetime(1, 2, 3, tzinfo=UTC)), created_at=datetime(1, 1, 1, tzinfo=UTC))
    assert facts(first)[b"date"] == b"0001-01-01T00:00:00\n"
    assert facts(first)[b"expire"] == b"0001-02-03T00:00:00\n"
    assert f"0001-01-01T00-00-00_{FIRST}".encode() in names(Tree([first]), NameDirectory("disk"))


def test_facts_agree_with_the_database() -> None:
    full = version(
        name="Größe/1",
        snapshot_name="s@1",
        tags=("b_daily", "b_weekly"),
        expire_at=datetime(2031, 12, 24, 18, 0, 1, 999999, tzinfo=UTC),
        protected=True,
    )
    assert facts(full) == {
        b"name": b"Gr\xc3\xb6\xc3\x9fe/1\n",
        b"snapshot_name": b"s@1\n",
        b"tags": b"b_daily,b_weekly\n",
        b"date": b"2024-02-01T13:05:09\n",
        b"expire": b"2031-12-24T18:00:01\n",
        b"protected": b"1\n",
        b"valid": b"valid\n",
    }


@pytest.mark.parametrize(("status", "text"), [(INVALID, b"invalid\n"), (INCOMPLETE, b"incomplete\n")])
def test_the_file_invalid_states_the_reason(status: VersionStatus, text: bytes) -> None:
    assert facts(version(status=status))[b"invalid"] == text


# Names.


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("disk", b"disk"),
        ("vm 1 (old)", b"vm 1 (old)"),
        ("Größe", b"Gr\xc3\xb6\xc3\x9fe"),
        ("a/b", b"a%2Fb"),
        ("%", b"%25"),
        ("%2F", b"%252F"),
        ("", b"%"),
        (".", b"%2E"),
        ("..", b"%2E%2E"),
        ("...", b"..."),
        (".hidden", b".hidden"),
        ("\0", b"%00"),
        ("a\nb\tc", b"a%0Ab%09c"),
        ("\x1b[31m", b"%1B[31m"),
        ("\x7f", b"%7F"),
        ("\x9b1m", b"%C2%9B1m"),
        ("\x85", b"%C2%85"),
        ("a\u202eb", b"a%E2%80%AEb"),
        ("\u2066\u200f", b"%E2%81%A6%E2%80%8F"),
        ("\u2028", b"%E2%80%A8"),
        ("\U000e0041", b"%F3%A0%81%81"),
        ("\ud800", b"%ED%A0%80"),  # not text, but it must not break a listing
        ("a\xa0b\u200db", "a\xa0b\u200db".encode()),  # unchanged from before other characters were escaped
    ],
)
def test_a_name_becomes_a_file_name(name: str, escaped: bytes) -> None:
    assert escape(name) == escaped
    assert unescape(escaped) == name


@given(ANY_TEXT)
@example("/" * 85)
@example("%" * 85)
def test_a_short_file_name_is_decoded_to_its_name(name: str) -> None:
    escaped = escape(name)
    if b"%~" not in escaped:  # longer ones end in a digest
        assert unescape(escaped) == name


@given(st.text(st.characters(exclude_categories=()), max_size=63))  # 252 bytes of UTF-8
def test_a_name_without_escapes_is_kept_up_to_255_bytes(name: str) -> None:
    plain = "".join("-" if char in "/%." or is_control(char) else char for char in name)
    assert escape(plain) == (plain.encode() or b"%")


@given(ANY_TEXT | ANY_TEXT.map(lambda text: text * 50))
@example("x" * 255)
@example("x" * 256)
@example("ä" * 300)
@example("\0" * 2000)
@example("x" * 220 + "\0" * 40)
@example("x" * 219 + "\0" * 40)
@example("x" * 218 + "\0" * 40)
def test_a_file_name_is_always_valid(name: str) -> None:
    escaped = escape(name)
    assert 1 <= len(escaped) <= 255
    assert escaped not in {b".", b".."}
    assert "/" not in escaped.decode()
    assert not any(map(is_control, escaped.decode()))


@given(ANY_TEXT, ANY_TEXT)
@example("a/b", "a%2Fb")
@example("", "%")
@example(".", "%2E")
@example("\U0001f600", "\ud83d\ude00")
@example("é", "\udcc3\udca9")
def test_two_names_never_share_a_file_name(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)


@given(st.text(min_size=1, max_size=10), st.integers(200, 2000), st.integers(0, 50))
def test_two_long_names_never_share_a_file_name(text: str, length: int, longer: int) -> None:
    one = (text * length)[:length]
    assert (escape(one) == escape(one + "x" * longer)) == (longer == 0)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("x" * 256, b"x" * 221),
        ("x" * 2000, b"x" * 221),
        ("ä" * 150, b"\xc3\xa4" * 110),        # 220 bytes: not half a character
        ("/" * 100, b"%2F" * 73),              # 219 bytes: not half an escape
        ("x" + "/" * 100, b"x" + b"%2F" * 73),
        ("xx" + "/" * 100, b"xx" + b"%2F" * 73),
    ],
)
def test_a_name_that_is_too_long_keeps_its_beginning(name: str, kept: bytes) -> None:
    escaped = escape(name)
    assert escaped[: len(kept)] == kept
    assert re.fullmatch(rb"%~[0-9a-f]{32}", escaped[len(kept) :])


def test_long_names_with_the_same_beginning_are_distinguished() -> None:
    alike = ["x" * 300, "x" * 301, "x" * 299 + "y", "x" * 2000]
    assert len({escape(name) for name in alike}) == 4


def test_a_name_that_imitates_the_digest_of_another_is_distinguished() -> None:
    long = "x" * 300
    assert escape(escape(long).decode()) != escape(long)


def test_odd_names_do_not_break_a_listing() -> None:
    uids = [VersionUid(f"{number:08x}-0000-4000-8000-000000000000") for number in range(len(ODD_NAMES))]
    tree = Tree(version(uid, name) for uid, name in zip(uids, ODD_NAMES, strict=True))
    listed = tree.children(Top.BY_NAME)
    assert [node for _, node in listed] == [NameDirectory(name) for name in ODD_NAMES]
    assert len({name for name, _ in listed}) == len(ODD_NAMES)
    for (name, node), uid in zip(listed, uids, strict=True):
        assert tree.child(Top.BY_NAME, name) == node
        assert tree.content(tree.child(node, b"latest")) == b"../../by_version_uid/" + uid.encode()


@given(st.lists(ANY_TEXT, max_size=20, unique=True))
def test_any_names_can_be_listed_and_found(some: list[str]) -> None:
    uids = [VersionUid(f"{number:08x}-0000-4000-8000-000000000000") for number in range(len(some))]
    tree = Tree(version(uid, name) for uid, name in zip(uids, some, strict=True))
    assert [tree.child(Top.BY_NAME, escape(name)) for name in some] == [NameDirectory(name) for name in some]
    assert [tree.content(Fact(uid, b"name")).decode(errors="surrogatepass") for uid in uids] == [
        f"{name}\n" for name in some
    ]
