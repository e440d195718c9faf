"""The `[broker]` table: where the county's broker is and how the gateway proves who it is."""

import ipaddress
import re
import stat
import urllib.parse
from pathlib import Path
from typing import Final, Literal, cast

import msgspec

from agent.config_table import Table, shown
from agent.settings import BrokerSettings

# The ports that IANA lists for MQTT without and with TLS.
PORT_OF_SCHEME: Final = {"mqtt": 1883, "mqtts": 8883}
# What other programs call the same two.
SCHEME_MEANT: Final = {
    "tcp": "mqtt",
    "http": "mqtt",
    "ssl": "mqtts",
    "tls": "mqtts",
    "https": "mqtts",
    "mqtt+ssl": "mqtts",
}
ACKNOWLEDGEMENTS: Final = ("county", "broker")
TLS_KEYS: Final = ("ca_file", "cert_file", "key_file")
# Labels of at most 63 characters, 253 in all (RFC 1035 section 2.3.4, without the length bytes of the wire).
_LABEL: Final = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}\.?\Z){_LABEL}(?:\.{_LABEL})*\.?")


class _Target(msgspec.Struct, frozen=True, kw_only=True):
    host: str = ""
    port: int = 0
    tls: bool = True


def read_broker(table: Table, *, folder: Path) -> BrokerSettings:
    """Return the settings; what is wrong with them is in the table's report."""
    url = table.text("url")
    target = _Target()
    if url:
        try:
            target = _parse_url(url)
        except ValueError as error:
            table.problem("url", str(error))
    files = {key: _file(table, key, folder) for key in (*TLS_KEYS, "password_file")}
    username = table.optional_text("username")
    _check_tls(table, target)
    if "password_file" in table and "username" not in table:
        table.problem("password_file", "a password without a username is not possible in MQTT — add username")
    for key in ("key_file", "password_file"):
        _warn_of_open_secret(table, key, files[key])
    if table.is_good("url") and url and not target.tls and not _is_local(target.host):
        message = "mqtt:// sends readings and passwords unencrypted over the network — write mqtts:// and set ca_file"
        table.warning("url", message)
    acknowledgement = table.choice("acknowledgement", ACKNOWLEDGEMENTS, default="county")
    return BrokerSettings(
        url=url,
        host=target.host,
        port=target.port,
        tls=target.tls,
        ca_file=files["ca_file"],
        cert_file=files["cert_file"],
        key_file=files["key_file"],
        username=username,
        password_file=files["password_file"],
        acknowledgement=cast(Literal["county", "broker"], acknowledgement),
    )


def _parse_url(url: str) -> _Target:
    """Take a broker URL apart. Raises ValueError with what is wrong and what would be right."""
    example = 'write, for example, "mqtts://mqtt.example.org:8883"'
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise ValueError(f"{shown(url)} does not begin with mqtts:// or mqtt:// — write {shown('mqtts://' + url)}")
    if scheme not in PORT_OF_SCHEME:
        meant = SCHEME_MEANT.get(scheme)
        advice = f"write {shown(meant + '://' + rest)}" if meant else example
        raise ValueError(f"{shown(scheme + '://')} is not supported, only mqtts:// and mqtt:// are — {advice}")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"{shown(url)} is no URL ({shown(str(error))[1:-1]}) — {example}") from error
    if "@" in parts.netloc:
        raise ValueError(
            "name and password do not belong in the URL, which is shown in logs — use username, password_file"
        )
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"{shown(url)} goes on after host and port — write {shown(scheme + '://' + parts.netloc)}")
    if not _HOST.fullmatch(host) and not _is_ip(host):
        raise ValueError(f"{shown(url)} names no host — {example}")
    if port == 0:
        raise ValueError(f"{shown(url)} names port 0, which nobody listens on — {example}")
    return _Target(host=host, port=port or PORT_OF_SCHEME[scheme], tls=scheme == "mqtts")


def _check_tls(table: Table, target: _Target) -> None:
    if not target.tls:
        for key in TLS_KEYS:
            if key in table:
                advice = "write mqtts:// in url, or delete this line"
                table.problem(key, f"has no effect: url begins with mqtt://, which does not encrypt — {advice}")
    for one, other in (("cert_file", "key_file"), ("key_file", "cert_file")):
        if one in table and other not in table:
            table.problem(one, f"a certificate and its key go together — add {other}")


def _file(table: Table, key: str, folder: Path) -> Path | None:
    if key not in table:
        return None
    path = table.path(key, folder=folder)
    if table.is_good(key):
        try:
            is_file = stat.S_ISREG(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            advice = "put it there; a path without / at its beginning starts at the folder of this configuration"
            table.problem(key, f"there is no file {shown(str(path))} — {advice}")
        except OSError as error:
            advice = "check as the user that runs the service"
            table.problem(key, f"{shown(str(path))} cannot be looked at ({error.strerror}) — {advice}")
        else:
            if not is_file:
                table.problem(key, f"{shown(str(path))} is not a file — name the file itself")
    return path


def _warn_of_open_secret(table: Table, key: str, path: Path | None) -> None:
    if path is None or not table.is_good(key):
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        table.warning(key, f"others than its owner can use this secret (mode {mode:04o}) — run: chmod 600 {path}")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)
