"""The search for all M-Bus meters on a line by their identities, sans I/O.

A selection with F for a digit means every digit. One meter answers: found. Several answer at once: their bits run into
one another, and the next digit is tried with 0 to 9. Where all eight digits are known and there is still a collision,
two makers use the same number; medium and version tell them apart.

    >> select FFFFFFFF   << E5      >> REQ_UD2  << (garbled)       two or more
    >> select 0FFFFFFF   << (silence)                              none
    >> select 1FFFFFFF   << E5      >> REQ_UD2  << a telegram      one, and it says who it is
"""

import enum
from collections.abc import Generator, Iterator
from fractions import Fraction

import msgspec

from protocols import mbus
from protocols.mbus import Identity, Request


class Heard(enum.Enum):
    """What came in place of an answer."""

    SILENCE = "silence"  # NoResponse
    COLLISION = "collision"  # Garbled or WrongAnswer: something came, and it was no single meter's answer


class Search:
    """One search below a mask. `found` and `unresolved` grow while `queries` runs.

    Unresolved are masks under which something answers that is never one clean meter: two meters that are the same in
    every part of their identity, or one that cannot send its telegram.
    """

    def __init__(self, mask: Identity | None = None) -> None:
        self.found: list[Identity] = []
        self.unresolved: list[Identity] = []
        self.explored = Fraction(0)  # how much of all identities is decided, 0 to 1
        self._mask = mask or Identity()

    def queries(self) -> Generator[Request, bytes | Heard, None]:
        """Yield queries; each is sent its answer, or what was heard in place of one.

        Report silence only after repeats: a meter that a disturbed selection did not reach is not found. A disturbance
        that is reported as a collision only costs time.
        """
        # A list and not a recursion: whoever drives the search may look at how much is left.
        todo = [(self._mask, Fraction(1))]
        while todo:
            mask, share = todo.pop()
            heard = yield from _ask(mask)
            if isinstance(heard, Identity):
                if heard not in self.found:
                    self.found.append(heard)
            elif heard is Heard.COLLISION:
                narrower = list(_narrower(mask))
                todo += [(part, share / len(narrower)) for part in reversed(narrower)]
                if narrower:
                    continue
                self.unresolved.append(mask)
            self.explored += share


def _ask(mask: Identity) -> Generator[Request, bytes | Heard, Identity | Heard]:
    """Select with a mask and return who answers, or what was heard."""
    selected = yield mbus.select(mask)
    if isinstance(selected, Heard):
        return selected
    answer = yield mbus.request_data(mbus.SELECTED, frame_count_bit=True, identity=mask)
    if isinstance(answer, Heard):
        return Heard.COLLISION  # somebody acknowledged; whoever says nothing now is looked for more closely
    frame = mbus.parse_frame(answer)
    assert frame is not None
    return frame.identity or Heard.COLLISION


def _narrower(mask: Identity) -> Iterator[Identity]:
    """Yield the masks that together mean the same meters; none where the mask has nothing left to vary."""
    place = mask.number.find("F")
    if place >= 0:
        for digit in "0123456789":
            number = mask.number[:place] + digit + mask.number[place + 1 :]
            yield msgspec.structs.replace(mask, number=number)
    elif mask.medium == mbus.WILD_BYTE:
        for medium in range(mbus.WILD_BYTE):
            yield msgspec.structs.replace(mask, medium=medium)
    elif mask.version == mbus.WILD_BYTE:
        for version in range(mbus.WILD_BYTE):
            yield msgspec.structs.replace(mask, version=version)
