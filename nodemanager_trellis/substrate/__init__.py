"""ACT: the only code that touches the kernel and LXC. One file per subsystem, ``ensure``/``absent``/``read`` per kind.

Every driver obeys :class:`Driver`. An ifindex, a file descriptor or a path never leaves this room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nodemanager_trellis.objects import Key


class Driver(Protocol):
    """Makes, removes and reads objects of one kind."""

    kind: str

    def read(self) -> Sequence[Any]:
        """All objects of this kind that exist now and bear our mark, equal to what ``ensure`` was given."""

    def ensure(self, wanted: Sequence[Any], actual: Mapping[Key, Any]) -> None:
        """Afterwards each of ``wanted`` exists as described; what already was is changed in place where the kernel can.

        :param actual: what existed before, as read, at least for the keys in ``wanted``
        :raises NotOurs: something of that name is not ours; nothing of that object was changed
        :raises SubstrateError: the first object that failed; earlier ones of the list exist
        """

    def absent(self, objects: Sequence[Any]) -> None:
        """Afterwards none of ``objects`` exists; absent of nothing is success. Does all it can, raises at the end."""
