"""A serial line as its owner thread sees it: one exchange at a time, and nothing stale between two of them.

    request ──tx──> [ meter thinks: at most timeout ] ──first byte … last byte──> answer
    after a failure:  silence for the hold-off, everything heard meanwhile thrown away, then the next request

A reply that comes after its timeout is the oldest trap of RS-485: every library that we measured takes it for the
answer to the next request. Hence the hold-off here, and the counting of answers in `gateway.meters`.
"""

import logging
import os
import termios
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec
import serial

from protocols.errors import Garbled, MeterError, PortLost
from protocols.profile import Query

log = logging.getLogger(__name__)

# One blocking read lasts this long at most, so that deadlines hold to about this much. Data ends it at once.
READ_S: Final = 0.02
# USB adapters deliver in bursts (FTDI: 16 ms latency timer); a frame may stall that often on its way.
BURST_GRACE_S: Final = 0.1
# When so much silence follows what was heard, nothing of the same frame comes any more. An M-Bus telegram may have 261
# bytes: waiting for the longest one after each damaged one would cost 1.2 s at 2400 bit/s.
STALL_S_MAX: Final = 0.25
HOLD_OFF_S_MAX: Final = 1.0
# A transceiver that lets go of the line may add a few 00 to the frame; the shortest Modbus answer has five bytes.
GLITCH_BYTES_MAX: Final = 4
# A line that is never silent has two masters or a broken transceiver; asking into it helps nobody.
BABBLE_S_MAX: Final = 3.0
REOPEN_S_MIN: Final = 0.5
REOPEN_S_MAX: Final = 30.0


class LineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One `[[bus]]` of the configuration."""

    name: str
    port: str
    baudrate: int = 9600
    parity: str = "N"
    stop_bits: int = 1
    data_bits: int = 8
    # How Modbus travels on it: rtu, ascii or tcp.
    framing: str = "rtu"

    @property
    def byte_s(self) -> float:
        """The time of one byte on the wire: start bit, data bits, parity, stop bits."""
        return (1 + self.data_bits + (self.parity != "N") + self.stop_bits) / self.baudrate

    @property
    def silence_s(self) -> float:
        """The pause that ends a frame: 3.5 characters, above 19200 baud 1.75 ms (Modbus Serial Line 2.5.1.1)."""
        return max(3.5 * 11 / self.baudrate, 0.00175)


def open_port(settings: LineSettings) -> Any:
    """Open a serial port, or whatever pyserial URL stands in its place. Raises OSError."""
    options = {
        "baudrate": settings.baudrate,
        "parity": settings.parity,
        "stopbits": settings.stop_bits,
        "bytesize": settings.data_bits,
        "timeout": READ_S,
    }
    # pyserial's RFC 2217 refuses a time limit for writing; its socket has one of its own, five seconds.
    if not settings.port.lower().startswith("rfc2217://"):
        options["write_timeout"] = 1.0
    if "://" not in settings.port:
        options["exclusive"] = True  # another program on our line would garble both
    try:
        port = serial.serial_for_url(settings.port, **options)
        if settings.parity != "N" and "://" not in settings.port:
            _check_parity(port)
        return port
    except termios.error as error:  # tcsetattr refused: not an OSError, and pyserial lets it through
        asks_for_more = settings.parity != "N" or settings.data_bits != 8
        if not asks_for_more or not os.path.realpath(settings.port).startswith("/dev/pts/"):
            raise OSError(*error.args) from error
        # A pty has 8 bits and no parity, and Debian's tcsetattr refuses other wishes (EINVAL); simulators live on ptys.
        log.info("port_parity_ignored bus=%s port=%s: a pty has no parity (%s)", settings.name, settings.port, error)
        return serial.serial_for_url(settings.port, **options | {"parity": "N", "bytesize": 8})


def _check_parity(port: Any) -> None:
    """Have a byte whose parity is wrong come as 00, so that the checks above see the damage.

    pyserial sends parity and ignores it in what it receives (it clears INPCK). Sums of eight bits cannot see two bits
    that flip together; parity sees them in two different bytes. Raises termios.error, and closes the port then.
    """
    try:
        attributes = termios.tcgetattr(port.fileno())
        attributes[0] |= termios.INPCK
        termios.tcsetattr(port.fileno(), termios.TCSANOW, attributes)
    except termios.error:
        port.close()
        raise


class Line:
    """One serial line. All methods run on its owner thread; every failure is one of the leaves of MeterError."""

    def __init__(
        self,
        settings: LineSettings,
        *,
        opener: Callable[[LineSettings], Any] = open_port,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        first_silence_s: float = 0.0,
    ) -> None:
        """`first_silence_s` is how long the line is only listened to when it is opened for the first time."""
        self.settings = settings
        self.bytes_discarded = 0
        self._opener = opener
        self._monotonic = monotonic
        self._pause = pause
        self._port: Any = None
        self._heard_at = 0.0
        self._quiet_s = settings.silence_s
        self._reopen_at = 0.0
        self._reopen_s = REOPEN_S_MIN
        self._first_silence_s = first_silence_s
        self._listen_until = 0.0

    def exchange(self, query: Query, *, timeout_ms: int) -> bytes:
        """Send a query and return the frame that answers it.

        `timeout_ms` runs from the last bit of the request to the first of the answer. Raises PortLost, NoResponse,
        Garbled or WrongAnswer; the line is then kept silent before it is used again.
        """
        timeout_s = timeout_ms / 1000
        self._ensure_open(timeout_s)
        try:
            self._settle()
            return self._ask(query, timeout_s)
        except MeterError:
            self._hold_off(timeout_s)
            raise
        except OSError as error:
            self._lose(error)

    def hears_anything(self, query: Query, *, timeout_ms: int) -> bool:
        """Listen, without asking, for as long as an answer to the query could take; tell whether anything came.

        A late answer may be garbled, so any byte counts, but for those few that a transceiver adds as it lets the line
        go. Raises PortLost.
        """
        timeout_s = timeout_ms / 1000
        self._ensure_open(timeout_s)
        silent_at = self._monotonic() + timeout_s + query.response_bytes * self.settings.byte_s + BURST_GRACE_S
        try:
            self._pause(READ_S)
            if 0 < self._port.in_waiting <= GLITCH_BYTES_MAX:
                self.bytes_discarded += len(self._read())
            while self._monotonic() < silent_at:
                if self._read():
                    self._hold_off(timeout_s)
                    return True
        except OSError as error:
            self._lose(error)
        return False

    def now_s(self) -> float:
        """Return the line's own clock, which only ever advances."""
        return self._monotonic()

    def rest(self, quiet_s: float) -> None:
        """Keep the line silent for at least so long before it is used again."""
        self._quiet_s = max(self._quiet_s, quiet_s)

    def close(self) -> None:
        """Close the port; the next exchange opens it again."""
        port, self._port = self._port, None
        if port is not None:
            try:
                port.close()
            except OSError:
                pass  # it is gone already, which is what was wanted

    def _ask(self, query: Query, timeout_s: float) -> bytes:
        request, reader = query.encode(), query.reader()
        self._port.write(request)
        # Drivers and ptys take the request at once; the wire takes its time.
        sent_at = self._monotonic() + len(request) * self.settings.byte_s
        first_byte_by = sent_at + timeout_s
        last_byte_by = first_byte_by + query.response_bytes * self.settings.byte_s + BURST_GRACE_S
        heard = False
        while True:
            data = self._read()
            if data:
                heard = True
                frame = reader.feed(data)
                if frame is not None:
                    self._reopen_s = REOPEN_S_MIN
                    self._quiet_s = self.settings.silence_s
                    return frame
            # Also while bytes keep coming: a line that babbles slowly must not hold up the others.
            stalled_at = self._heard_at + STALL_S_MAX
            until = min(last_byte_by, max(first_byte_by, stalled_at)) if heard else first_byte_by
            if self._monotonic() >= until:
                reader.close()
                raise AssertionError("a reader's close() always raises")

    def _read(self) -> bytes:
        data: bytes = self._port.read(max(1, self._port.in_waiting))
        if data:
            self._heard_at = self._monotonic()
        return data

    def _hold_off(self, timeout_s: float) -> None:
        """Have the line silent for so long before it is used again: time for a late reply to come and be dropped."""
        self._quiet_s = max(self.settings.silence_s, min(timeout_s, HOLD_OFF_S_MAX))
        self._heard_at = self._monotonic()

    def _settle(self) -> None:
        """Wait until the line has been silent long enough, and forget what was heard meanwhile."""
        began_at = self._monotonic()
        discarded_before = self.bytes_discarded
        while True:
            if self._port.in_waiting:
                self.bytes_discarded += len(self._read())
            rest_s = max(self._heard_at + self._quiet_s, self._listen_until) - self._monotonic()
            if rest_s <= 0:
                return
            if self._monotonic() - began_at > BABBLE_S_MAX:
                discarded = self.bytes_discarded - discarded_before
                raise Garbled(
                    f"the line is never silent: {discarded} bytes in {BABBLE_S_MAX:.0f} s that nobody asked for;"
                    " look for a second master or a broken transceiver"
                )
            self._pause(min(rest_s, READ_S))

    def _ensure_open(self, timeout_s: float) -> None:
        if self._port is not None:
            return
        wait_s = self._reopen_at - self._monotonic()
        if wait_s > 0:
            raise PortLost(f"{self.settings.port} is gone; next attempt in {wait_s:.1f} s")
        try:
            self._port = self._opener(self.settings)
        # pyserial: SerialException is an OSError, a bad URL a ValueError, what a kind of URL cannot do the third.
        except (OSError, ValueError, NotImplementedError) as error:
            self._lose(error)
        # What the driver kept from before is nobody's answer, nor is what a meter was asked before we started.
        self._hold_off(timeout_s)
        self._listen_until = self._monotonic() + self._first_silence_s
        self._first_silence_s = 0.0

    def _lose(self, error: Exception) -> NoReturn:
        self.close()
        self._reopen_at = self._monotonic() + self._reopen_s
        self._reopen_s = min(2 * self._reopen_s, REOPEN_S_MAX)
        raise PortLost(f"{self.settings.port}: {error}") from error
