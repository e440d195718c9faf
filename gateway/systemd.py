"""The notifications that systemd understands (sd_notify(3)): ready, watchdog, status, stopping. Elsewhere: nothing."""

import os
import socket
from typing import Final

_SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"


class Notifier:
    """Tells the service manager how we are; does nothing where there is none."""

    def __init__(self, address: str | None = None) -> None:
        """`address` is that of the manager's socket, by default the one in the environment."""
        self._address = os.environ.get(_SOCKET_VARIABLE) if address is None else address

    def ready(self, status: str) -> None:
        """Say that the service does its work now."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """Feed the watchdog; to be called when work was finished, never by a timer."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the service is about to end."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.sendto(text.encode(), address)
        except OSError:
            pass  # a manager that does not listen must not stop the polling
