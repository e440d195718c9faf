"""M-Bus dialogues: how a water meter is asked, and how it answers. Sans I/O.

    by primary address      SND_NKE to the meter    E5      by identity     selection    E5
                            REQ_UD2, FCB = 1        data                    REQ_UD2      data      to the selected (FD)

A meter keeps the telegram that it sent last, and sends it once more when the frame count bit (FCB) has not turned
since. A master that lost count (after a failure, a restart, or behind another master's back) would be served an old
total and could not tell. So each reading begins by making the meter forget: SND_NKE and the selection both do, and
FCB = 1 is new after them. Within a reading FCB turns with each further telegram. The acknowledgement also shows a meter
that is an answer behind: what comes in its place is a telegram, or the other way round, and neither is taken.

Some meters acknowledge and do not forget. What they send again is the telegram of the reading before, access number and
all; or one of a reading that failed, or of a master before us, which we do not know. In these cases the reading goes on
with FCB turned, which no meter may take for a repeat, and what comes last is believed. Who was found to repeat itself
is asked so each time. A meter that forgets and counts its accesses is asked once.
"""

import re
from collections.abc import Callable, Generator
from typing import Final

from protocols import mbus, mbus_data
from protocols.errors import MeterFault, ProfileError
from protocols.mbus import Frame, Identity, Request
from protocols.mbus_data import MbusSpec, Telegram
from protocols.mbus_records import encode_record
from protocols.reading import Measurement

# A meter that spreads its records over telegrams shows its total in the first ones. Eight take ten seconds of the line
# at 2400 bit/s.
TELEGRAMS_MAX: Final = 8
# So many telegrams may others have fetched since the last reading; after more the meter is only asked once more.
ACCESSES_MAX: Final = 16


class Station:
    """One meter as its master sees it: its primary address, or the identity by which it is selected.

    Make one for each configured meter and keep it: it remembers the last reading, to know a telegram that is repeated.
    """

    def __init__(self, *, primary: int | None = None, identity: Identity | None = None) -> None:
        self.primary = primary
        self.identity = identity
        self.total_ml: int | None = None  # what the last telegram of the reading before said
        self.access: int | None = None  # and its access number
        self.repeats = False  # it has sent that again, and then another one when FCB turned
        self.is_doubted = True  # it may have a telegram that we do not know

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Station) and (self.primary, self.identity) == (other.primary, other.identity)

    def __hash__(self) -> int:
        return hash((self.primary, self.identity))

    def __repr__(self) -> str:
        return f"Station({self})"

    def __str__(self) -> str:
        """The address as it is configured."""
        return str(self.identity or self.primary)

    @property
    def address(self) -> int:
        """Where requests for data go."""
        return mbus.SELECTED if self.primary is None else self.primary


def parse_address(text: str) -> Station:
    """Return the station with a configured address: "0" to "250", or 8 digits, or 16 with maker, version and medium.

    Raises ProfileError for anything else.
    """
    if re.fullmatch("0|[1-9][0-9]{0,2}", text) and int(text) <= mbus.PRIMARY_MAX:
        return Station(primary=int(text))
    if re.fullmatch("[0-9]{8}([0-9A-F]{8})?", text):
        data = bytes.fromhex(text[:8])[::-1] + bytes.fromhex(text[8:] or "FF" * 4)
        return Station(identity=mbus.decode_identity(data))
    hint = ""
    if text in {str(mbus.ANY_METER), str(mbus.BROADCAST)}:
        hint = f"; {text} is every meter at once"
    if text == str(mbus.SELECTED):
        hint = "; 253 is whoever was selected: give the number on the meter instead"
    raise ProfileError(
        'an M-Bus address is a primary one, "0" to "250", or the 8 digits on the meter, such as "00123456"; where two'
        f' meters have the same digits, the 16 of identity, maker, version and medium, such as "1149037877040E16"{hint}'
    )


