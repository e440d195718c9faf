"""Overhearing a port for a while: at known settings, or at whatever settings give frames. Never writes to the port."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from agent.technician.fits import Guesser, built_in
from agent.technician.lines import USUAL, LineError, LineOptions, framing_of, is_network, line_of
from agent.technician.listening import Ear
from agent.technician.sniffing import Heard, Sniffer
from agent.technician.words import Words
from gateway.line import LineSettings, open_port

# So many bytes without a frame are no bad luck: the settings are wrong. A request and an answer are shorter.
BYTES_WITHOUT_FRAME_MAX: Final = 64
NO_TAP: Final = Words(
    "Modbus TCP 无法旁听：新的连接听不到别人的连接。请在主机上抓包：tcpdump -w meter.pcap port 502，再"
    " shuiwang decode --file meter.pcap",
    "Modbus TCP cannot be overheard: a connection of ours hears nothing of another's. Capture on the master's machine"
    " with `tcpdump -w meter.pcap port 502`, then `shuiwang decode --file meter.pcap`.",
)


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """What is known at a moment. `raw` are the bytes just heard, `heard` what has become clear, `elapsed_ms` since the
    port was opened with these settings.
    """

    line: LineSettings
    sniffer: Sniffer
    raw: bytes
    heard: list[Heard]
    elapsed_ms: float


def candidates(port: str, options: LineOptions) -> tuple[LineSettings, ...]:
    """Return the settings to listen with: the given ones, or where no baud rate is given the usual ones in turn.

    Raises LineError, also for Modbus TCP.
    """
    if framing_of(options.get("framing") or "rtu") == "tcp":
        raise LineError(f"{NO_TAP.en}\n{NO_TAP.zh}")
    parity, bits, stop_bits = options.get("parity"), options.get("data_bits"), options.get("stop_bits")
    given = line_of(port, **options | {"framing": "ascii" if bits == 7 else None})
    if options.get("baudrate") is not None or is_network(port):
        return (given,)
    return tuple(
        LineSettings(
            name="technician",
            port=port,
            baudrate=usual.baudrate,
            parity=usual.parity,
            stop_bits=stop_bits or usual.stop_bits,
            data_bits=usual.data_bits,
        )
        for usual in USUAL
        if (parity is None or given.parity == usual.parity) and bits in (None, usual.data_bits)
    ) or (given,)


def overhear(
    lines: Sequence[LineSettings],
    *,
    seconds: float | None,
    opener: Callable[[LineSettings], Any] = open_port,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Moment]:
    """Yield what is heard, also when it is nothing, for so many seconds or for ever.

    With several settings, those that give no frame of BYTES_WITHOUT_FRAME_MAX bytes give way to the next, round and
    round. Raises PortLost.
    """
    ends_at = None if seconds is None else monotonic() + seconds
    guesser = Guesser(built_in())
    turn = 0
    while ends_at is None or monotonic() < ends_at:
        line = lines[turn % len(lines)]
        turn += 1
        ear = Ear(line, opener=opener, monotonic=monotonic)
        sniffer = Sniffer(byte_ms=ear.byte_ms, guesser=guesser)
        until_ms = None if ends_at is None else ear.now_ms() + (ends_at - monotonic()) * 1000
        try:
            for at_ms, data in ear.listen(until_ms):
                heard = sniffer.feed(at_ms, data) if data else sniffer.tick(at_ms)
                yield Moment(line=line, sniffer=sniffer, raw=data, heard=heard, elapsed_ms=at_ms)
                is_wrong = not sniffer.totals.frames and sniffer.totals.bytes > BYTES_WITHOUT_FRAME_MAX
                if is_wrong and len(lines) > 1:
                    break
            else:
                rest = sniffer.finish()
                yield Moment(line=line, sniffer=sniffer, raw=b"", heard=rest, elapsed_ms=ear.now_ms())
        finally:
            ear.close()
