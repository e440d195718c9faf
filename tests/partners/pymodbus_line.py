"""A line of USW meters served by pymodbus, which knows nothing of us. Arguments: PORT LOG UNIT...

Standard input takes `unit volume_ml` lines that set a register; the log gets a line `unit volume_ml` for every answer.
"""

import asyncio
import functools
import sys
import threading
from pathlib import Path

from pymodbus.server import ModbusSerialServer
from pymodbus.simulator import DataType, SimData, SimDevice

FORWARD_TOTAL = 0x204
volumes = {}


async def answer(unit, log, function_code, start, address, count, registers, new_values):
    """Put the present volume into the registers before they are read."""
    volume_ml = volumes[unit]
    offset = FORWARD_TOTAL - start
    registers[offset : offset + 4] = [volume_ml >> shift & 0xFFFF for shift in (48, 32, 16, 0)]
    if address <= FORWARD_TOTAL < address + count:
        log.write(f"{unit} {volume_ml}\n")


def take_orders():
    for line in sys.stdin:
        unit, volume_ml = line.split()
        volumes[int(unit)] = int(volume_ml)


async def serve(port, log, units):
    devices = []
    for unit in units:
        volumes[unit] = 0
        data = SimData(address=512, values=[0] * 8, datatype=DataType.REGISTERS)
        devices.append(SimDevice(id=unit, simdata=[data], action=functools.partial(answer, unit, log)))
    server = ModbusSerialServer(devices, port=port, baudrate=9600, ignore_missing_devices=True)
    threading.Thread(target=take_orders, daemon=True).start()
    print("ready", flush=True)
    await server.serve_forever()


with Path(sys.argv[2]).open("a", buffering=1, encoding="ascii") as log:
    asyncio.run(serve(sys.argv[1], log, [int(unit) for unit in sys.argv[3:]]))