def parse_address_of(spec: MbusSpec, text: str) -> Station:
    """Return the station with a configured address of such a meter. Raises ProfileError as `parse_address` does.

    Raises it also for the identity of a meter whose telegrams do not say whose they are: none could be believed.
    """
    station = parse_address(text)
    if station.identity is not None and not spec.says_medium:
        raise ProfileError(
            'this meter sends telegrams that do not say whose they are: give its primary address, "0" to "250"'
        )
    return station


def dialogue(spec: MbusSpec, station: Station) -> Generator[Request, bytes, Measurement]:
    """Read the meter's total once: yields requests, is sent the answers, returns the measurement.

    Raises MeterRefused where the meter reports an error, MeterFault where the telegram holds no volume.
    """
    yield mbus.select(station.identity) if station.identity else mbus.reset_link(station.address)
    is_doubted, station.is_doubted = station.is_doubted or station.repeats, True
    sent: list[bytes] = []
    telegrams = yield from _ask(spec, station, sent)
    is_repeated = _is_repeated(spec, station, telegrams)
    # Who does not forget may begin in the middle of its telegrams: the total is still to come.
    if (is_doubted or is_repeated) and (station.repeats or mbus_data.has_total(spec, telegrams[-1])):
        telegrams = yield from _ask(spec, station, sent, begins_anew=True)
    measurement = _measurement_of(spec, telegrams)
    station.repeats |= is_repeated and sent[-1] != sent[0]
    station.total_ml, station.access, station.is_doubted = measurement.volume_ml, telegrams[-1].access, False
    return measurement


def decode_case(spec: MbusSpec, frames: list[tuple[bytes, bytes]]) -> Measurement:
    """Return what captured (request, answer) frames mean: they take the way of frames from the line.

    Raises MeterError or ProfileError for frames that do not belong together.
    """
    telegrams: list[Telegram] = []
    selected: Identity | None = None
    for asked, answered in frames:
        frame = next((found for _, found in mbus.find_frames(asked)), None)
        if frame is None or not frame.is_request or frame.function not in mbus.CONTROL_NAMES:
            raise ProfileError(f"{asked.hex(' ').upper()} holds no request (SND_NKE, selection or REQ_UD2)")
        if frame.ci == mbus.SELECT and len(frame.data) >= mbus.IDENTITY_BYTES:
            selected = mbus.decode_identity(frame.data[: mbus.IDENTITY_BYTES])
        request = Request(frame=frame, identity=selected if frame.address == mbus.SELECTED else None)
        reader = request.reader()
        found = reader.feed(answered)
        if found is None:
            reader.close()
        elif request.wants_data:
            telegrams.append(_decode(spec, found))
    return _measurement_of(spec, telegrams)


class Slave:
    """The meter's side of one meter: what it answers to each request. Used by simulators and tests.

    `telegrams` returns CI and data of what it shows at that moment, one after the other where there are several.
    """

    def __init__(self, *, identity: Identity, telegrams: Callable[[], list[bytes]], primary: int = 0) -> None:
        self.identity = identity
        self.primary = primary
        self.is_selected = False
        self._telegrams = telegrams
        self._next: list[bytes] = []
        # One frame count bit each for the primary address and for FD; None after a reset.
        self._frame_count_bits: dict[int, bool] = {}
        self._sent: dict[int, bytes] = {}

    def answer(self, request: Frame) -> bytes | None:
        """Return what the meter sends in answer to a request, None where it keeps silent."""
        if request.ci == mbus.SELECT and request.address == mbus.SELECTED:
            return self._select(request)
        address = request.address
        if address not in (self.primary, mbus.ANY_METER) and not (address == mbus.SELECTED and self.is_selected):
            return None
        if request.function == mbus.RESET_LINK:
            self._forget(address)
            self.is_selected &= address != mbus.SELECTED
            return bytes((mbus.ACKNOWLEDGEMENT,))
        if request.function != mbus.REQUEST_DATA:
            return bytes((mbus.ACKNOWLEDGEMENT,))
        return self._respond(address, frame_count_bit=bool(request.control & mbus.FRAME_COUNT_BIT))

    def _select(self, request: Frame) -> bytes | None:
        whole = len(request.data) == mbus.IDENTITY_BYTES
        self.is_selected = whole and self.identity.is_selected_by(mbus.decode_identity(request.data))
        if not self.is_selected:
            return None
        self._forget(mbus.SELECTED)
        return bytes((mbus.ACKNOWLEDGEMENT,))

    def _respond(self, address: int, *, frame_count_bit: bool) -> bytes:
        if self._frame_count_bits.get(address) != frame_count_bit:
            self._frame_count_bits[address] = frame_count_bit
            self._next = self._next or self._telegrams()
            content = self._next.pop(0)
            frame = Frame(control=mbus.RESPOND_DATA, address=self.primary, ci=content[0], data=content[1:])
            self._sent[address] = frame.encode()
        return self._sent[address]

    def _forget(self, address: int) -> None:
        self._frame_count_bits.pop(address, None)
        self._next = []


