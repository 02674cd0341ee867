"""Inode numbers for nodes of the tree, as long as the kernel knows of them.

A number is given once and never again: memory is bounded by what the kernel remembers, not by how many
versions a mount has seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.mount.tree import Top

if TYPE_CHECKING:
    from backyfs.mount.tree import Node


class Inodes:
    """Which number is which node."""

    def __init__(self, first: int) -> None:
        """Begin with `first`, which becomes the root directory. The directories at the top stay for ever."""
        self._next = first
        self._nodes: dict[int, Node] = {}
        self._numbers: dict[Node, int] = {}
        self._lookups: dict[int, int] = {}  # that the kernel has not forgotten
        for top in Top:
            self.count(self.number(top))

    def __len__(self) -> int:
        return len(self._nodes)

    def node(self, number: int) -> Node:
        """Return the node of a number. Raises LookupError where there is none."""
        return self._nodes[number]

    def number(self, node: Node) -> int:
        """Return the number of a node, a new one if it has none; the caller counts it or drops it."""
        number = self._numbers.get(node)
        if number is None:
            number = self._numbers[node] = self._next
            self._nodes[number] = node
            self._next += 1
        return number

    def count(self, number: int) -> None:
        """Note that the kernel was told of a number, once more."""
        self._lookups[number] = self._lookups.get(number, 0) + 1

    def drop_uncounted(self, number: int) -> None:
        """Take a number back that the kernel was not told of."""
        if number not in self._lookups:
            node = self._nodes.pop(number, None)
            if node is not None:
                del self._numbers[node]

    def forget(self, number: int, lookups: int) -> None:
        """Note that the kernel has forgotten so many lookups."""
        left = self._lookups.get(number, 0) - lookups
        if isinstance(self._nodes.get(number), Top) or left > 0:
            self._lookups[number] = max(left, 1)
            return
        self._lookups.pop(number, None)
        self.drop_uncounted(number)
