"""What a scan asks an address, as far as it depends on what meters there are. Requests to read, no others.

The first question is the cheap one, which nearly every meter answers at least with a refusal. A closer look is for
those that keep silent: to registers that they do not have, to another meter type than their own, or because they sleep.
"""

import functools
from collections import Counter
from typing import Final, NamedTuple

from agent.technician.fits import COLD_WATER, built_in
from protocols import cjt188, cjt188_data, modbus
from protocols.cjt188_data import DiOrder
from protocols.registers import ModbusSpec

ORDERS: Final = (DiOrder.HIGH_FIRST, DiOrder.LOW_FIRST)
# Hot, drinking and reclaimed water (CJ/T 188, table of meter types).
OTHER_WATER: Final = (0x11, 0x12, 0x13)


class Cjt188Question(NamedTuple):
    """One request: control code, data identifier, the order of its bytes, meter type."""

    control: int
    identifier: int
    order: DiOrder
    meter_type: int

    @property
    def wire(self) -> bytes:
        """The two bytes of the identifier as they travel."""
        return self.identifier.to_bytes(2, "little" if self.order is DiOrder.LOW_FIRST else "big")


@functools.cache
def modbus_questions(*, is_closer: bool) -> tuple[modbus.ReadRequest, ...]:
    """Return what to ask a unit: first the request that most known meters answer with registers; then all others.

    Of the closer look the first wakes who sleeps, so what a sleeper is asked comes last.
    """
    profiles = [profile for profile in built_in() if isinstance(profile.spec, ModbusSpec)]
    firsts = [(profile.spec.function, *next(profile.spec.requests())) for profile in profiles]
    sleepers = {first for first, profile in zip(firsts, profiles, strict=True) if profile.timing.wake_up is not None}
    counts = Counter(firsts)
    first, *others = sorted(counts, key=lambda block: (block in sleepers, -counts[block], block))
    return tuple(
        modbus.ReadRequest(unit=modbus.UNIT_MIN, function=function, address=address, count=count)
        for function, address, count in (others if is_closer else [first])
    )


def cjt188_questions(*, is_any: bool, is_closer: bool) -> tuple[Cjt188Question, ...]:
    """Return what to ask a meter: `is_any` for whatever single meter there is, else for the one with a number.

    Any meter is asked for its address and for its total, because some know only the latter; each in both orders.
    """
    types = OTHER_WATER if is_closer else (COLD_WATER,)
    totals = [
        Cjt188Question(cjt188.READ_DATA, cjt188_data.CURRENT, order, meter_type)
        for meter_type in types
        for order in ORDERS
    ]
    if is_closer or not is_any:
        return tuple(totals)
    addresses = [Cjt188Question(cjt188.READ_ADDRESS, cjt188_data.ADDRESS, order, cjt188.ANY_TYPE) for order in ORDERS]
    return (*addresses, *totals)
