"""Inode numbers for nodes of the tree, kept while the kernel remembers them.

A number is used once and never reused. Memory is bounded by what the kernel remembers, not by the number of versions
that a mount has shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.mount.tree import Top

if TYPE_CHECKING:
    from backyfs.mount.tree import Node


class Inodes:
    """The numbers of nodes, and the nodes of numbers."""

    def __init__(self, first: int) -> None:
        """Begin with `first`, which becomes the root directory. The top directories are never forgotten."""
        self._next = first
        self._nodes: dict[int, Node] = {}
        self._numbers: dict[Node, int] = {}
        self._lookups: dict[int, int] = {}  # lookups that the kernel has not forgotten
        for top in Top:
            self.count(self.number(top))

    def __len__(self) -> int:
        return len(self._nodes)

    def node(self, number: int) -> Node:
        """Return the node of a number.

        Raises:
            LookupError: no node has this number.
        """
        return self._nodes[number]

    def number(self, node: Node) -> int:
        """Return the number of a node, a new one if it has none. The caller then counts it or drops it."""
        number = self._numbers.get(node)
        if number is None:
            number = self._numbers[node] = self._next
            self._nodes[number] = node
            self._next += 1
        return number

    def count(self, number: int) -> None:
        """Note that the kernel was given a number once more."""
        self._lookups[number] = self._lookups.get(number, 0) + 1

    def drop_uncounted(self, number: int) -> None:
        """Withdraw a number that the kernel was never given."""
        if number not in self._lookups:
            node = self._nodes.pop(number, None)
            if node is not None:
                del self._numbers[node]

    def forget(self, number: int, lookups: int) -> None:
        """Note how many lookups of a number the kernel has forgotten."""
        left = self._lookups.get(number, 0) - lookups
        if isinstance(self._nodes.get(number), Top) or left > 0:
            self._lookups[number] = max(left, 1)
            return
        self._lookups.pop(number, None)
        self.drop_uncounted(number)
