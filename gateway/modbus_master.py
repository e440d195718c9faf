"""The one place that knows minimalmodbus: it is the Modbus master, our line guard is the port that it sees.

minimalmodbus 2.1.1 builds the request and checks the answer, but it reads a fixed number of bytes in one go: it waits
the whole timeout for an exception reply, gives up on one byte of noise, and takes a late reply for the next answer
(measured, see `docs/decisions/0001-minimalmodbus-behind-a-guard.md`). So the port that it is given does the waiting
and finds the frame. Both implementations must accept a frame before its registers count.
"""

import minimalmodbus

from gateway.line import Line
from protocols import modbus
from protocols.errors import Garbled


class _Wire:
    """What minimalmodbus takes for a serial port."""

    is_open = True

    def __init__(self, line: Line, request: modbus.ReadRequest, timeout_ms: int) -> None:
        self.port = line.settings.port
        self.baudrate = line.settings.baudrate
        self.timeout = timeout_ms / 1000
        self.frame = b""
        self._line = line
        self._request = request
        self._timeout_ms = timeout_ms

    def open(self) -> None: ...

    def close(self) -> None: ...

    def reset_input_buffer(self) -> None: ...

    def reset_output_buffer(self) -> None: ...

    def write(self, data: bytes) -> None:
        assert data == self._request.encode(), f"minimalmodbus would send {data.hex(' ')}"

    def read(self, size: int) -> bytes:
        assert size == self._request.response_bytes, size
        self.frame = self._line.exchange(self._request, timeout_ms=self._timeout_ms)
        return self.frame


def exchange(line: Line, request: modbus.ReadRequest, *, timeout_ms: int) -> bytes:
    """Return the frame, normal or exception, that answers a request.

    Raises PortLost, NoResponse, Garbled or WrongAnswer.
    """
    wire = _Wire(line, request, timeout_ms)
    instrument = minimalmodbus.Instrument(wire, request.unit)
    try:
        registers = instrument.read_registers(request.address, request.count, functioncode=request.function)
    except minimalmodbus.SlaveReportedException:
        return wire.frame
    except (minimalmodbus.ModbusException, ValueError) as error:
        raise Garbled(f"{modbus.hex_dump(wire.frame)}: {error}") from error
    assert registers == modbus.decode_response(wire.frame), wire.frame.hex(" ")
    return wire.frame
