"""Which request an overheard answer belongs to, and whose it is, as far as the bytes on the line tell. Pure.

Modbus      unit, function, and as many bytes as were asked for; nothing names the registers
CJ/T 188    number, control code and serial
M-Bus       address; behind FD the telegram's own identity, beside the selection that was acknowledged
"""

from typing import Final

from agent.technician import modbus_wire
from agent.technician.cutting import Protocol
from agent.technician.words import Words
from protocols import cjt188, mbus, modbus
from protocols.mbus import Identity

NOBODY_SELECTED: Final = Words("没有表确认被选中", "no meter acknowledged the selection")


def answers(protocol: Protocol, request: bytes, answer: bytes) -> bool:
    """Tell whether a sound answer can be one to a sound request of the same protocol (Modbus: as RTU frames)."""
    if protocol == "modbus":
        return _modbus_answers(request, answer)
    if protocol == "cjt188":
        asked, told = cjt188.parse_frame(request), cjt188.parse_frame(answer)
        assert asked is not None
        assert told is not None
        same = asked.address in (cjt188.BROADCAST, told.address)
        return same and asked.request_control == told.request_control and asked.serial == told.serial
    asked_of, told_by = mbus.parse_frame(request), mbus.parse_frame(answer)
    assert asked_of is not None
    if answer == bytes((mbus.ACKNOWLEDGEMENT,)):
        return asked_of.function != mbus.REQUEST_DATA
    assert told_by is not None
    if asked_of.function != mbus.REQUEST_DATA:
        return False
    return asked_of.address in (mbus.SELECTED, mbus.ANY_METER, told_by.address)


def differ_unseen(protocol: Protocol, one: bytes, other: bytes) -> bool:
    """Tell whether two requests ask for different things and one answer could be to either.

    CJ/T 188 has a serial for that, and an M-Bus telegram says by itself what it holds.
    """
    if protocol != "modbus" or one[1] not in modbus_wire.READS or one[2:6] == other[2:6]:
        return False
    same_meter = one[0] == other[0] or 0 in (one[0], other[0])
    return same_meter and one[1] == other[1] and _bytes_wanted(one) == _bytes_wanted(other)


def is_final(protocol: Protocol, refusal: bytes) -> bool:
    """Tell whether nothing comes after a refusal: a Modbus device that is busy may answer yet."""
    return protocol != "modbus" or refusal[2] in modbus_wire.FINAL_EXCEPTIONS


def _modbus_answers(request: bytes, answer: bytes) -> bool:
    if request[1] != answer[1] & 0x7F or request[0] not in {answer[0], modbus.ANY_UNIT}:
        return False
    if answer[1] & 0x80:
        return True
    if request[1] in modbus_wire.READS:
        return answer[2] == _bytes_wanted(request) == len(answer) - 5
    return len(answer) == modbus.REQUEST_BYTES and answer[2:6] == request[2:6]  # what was written, or where


def _bytes_wanted(request: bytes) -> int:
    """Return the byte count of the answer to a request to read: of registers two each, of bits one for eight."""
    count = int.from_bytes(request[4:6], "big")
    return 2 * count if request[1] in modbus.READ_FUNCTIONS else -(-count // 8)


class Selection:
    """Whom FD means on an M-Bus line: whoever acknowledged the last selection, and nobody before somebody did."""

    def __init__(self) -> None:
        self._mask: Identity | None = None
        self._is_acknowledged = False

    def station_of(self, frame: mbus.Frame) -> str:
        """Note a request; return whom it means: the meter's address, or whoever is (or is to be) selected."""
        if frame.ci == mbus.SELECT:
            self._mask, self._is_acknowledged = _mask_of(frame), False
            return str(self._mask)
        station = str(frame.address)
        if frame.address == mbus.SELECTED:
            if self._mask is not None and self._is_acknowledged:
                station = str(self._mask)
            if frame.function == mbus.RESET_LINK:
                self._mask, self._is_acknowledged = None, False
        return station

    def acknowledge(self, selection: mbus.Frame) -> None:
        """Note that a meter acknowledged a selection. Of an earlier one than the last that says nothing any more."""
        self._is_acknowledged = self._mask is not None and _mask_of(selection) == self._mask

    def owner_of(self, telegram: mbus.Frame) -> tuple[str, Words | None]:
        """Return whose a telegram is that answers a request to FD, and what is wrong with that.

        The identity in it says so. Where it has none it is the selected meter's, and nobody's (FD) where none was.
        """
        identity, mask = telegram.identity, self._mask
        if mask is None or not self._is_acknowledged:
            agrees = identity is not None and mask is not None and identity.is_selected_by(mask)
            return self._name(identity, agrees=agrees), NOBODY_SELECTED
        if identity is None or identity.is_selected_by(mask):
            return self._name(identity or mask, agrees=True), None
        name = self._name(identity, agrees=False)
        return name, Words(f"选的是 {mask}，应答的却是 {name}", f"{mask} was selected, {name} answers")

    def _name(self, identity: Identity | None, *, agrees: bool) -> str:
        """Return a meter's name, as long as the master's names are: its eight digits, or its whole identity."""
        if identity is None:
            return str(mbus.SELECTED)
        mask = self._mask
        if agrees and mask is not None and "F" not in mask.number:
            return str(mask)
        is_long = mask is not None and str(mask) != mask.number
        return str(identity) if is_long else identity.number


def _mask_of(selection: mbus.Frame) -> Identity:
    return mbus.decode_identity((selection.data + b"\xff" * mbus.IDENTITY_BYTES)[: mbus.IDENTITY_BYTES])
