"""Golden dialogues: what a line does in time, as text that is reviewed like code.

    line 2400 8E1                               its settings; 8N1 where only the baud rate is given
    meter 17 counter timeout_ms=100 retries=0   a meter on the line; the profiles are below
    meter 5 mbus last_ml=7000                   the poll before brought that total
    meter 17 counter new=1                      nothing was read before: the process has just started
    +0000 read 17                               the test reads the meter, not before that instant (ms)
    +0100 >> 11 03 00 00 00 02 C6 9B            we send; part of what is proven
    +0130 << 11 03 04 00 00 00 07 0A 31         bytes come
    +0130 == 17: 7 mL                           what the read returned, or the error and its text; proven
    +0200 !! gone until 900                     the adapter is unplugged
    +0200 !! babble until 900                   a device sends 55 without end

`python -m pytest tests/gateway/test_line.py` compares; with UPDATE_DIALOGUES=1 it writes what happened instead.
"""

import re

from partners.virtual_line import VirtualClock, VirtualPort, virtual_line

from gateway.meters import MeterReader
from protocols import cjt188_data, mbus_data, profile, registers
from protocols.errors import MeterError
from protocols.reading import Measurement

EVENT = re.compile(r"\+(\d+) (read|<<|>>|==|!!) ?(.*)")


def counter(**tables):
    """A Modbus meter with its millilitres in two registers."""
    total = registers.Term(address=0, type="uint32")
    return registers.ModbusSpec(read=(registers.Block(address=0, count=2),), total=(total,), unit="mL", **tables)


def two_blocks():
    """A Modbus meter whose answers to its two queries look alike: total and unit, two registers each."""
    return registers.ModbusSpec(
        read=(registers.Block(address=0, count=2), registers.Block(address=16, count=2)),
        total=(registers.Term(address=0, type="uint32"),),
        unit_register=registers.UnitRegister(address=16, type="uint32", values={"1": "mL", "2": "L"}),
    )


SPECS = {
    "counter": ("modbus", counter),
    "two-blocks": ("modbus", two_blocks),
    "cjt188": ("cjt188", cjt188_data.Cjt188Spec),
    "cjt188-litres-2": ("cjt188", lambda: cjt188_data.Cjt188Spec(decimals={"29": 2})),
    "mbus": ("mbus", mbus_data.MbusSpec),
    "mbus-1ml": ("mbus", lambda: mbus_data.MbusSpec(vif=("10",))),
}


def make_reader(name, address, *, timeout_ms=100, retries=0, last_ml=None, new=False, chance=lambda: 0.0):
    """A MeterReader of one of the profiles above, which has proven its meter in step unless it is `new`.

    `last_ml` is what the meter said when it was read last.
    """
    protocol, spec = SPECS[name]
    head = profile.Head(name=name, title=name, protocol=protocol, source="", step_ml=1)
    meter = profile.Profile(head=head, line=profile.Line(), timing=profile.Timing(), spec=spec(), cases=())
    reader = MeterReader(
        profile=meter,
        address=meter.protocol.parse_address(address),
        timeout_ms=timeout_ms,
        retries=retries,
        is_in_step=not new,
        chance=chance,
    )
    reader._last = None if last_ml is None else Measurement(volume_ml=last_ml)
    return reader


def play(script):
    """Run a dialogue and return it as it went."""
    clock = VirtualClock()
    said = []

    def tell(mark, what):
        text = what.hex(" ").upper() if isinstance(what, bytes) else what
        said.append((round(clock.now_s * 1000), mark, text))

    port = VirtualPort(clock, tell=tell)
    baudrate, parity = re.search(r"^line (\d+)(?: 8([NEO])1)?$", script, re.MULTILINE).groups()
    line = virtual_line(port, baudrate=int(baudrate), parity=parity or "N")
    meters = {}
    for address, name, options in re.findall(r"^meter (\S+) (\S+) ?(.*)$", script, re.MULTILINE):
        given = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", options)}
        meters[address] = make_reader(name, address, **given)
    reads = []
    for at_ms, mark, text in EVENT.findall(script):
        if mark == "<<":
            port.arrive(int(at_ms) / 1000, bytes.fromhex(text))
        elif mark == "!!":
            trouble, until_ms = re.fullmatch(r"(gone|babble) until (\d+)", text).groups()
            if trouble == "gone":
                port.go_away(int(at_ms) / 1000, int(until_ms) / 1000)
            else:
                for babble_ms in range(int(at_ms), int(until_ms), 17):
                    port.arrive(babble_ms / 1000, b"\x55" * 16)
        elif mark == "read":
            reads.append((int(at_ms) / 1000, text))
        if mark in ("<<", "!!"):
            said.append((int(at_ms), mark, text))
    for at_s, address in reads:
        clock.advance_to(at_s)
        tell("read", address)
        try:
            measurement = meters[address].read(line)
            tell("==", ", ".join([f"{address}: {measurement.volume_ml} mL", *measurement.flags]))
        except MeterError as error:
            tell("==", f"{address}: {error.reason}: {error}")
    head = [text for text in script.splitlines() if not EVENT.fullmatch(text)]
    # What comes stands before what is done at the same millisecond.
    said.sort(key=lambda event: (event[0], event[1] not in ("<<", "!!")))
    return "\n".join(head + [f"+{at_ms:04} {mark} {text}" for at_ms, mark, text in said]) + "\n"
