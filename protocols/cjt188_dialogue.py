"""CJ/T 188 dialogues: how a water meter is asked, and how it answers. Sans I/O.

Nothing here writes to a meter but `valve_request`, which no dialogue calls: it is a technician's, who said so in words.
"""

import enum
import re
from collections.abc import Generator, Mapping

import msgspec

from protocols import cjt188, cjt188_data, flags
from protocols.cjt188 import ADDRESS_DATA_BYTES, BROADCAST, Frame, Request
from protocols.cjt188_data import Cjt188Spec, DiOrder, Record
from protocols.errors import MeterFault, MeterRefused, ProfileError, UsageError
from protocols.reading import Measurement


class Station:
    """One meter as its master sees it: its address, and what tells its answers from late ones.

    Make one for each configured meter and keep it: SER counts on from exchange to exchange, and while the profile says
    `di_order = "probe"` the order that was understood is remembered here. `prefix` is a radio modem's destination.
    """

    def __init__(self, address: str, *, prefix: bytes = b"") -> None:
        self.address = address
        self.prefix = prefix
        self._serial = 0xFF
        self._order = DiOrder.HIGH_FIRST
        self._ever_answered = False
        self._unanswered = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Station) and (self.address, self.prefix) == (other.address, other.prefix)

    def __hash__(self) -> int:
        return hash((self.address, self.prefix))

    def __repr__(self) -> str:
        return f"{self.prefix.hex().upper()}:{self.address}" if self.prefix else self.address

    def count_from(self, serial: int) -> None:
        """Give the next request this SER. Whoever starts should choose it by chance: a late answer may name any."""
        self._serial = (serial - 1) & 0xFF

    def next_serial(self) -> int:
        """Return the SER of the next request; counts modulo 256."""
        self._serial = (self._serial + 1) & 0xFF
        return self._serial

    def next_order(self, spec: Cjt188Spec) -> DiOrder:
        """Return the order in which to send the next data identifier.

        While probing, an order that stays without answer gives way to the other: at once before the meter has ever
        answered, later only after two failures in a row, for which noise is the likelier cause.
        """
        if spec.di_order is not DiOrder.PROBE:
            return spec.di_order
        if self._unanswered and (self._unanswered % 2 == 0 or not self._ever_answered):
            self._turn()
        self._unanswered += 1  # until `understood` or `refused` says otherwise: an exchange that fails says nothing
        return self._order

    def understood(self) -> None:
        """Note that the meter answered the last request."""
        self._ever_answered, self._unanswered = True, 0

    def refused(self) -> None:
        """Note that the meter refused the last request: the other order is next."""
        self._unanswered = 0
        self._turn()

    def _turn(self) -> None:
        self._order = DiOrder.LOW_FIRST if self._order is DiOrder.HIGH_FIRST else DiOrder.HIGH_FIRST


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who answered a request for the address."""

    meter_type: int
    address: str


class Position(enum.StrEnum):
    """Where a meter says that its valve is."""

    OPEN = "open"
    CLOSED = "closed"
    FAULT = "fault"  # neither: it does not obey
    UNKNOWN = "unknown"  # the profile names no bit for it, or the meter left its status empty


def parse_address(text: str) -> Station:
    """Return the station with a configured address: 14 digits, before them a radio modem's destination and a colon.

    AAAAAAAAAAAAAA addresses whatever single meter is on the line. Raises ProfileError for anything else.
    """
    match = re.fullmatch("(?:((?:[0-9A-F]{2}){1,16}):)?([0-9]{14}|A{14})", text)
    if not match:
        raise ProfileError(
            'a CJ/T 188 address has 14 digits, such as "00000805000001" (zeros in front of a shorter printed number); '
            'behind a radio modem "0005:00000805000001"; "AAAAAAAAAAAAAA" only where the line has a single meter'
        )
    station = Station(match[2], prefix=bytes.fromhex(match[1] or ""))
    _check_lead(station.prefix, what=f"the destination in {text!r}")
    return station


def parse_address_of(spec: Cjt188Spec, text: str) -> Station:
    """Return the station with a configured address of such a meter. Raises ProfileError as `parse_address` does.

    Raises it also where the profile's header and the destination before the address are too long together.
    """
    station = parse_address(text)
    _check_lead(bytes.fromhex(spec.tx_prefix) + station.prefix, what=f"tx_prefix {spec.tx_prefix!r} and {text!r}")
    return station


def dialogue(spec: Cjt188Spec, station: Station) -> Generator[Request, bytes, Measurement]:
    """Read the meter's current total once: yields requests, is sent the answering frames, returns the measurement.

    Raises MeterRefused for an abnormal answer, MeterFault where the answer holds no volume.
    """
    record = yield from read(spec, station, cjt188_data.CURRENT)
    return measurement_of(record)


def read(spec: Cjt188Spec, station: Station, identifier: int) -> Generator[Request, bytes, Record]:
    """Read 901F, a settled month (D120-D12B), history (D2xx) or a freeze (D3xx, D4xx) once.

    Raises MeterRefused, MeterFault, and UsageError for other identifiers.
    """
    layout = cjt188_data.layout_of(spec, identifier)
    length = 3 + cjt188_data.content_bytes(cjt188_data.parse_layout(layout))
    frame = yield from _ask(spec, station, control=cjt188.READ_DATA, identifier=identifier, lengths=(length,))
    return cjt188_data.decode(spec, layout, frame.content)


def read_address(spec: Cjt188Spec, station: Station) -> Generator[Request, bytes, Identity]:
    """Ask a meter for its address; with the station AAAAAAAAAAAAAA only where the line has a single meter.

    Raises MeterRefused, and MeterFault where header and data disagree or hold no digits.
    """
    lengths = (3, ADDRESS_DATA_BYTES)
    frame = yield from _ask(spec, station, control=cjt188.READ_ADDRESS, identifier=cjt188_data.ADDRESS, lengths=lengths)
    address = frame.content[::-1].hex().upper() or frame.address
    if frame.address not in (address, BROADCAST) or not address.isdecimal():
        raise MeterFault(f"the meter calls itself {address} in the data and {frame.address} in the header")
    return Identity(meter_type=frame.meter_type, address=address)


def measurement_of(record: Record) -> Measurement:
    """Return the volume and the flags in a record. Raises MeterFault where the meter left its total empty."""
    if record.total_ml is None:
        raise MeterFault("the meter left its total empty (filled with FF or 99)")
    return flags.measurement(record.total_ml, record.effects)


def valve_request(spec: Cjt188Spec, station: Station, *, is_open: bool) -> Request:
    """Return the request that opens or closes the valve. It is sent once, by whoever was told so in words.

    Where the profile probes, read the meter first: the order that was understood is the one that is used. What comes
    back: `valve_answer`. Raises UsageError where the profile names no valve commands, and for the address that every
    meter obeys.
    """
    if spec.valve is None:
        raise UsageError("the profile names no valve commands")
    if station.address == BROADCAST:
        raise UsageError("a valve is moved by the meter's own address only")
    return _request(
        spec,
        station,
        control=spec.valve.control,
        identifier=cjt188_data.VALVE,
        payload=bytes([spec.valve.open if is_open else spec.valve.close]),
        lengths=(3 + cjt188_data.content_bytes(cjt188_data.parse_layout(cjt188_data.STATUS_LAYOUT)),),
        order=_VALVE_ORDERS.get(spec.valve.di_order),
    )


def valve_answer(found: bytes) -> bytes:
    """Return ST0 and ST1 of the answer to `valve_request`. Raises MeterRefused for an abnormal one."""
    return _accept(found).content


def valve_position(spec: Cjt188Spec, status: bytes | None) -> Position:
    """Return where ST0 and ST1 say that the valve is; None and a status that the meter left empty say nothing."""
    if status is None or cjt188_data.is_empty(status):
        return Position.UNKNOWN
    effects = cjt188_data.decode(spec, cjt188_data.STATUS_LAYOUT, status).effects
    if "valve_fault" in effects:
        return Position.FAULT
    if "valve_closed" not in spec.status:
        return Position.UNKNOWN
    return Position.CLOSED if "valve_closed" in effects else Position.OPEN


def valve_asked(spec: Cjt188Spec, request: Frame) -> bool | None:
    """Tell what a request asks of the valve: True to open, False to close; None for every other request."""
    if spec.valve is None or request.is_reply or request.control != spec.valve.control or len(request.content) != 1:
        return None
    wanted = _VALVE_ORDERS.get(spec.valve.di_order)
    orders = _orders(spec) if wanted is None else (wanted,)
    if request.identifier not in {_wire(cjt188_data.VALVE, order) for order in orders}:
        return None
    return {spec.valve.open: True, spec.valve.close: False}.get(request.content[0])


def decode_case(spec: Cjt188Spec, frames: list[tuple[bytes, bytes]]) -> Measurement:
    """Return what the last reading in captured (request, answer) frames means: they go the way of frames from the line.

    Beside readings there may be valve commands, which prove what the profile names. Raises MeterError or ProfileError
    for frames that do not belong together.
    """
    record = None
    for asked, answered in frames:
        request = next((frame for _, frame in cjt188.find_frames(asked) if not frame.is_reply), None)
        is_valve = request is not None and valve_asked(spec, request) is not None
        is_reading = request is not None and request.control == cjt188.READ_DATA and request.identifier in _CURRENT_WIRE
        if request is None or not (is_valve or is_reading):
            raise ProfileError(f"{asked.hex(' ').upper()} holds no request for the current reading (901F)")
        layout = cjt188_data.STATUS_LAYOUT if is_valve else spec.fields
        length = 3 + cjt188_data.content_bytes(cjt188_data.parse_layout(layout))
        reader = Request(frame=request, answer_lengths=(length,)).reader()
        found = reader.feed(answered)
        if found is None:
            reader.close()
        content = _accept(found).content
        if is_reading:
            record = cjt188_data.decode(spec, spec.fields, content)
    if record is None:
        raise MeterFault("there is no reading among the frames")
    return measurement_of(record)


def respond(
    spec: Cjt188Spec, request: Frame, *, address: str, totals_ml: Mapping[int, int], status: bytes = b"\0\0"
) -> bytes | None:
    """Return what the meter at `address` sends in answer to a request, None where it stays silent.

    `totals_ml` holds the totals that it can show by data identifier (901F, D120...); `status` is what it reports, also
    in answer to a valve command in its own name. It refuses every other request and, unless the profile probes,
    identifiers in the other order. Used by simulators and tests.
    """
    if request.address not in (address, BROADCAST) or not cjt188.same_family(request.meter_type, spec.meter_type):
        return None
    identifiers = [_number(request.identifier, order) for order in _orders(spec) if request.identifier]
    content = None
    if request.address == address and valve_asked(spec, request) is not None:
        content = status
    if request.control == cjt188.READ_ADDRESS and cjt188_data.ADDRESS in identifiers:
        content = b""
    if request.control == cjt188.READ_DATA:
        for identifier in set(identifiers) & set(totals_ml):
            layout = cjt188_data.layout_of(spec, identifier)
            content = cjt188_data.encode(spec, layout, total_ml=totals_ml[identifier], status=status)
    if content is None:
        frame = cjt188.refusal(request, status, address=address, meter_type=spec.meter_type)
    else:
        frame = cjt188.answer(request, content, address=address, meter_type=spec.meter_type)
    return bytes([cjt188.PREAMBLE] * spec.preamble_bytes) + frame.encode()


def _ask(
    spec: Cjt188Spec, station: Station, *, control: int, identifier: int, lengths: tuple[int, ...]
) -> Generator[Request, bytes, Frame]:
    """Ask once; while probing, ask again in the other order where the meter refuses. Raises MeterRefused."""
    attempts = 2 if spec.di_order is DiOrder.PROBE else 1
    while True:
        found = yield _request(spec, station, control=control, identifier=identifier, lengths=lengths)
        try:
            frame = _accept(found)
        except MeterRefused:
            station.refused()
            attempts -= 1
            if not attempts:
                raise
        else:
            station.understood()
            return frame


def _request(
    spec: Cjt188Spec,
    station: Station,
    *,
    control: int,
    identifier: int,
    lengths: tuple[int, ...],
    payload: bytes = b"",
    order: DiOrder | None = None,
) -> Request:
    wire = _wire(identifier, station.next_order(spec) if order is None else order)
    frame = Frame(
        meter_type=spec.meter_type,
        address=station.address,
        control=control,
        data=wire + bytes([station.next_serial()]) + payload,
    )
    lead = bytes.fromhex(spec.tx_prefix) + station.prefix + bytes([cjt188.PREAMBLE] * spec.preamble_bytes)
    return Request(frame=frame, answer_lengths=lengths, lead=lead)


def _accept(found: bytes) -> Frame:
    """Return the normal answer in a frame that a reader let pass. Raises MeterRefused for an abnormal one."""
    frame = cjt188.parse_frame(found)
    assert frame is not None
    if frame.is_abnormal:
        raise MeterRefused(f"abnormal answer, control {frame.control:02X}, ST {frame.content.hex(' ').upper()}")
    return frame


def _check_lead(lead: bytes, *, what: str) -> None:
    try:
        cjt188_data.check_lead(lead, what=what)
    except ValueError as error:
        raise ProfileError(str(error)) from None


def _orders(spec: Cjt188Spec) -> tuple[DiOrder, ...]:
    """Return the orders of an identifier that such a meter understands."""
    return (DiOrder.HIGH_FIRST, DiOrder.LOW_FIRST) if spec.di_order is DiOrder.PROBE else (spec.di_order,)


def _wire(identifier: int, order: DiOrder) -> bytes:
    """Return the two bytes of a data identifier as they travel."""
    return identifier.to_bytes(2, "little" if order is DiOrder.LOW_FIRST else "big")


def _number(wire: bytes, order: DiOrder) -> int:
    """Return the data identifier in two bytes; the inverse of `_wire`."""
    return int.from_bytes(wire, "little" if order is DiOrder.LOW_FIRST else "big")


_VALVE_ORDERS: Mapping[str | None, DiOrder] = {"A017": DiOrder.HIGH_FIRST, "17A0": DiOrder.LOW_FIRST}
_CURRENT_WIRE = {_wire(cjt188_data.CURRENT, order) for order in (DiOrder.HIGH_FIRST, DiOrder.LOW_FIRST)}
