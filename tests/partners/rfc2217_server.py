"""A serial server that speaks RFC 2217 (Telnet with COM port control), made of pyserial's own server side."""

import contextlib
import socket
import threading

import serial
from serial.rfc2217 import PortManager


class _Pty(serial.Serial):
    """A pty as a serial port: it has no modem lines, and asking for them is an error."""

    cts = dsr = cd = True
    ri = False

    def _update_dtr_state(self):
        pass

    def _update_rts_state(self):
        pass


class _Connection:
    """What PortManager writes to: pyserial only asks for `write`."""

    def __init__(self, link):
        self._link = link
        self._one_at_a_time = threading.Lock()

    def write(self, data):
        with self._one_at_a_time:
            self._link.sendall(data)


class Rfc2217Server:
    """Serves a pty to one client after the other; a context."""

    def __init__(self, serial_port):
        self._serial = _Pty(serial_port, timeout=0.02)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rfc2217://127.0.0.1:{self._listener.getsockname()[1]}"
        self._link = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                self._link, _ = self._listener.accept()
                self._bridge(self._link)

    def _bridge(self, link):
        connection = _Connection(link)
        manager = PortManager(self._serial, connection)
        ended = threading.Event()

        def upwards():
            with contextlib.suppress(OSError):
                while not ended.is_set():
                    if data := self._serial.read(self._serial.in_waiting or 1):
                        connection.write(b"".join(manager.escape(data)))

        reading = threading.Thread(target=upwards)
        reading.start()
        with contextlib.suppress(OSError):
            while data := link.recv(1024):
                self._serial.write(b"".join(manager.filter(data)))
        ended.set()
        reading.join()
        link.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self.drop()
        self._thread.join()
        self._listener.close()
        self._serial.close()

    def drop(self):
        """Cut the connection."""
        with contextlib.suppress(OSError):
            if self._link:
                self._link.shutdown(socket.SHUT_RDWR)
