"""The search for all M-Bus meters on a line by their identities, sans I/O.

A selection with F for a digit means every digit. One meter answers: found. Several answer at once: their bits run into
one another, and the next digit is tried with 0 to 9, then with A to E, which some numbers have. Where all eight digits
are known and there is still a collision, two meters have the same number: medium and version tell them apart, and last
the maker, byte by byte. That takes hundreds of selections, so it comes when everybody else is found.

    >> select FFFFFFFF   << E5      >> REQ_UD2  << (garbled)       two or more
    >> select 0FFFFFFF   << (silence)                              none
    >> select 1FFFFFFF   << E5      >> REQ_UD2  << a telegram      one, and it says who it is
"""

import enum
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Final, NamedTuple

import msgspec

from protocols import mbus
from protocols.mbus import Identity, Request

_DIGITS: Final = "0123456789ABCDE"
_MEDIA: Final = range(0x40)  # EN 13757-3 leaves the others free
_MAKER_HIGH_BYTES: Final = range(0x80)  # three letters of five bits


class Heard(enum.Enum):
    """What came in place of an answer."""

    SILENCE = "silence"  # NoResponse
    COLLISION = "collision"  # Garbled or WrongAnswer: something came, and it was no single meter's answer


class _Task(NamedTuple):
    """A mask to ask, and how much of all identities it is. `is_again`: whoever collided there was asked for already."""

    mask: Identity
    share: Fraction
    is_again: bool = False


class Search:
    """One search below a mask. `found` and `unresolved` grow while `queries` runs.

    Unresolved are masks under which something answers that is never one clean meter: two meters that are the same in
    every part of their identity, one that cannot send its telegram, some that heed no narrower mask.
    """

    def __init__(self, mask: Identity | None = None) -> None:
        self.found: list[Identity] = []
        self.unresolved: list[Identity] = []
        self.explored = Fraction(0)  # how much of all identities is decided, 0 to 1
        self.collisions = 0  # since the last meter was found: where it only grows the line is noisy
        self._todo = [_Task(mask or Identity(), Fraction(1))]  # the last one is the next

    @property
    def waiting(self) -> int:
        """How many masks are still to be asked, as far as is known now."""
        return sum(not task.is_again for task in self._todo)

    def queries(self) -> Generator[Request, bytes | Heard, None]:
        """Yield queries; each is sent its answer, or what was heard in place of one.

        Report silence only after repeats: a meter that a disturbed selection did not reach is not found. A disturbance
        that is reported as a collision only costs time.
        """
        while self._todo:
            task = self._todo.pop()
            if task.is_again and not self._is_missing_somebody(task.mask):
                continue
            heard = yield from _ask(task.mask)
            if isinstance(heard, Identity):
                if heard not in self.found:
                    self.found.append(heard)
                    self.collisions = 0
            elif heard is not Heard.SILENCE:
                self.collisions += 1
                is_one = heard is None and not _has_wild_digits(task.mask)  # and it cannot send its telegram
                narrower = [] if task.is_again or is_one else list(_narrower(task.mask))
                if narrower:
                    self._go_deeper(task, narrower)
                    continue
                self.unresolved.append(task.mask)
            self.explored += task.share

    def _go_deeper(self, task: _Task, masks: list[Identity]) -> None:
        tasks = [_Task(mask, task.share / len(masks)) for mask in masks]
        deeper = [_Task(task.mask, Fraction(0), is_again=True), *reversed(tasks)]
        if _has_wild_digits(task.mask):
            self._todo += deeper
        else:
            self._todo[:0] = deeper  # hundreds of masks for two meters: the others first

    def _is_missing_somebody(self, mask: Identity) -> bool:
        """Tell whether narrower masks brought fewer than the two meters that a collision means."""
        waiting = [task.mask for task in self._todo if not task.is_again]
        if any(other.is_selected_by(mask) for other in (*self.unresolved, *waiting)):
            return False
        return sum(identity.is_selected_by(mask) for identity in self.found) < 2


def _ask(mask: Identity) -> Generator[Request, bytes | Heard, Identity | Heard | None]:
    """Select with a mask and return who answers, or what was heard; None for an acknowledgement and nothing more."""
    selected = yield mbus.select(mask)
    if isinstance(selected, Heard):
        return selected
    answer = yield mbus.request_data(mbus.SELECTED, frame_count_bit=True, identity=mask)
    if isinstance(answer, Heard):
        return None if answer is Heard.SILENCE else answer
    frame = mbus.parse_frame(answer)
    assert frame is not None
    return frame.identity


def _has_wild_digits(mask: Identity) -> bool:
    return "F" in mask.number


def _narrower(mask: Identity) -> Iterator[Identity]:
    """Yield the masks that together mean the same meters; none where the mask has nothing left to vary."""
    place = mask.number.find("F")
    maker_high, maker_low = mask.manufacturer & 0xFF00, mask.manufacturer & 0xFF
    if place >= 0:
        for digit in _DIGITS:
            number = mask.number[:place] + digit + mask.number[place + 1 :]
            yield msgspec.structs.replace(mask, number=number)
    elif mask.medium == mbus.WILD_BYTE:
        for medium in _MEDIA:
            yield msgspec.structs.replace(mask, medium=medium)
    elif mask.version == mbus.WILD_BYTE:
        for version in range(mbus.WILD_BYTE):
            yield msgspec.structs.replace(mask, version=version)
    elif mask.manufacturer == mbus.WILD_MANUFACTURER:
        for high in _MAKER_HIGH_BYTES:
            yield msgspec.structs.replace(mask, manufacturer=high << 8 | mbus.WILD_BYTE)
    elif maker_low == mbus.WILD_BYTE:
        for low in range(mbus.WILD_BYTE):
            yield msgspec.structs.replace(mask, manufacturer=maker_high | low)
