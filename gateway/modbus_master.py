"""The one place that knows minimalmodbus: it is the master of serial Modbus lines, our guard the port that it sees.

minimalmodbus 2.1.1 builds the request and checks the answer, but it reads a fixed number of bytes in one go: it waits
the whole timeout for an exception reply, gives up on one byte of noise, and takes a late reply for the next answer
(measured, see `docs/decisions/0001-minimalmodbus-behind-a-guard.md`). So the port that it is given does the waiting
and finds the frame. Both implementations must accept a frame before its registers count.

It knows neither Modbus TCP nor meters that answer to unit 0: there our own frames go out alone
(`docs/decisions/0005-modbus-tcp.md`).
"""

import itertools
from collections.abc import Callable
from typing import Final, NamedTuple

import minimalmodbus

from gateway.line import Line
from protocols import modbus, modbus_ascii, modbus_tcp
from protocols.errors import Garbled
from protocols.profile import Query

# The one exception code that minimalmodbus takes for no error, whereupon it stumbles over the function code.
_ACKNOWLEDGE: Final = 5


class _Framing(NamedTuple):
    """How requests travel, how answers become RTU frames, and what minimalmodbus calls it (None: it cannot)."""

    query: Callable[[modbus.ReadRequest], Query]
    rtu_frame: Callable[[bytes], bytes]
    mode: str | None
    has_short_checksum: bool = False


# One counter for all lines: no transaction comes again before 65,536 others, far later than any answer.
_transactions = itertools.count()


def _tcp_request(request: modbus.ReadRequest) -> Query:
    return modbus_tcp.TcpRequest(request, transaction=next(_transactions) % modbus_tcp.TRANSACTIONS)


_FRAMINGS: Final = {
    "rtu": _Framing(lambda request: request, lambda frame: frame, minimalmodbus.MODE_RTU),
    "ascii": _Framing(
        modbus_ascii.AsciiRequest, modbus_ascii.rtu_frame, minimalmodbus.MODE_ASCII, has_short_checksum=True
    ),
    "tcp": _Framing(_tcp_request, modbus_tcp.rtu_frame, None),
}


class _Wire:
    """What minimalmodbus takes for a serial port."""

    is_open = True

    def __init__(self, line: Line, query: Query, timeout_ms: int) -> None:
        self.port = line.settings.port
        self.baudrate = line.settings.baudrate
        self.timeout = timeout_ms / 1000
        self.frame = b""
        self._line = line
        self._query = query
        self._timeout_ms = timeout_ms

    def open(self) -> None: ...

    def close(self) -> None: ...

    def reset_input_buffer(self) -> None: ...

    def reset_output_buffer(self) -> None: ...

    def write(self, data: bytes) -> None:
        assert data == self._query.encode(), f"minimalmodbus would send {data.hex(' ')}"

    def read(self, size: int) -> bytes:
        assert size == self._query.response_bytes, size
        self.frame = self._line.exchange(self._query, timeout_ms=self._timeout_ms)
        return self.frame


def exchange(line: Line, request: modbus.ReadRequest, *, timeout_ms: int) -> bytes:
    """Return what answers a request, normally or with an exception: an RTU frame, whatever the line's framing is.

    Raises PortLost, NoResponse, Garbled or WrongAnswer.
    """
    framing = _FRAMINGS[line.settings.framing]
    query = framing.query(request)
    if framing.mode is None or request.unit == modbus.ANY_UNIT:
        return framing.rtu_frame(line.exchange(query, timeout_ms=timeout_ms))
    wire = _Wire(line, query, timeout_ms)
    instrument = minimalmodbus.Instrument(wire, request.unit, mode=framing.mode)
    try:
        registers = instrument.read_registers(request.address, request.count, functioncode=request.function)
    except minimalmodbus.SlaveReportedException:
        return framing.rtu_frame(wire.frame)
    except (minimalmodbus.ModbusException, ValueError) as error:
        if wire.frame and framing.rtu_frame(wire.frame) == modbus.encode_exception(request, _ACKNOWLEDGE):
            return framing.rtu_frame(wire.frame)
        raise Garbled(f"{modbus.hex_dump(wire.frame)}: {error}") from error
    frame = framing.rtu_frame(wire.frame)
    assert registers == modbus.decode_response(frame), frame.hex(" ")
    return frame


def has_short_checksum(line: Line) -> bool:
    """Tell whether one damage in 256 passes the checksum of this line's frames; RTU has 16 bits, TCP vouches itself."""
    return _FRAMINGS[line.settings.framing].has_short_checksum


def hears_anything(line: Line, request: modbus.ReadRequest, *, timeout_ms: int) -> bool:
    """Listen, without asking, for as long as an answer to the request could take. Raises PortLost."""
    return line.hears_anything(_FRAMINGS[line.settings.framing].query(request), timeout_ms=timeout_ms)