def total_telegram(spec: MbusSpec, identity: Identity, volume_ml: int, *, access: int = 0, status: int = 0) -> bytes:
    """Return CI and data of the telegram in which a meter with this profile shows a total. Raises UsageError."""
    records = encode_record(mbus_data.total_record(spec, volume_ml))
    ci = mbus.VARIABLE[0] if spec.says_medium else mbus_data.SHORT_HEADER
    return mbus_data.encode_telegram(identity, records, access=access, status=status, ci=ci)


def _ask(
    spec: MbusSpec, station: Station, sent: list[bytes], *, begins_anew: bool = False
) -> Generator[Request, bytes, list[Telegram]]:
    """Fetch telegrams until one has the total, and add them to what was `sent` in this reading: FCB turns with each.

    Behind its last telegram a meter begins anew; who waits for that goes on there.
    """
    telegrams: list[Telegram] = []
    while len(telegrams) < TELEGRAMS_MAX:
        frame_count_bit = len(sent) % 2 == 0
        sent.append(
            (yield mbus.request_data(station.address, frame_count_bit=frame_count_bit, identity=station.identity))
        )
        telegrams.append(_decode(spec, sent[-1]))
        if mbus_data.has_total(spec, telegrams[-1]) or not (telegrams[-1].is_followed or begins_anew):
            break
    return telegrams


def _is_repeated(spec: MbusSpec, station: Station, telegrams: list[Telegram]) -> bool:
    """Tell whether the meter may have sent the last telegram once more.

    The checksum lets some damage pass, also of the access number: one that others cannot have made is no proof.
    """
    if telegrams[0].access and station.access is not None:
        return not 1 <= (telegrams[0].access - station.access) % 0x100 <= ACCESSES_MAX
    # It does not count its accesses (0, or the telegram has none).
    return mbus_data.has_total(spec, telegrams[-1]) and _measurement_of(spec, telegrams).volume_ml == station.total_ml


def _decode(spec: MbusSpec, found: bytes) -> Telegram:
    frame = mbus.parse_frame(found)
    assert frame is not None
    return mbus_data.decode(spec, frame)


def _measurement_of(spec: MbusSpec, telegrams: list[Telegram]) -> Measurement:
    """Return what the telegrams of one reading say. Raises MeterFault also where they are of different meters."""
    identities = {str(telegram.identity) for telegram in telegrams}
    if len(identities) > 1:
        raise MeterFault(f"two meters have the same address: {' and '.join(sorted(identities))}")
    if telegrams and telegrams[-1].is_followed and not mbus_data.has_total(spec, telegrams[-1]):
        raise MeterFault(f"no total in {len(telegrams)} telegrams, and the meter has more")
    return mbus_data.measurement_of(spec, telegrams)
