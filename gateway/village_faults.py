"""What goes wrong with simulated meters: one class for each `kind` of a `[[meter.fault]]` in a village file."""

import datetime
from typing import Annotated, Final

import msgspec


class Fault(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    rename={"start": "from", "end": "to"},
):
    """Something that goes wrong with one meter, from `start` on and before `end` (village time).

    `rate` is the share of its answers that it strikes.
    """

    start: datetime.datetime | None = None
    end: datetime.datetime | None = None
    rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0


class Dead(Fault, frozen=True, kw_only=True, tag="dead"):
    """The meter does not answer."""


class Refusal(Fault, frozen=True, kw_only=True, tag="exception"):
    """The meter refuses with this code of its protocol."""

    code: Annotated[int, msgspec.Meta(ge=1, le=255)]


class Garbage(Fault, frozen=True, kw_only=True, tag="garbage"):
    """As many random bytes as the answer would have."""


class FlippedBit(Fault, frozen=True, kw_only=True, tag="flip_bit"):
    """One bit of the answer is wrong."""


class Late(Fault, frozen=True, kw_only=True, tag="late"):
    """The answer comes so many real milliseconds later than usual."""

    late_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)]


class WrongUnit(Fault, frozen=True, kw_only=True, tag="wrong_unit"):
    """The answer is good, but names another meter."""

    address: str


class Noise(Fault, frozen=True, kw_only=True, tag="noise"):
    """So many random bytes before and after the answer."""

    before: Annotated[int, msgspec.Meta(ge=0, le=100)] = 1
    after: Annotated[int, msgspec.Meta(ge=0, le=100)] = 1


AnyFault = Dead | Refusal | Garbage | FlippedBit | Late | WrongUnit | Noise
FAULTS: Final[dict[str, type[Fault]]] = {
    str(fault.__struct_config__.tag): fault for fault in (Dead, Refusal, Garbage, FlippedBit, Late, WrongUnit, Noise)
}
