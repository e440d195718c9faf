"""Water meters served by pymodbus, which knows nothing of us: on a pty in RTU or ASCII, or as a Modbus TCP server."""

import asyncio
import contextlib
import logging
import threading

from partners.processes import free_port, pty_pair
from pymodbus import FramerType
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from protocols.modbus_ascii import encode_frame as encode_ascii

logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # it logs each exception that it answers with
FORWARD_TOTAL = 0x204  # where a USW DN15-40 has its total, four registers of millilitres
FIRST = 512


def device(unit, volume_ml):
    """A meter of the profile usw-dn15-40; unit 0 answers whatever unit is asked."""
    total = [volume_ml >> shift & 0xFFFF for shift in (48, 32, 16, 0)]
    values = [0] * (FORWARD_TOTAL - FIRST) + total
    return SimDevice(id=unit, simdata=[SimData(address=FIRST, values=values, datatype=DataType.REGISTERS)])


def only_of(meters, *, absent):
    """Give pymodbus the manners of a line or of a gateway.

    Who asks a unit that it does not have gets exception 4 of pymodbus 3.16; here silence (None), or that code.
    """

    def trace(sending, packet):
        is_text = packet[:1] == b":"
        body = bytes.fromhex(packet[1:-2].decode())[:-1] if is_text else packet[6:]
        if not sending or body[0] in meters or 0 in meters:
            return packet
        if absent is None:
            return b""
        body = body[:2] + bytes([absent])
        return encode_ascii(body) if is_text else packet[:6] + body

    return trace


@contextlib.contextmanager
def serving(make):
    """Run a server of pymodbus on a thread of its own."""
    loop = asyncio.new_event_loop()
    servers, ready = [], threading.Event()

    async def serve():
        servers.append(make())
        running = asyncio.ensure_future(servers[0].serve_forever(background=False))
        await asyncio.sleep(0.2)
        ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(servers[0].shutdown(), loop).result(10)
        thread.join(10)
        loop.close()


@contextlib.contextmanager
def ascii_on_a_pty(folder, meters):
    """Meters {unit: millilitres} that speak Modbus ASCII at one end of a socat pty pair; yields the other end."""
    with pty_pair(folder) as (near, far):
        devices = [device(*meter) for meter in meters.items()]
        make = lambda: ModbusSerialServer(
            devices,
            framer=FramerType.ASCII,
            port=str(far),
            baudrate=9600,
            trace_packet=only_of(meters, absent=None),
        )
        with serving(make):
            yield str(near)


@contextlib.contextmanager
def over_tcp(meters, *, absent=None):
    """Meters {unit: millilitres} behind Modbus TCP; yields the URL. Who is absent is silent, or refused with a code."""
    number = free_port()
    devices = [device(*meter) for meter in meters.items()]
    make = lambda: ModbusTcpServer(
        devices,
        framer=FramerType.SOCKET,
        address=("127.0.0.1", number),
        trace_packet=only_of(meters, absent=absent),
    )
    with serving(make):
        yield f"socket://127.0.0.1:{number}"
