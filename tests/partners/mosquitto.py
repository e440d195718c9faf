"""A real mosquitto on a free port, for tests."""

import contextlib
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

import trustme
from partners.processes import find, free_port

START_TIMEOUT_S = 10.0


class Certificates:
    """A certificate authority, the broker's certificate and files for clients, all made for one test."""

    def __init__(self, folder: Path, *, name: str = "ca") -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._authority = trustme.CA()
        self.ca_file = folder / f"{name}.pem"
        self._authority.cert_pem.write_to_path(self.ca_file)

    def issue(self, *identities: str, common_name: str | None = None) -> tuple[Path, Path]:
        """Make a certificate; return its file, with the chain, and the file of its key."""
        issued = self._authority.issue_cert(*identities, common_name=common_name)
        stem = common_name or identities[0]
        cert_file, key_file = self.folder / f"{stem}.cert.pem", self.folder / f"{stem}.key.pem"
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(cert_file, append=number > 0)
        issued.private_key_pem.write_to_path(key_file)
        return cert_file, key_file


class Mosquitto:
    """One broker process; `start` after `stop` or `kill` uses the same port and the same stored sessions.

    `users` are names with passwords; `acl` is the text of an ACL file; with `certificates` the broker speaks TLS and
    asks for a client certificate, whose common name becomes the user; `extra` goes into the configuration as it is.
    """

    def __init__(
        self,
        folder: Path,
        *,
        extra: str = "",
        allow_anonymous: bool = True,
        users: dict[str, str] | None = None,
        acl: str | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.log = folder / "mosquitto.log"
        self._scheme = "mqtts" if certificates else "mqtt"
        self._configuration = folder / "mosquitto.conf"
        lines = [
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {str(allow_anonymous and not users).lower()}",
            "persistence true",
            f"persistence_location {folder}/",
            "max_queued_messages 100000",
            "user root",
        ]
        if certificates:
            cert_file, key_file = certificates.issue("127.0.0.1", "localhost")
            lines += [f"cafile {certificates.ca_file}", f"certfile {cert_file}", f"keyfile {key_file}"]
            lines += ["require_certificate true", "use_identity_as_username true"]
        if users:
            passwords = folder / "passwords"
            passwords.write_text("".join(f"{user}:{password}\n" for user, password in users.items()), encoding="utf-8")
            subprocess.run([find("mosquitto_passwd"), "-U", passwords], check=True, capture_output=True)
            lines.append(f"password_file {passwords}")
        if acl is not None:
            (folder / "acl").write_text(acl, encoding="utf-8")
            lines.append(f"acl_file {folder / 'acl'}")
        self._configuration.write_text("\n".join([*lines, extra]) + "\n", encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [find("mosquitto"), "-v", "-c", self._configuration], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise AssertionError(f"mosquitto does not listen: {self.log.read_text()}")

    def stop(self) -> None:
        """End it as its administrator would; it keeps its sessions."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a power cut would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    @contextlib.contextmanager
    def frozen(self):
        """Have it answer nothing for a while, with all its connections open."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=10)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
