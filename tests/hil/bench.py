"""The bench of the acceptance suite: a line with meters, real or simulated, and the report of what they did."""

import contextlib
import re
import tomllib
from decimal import Decimal, InvalidOperation
from pathlib import Path

import msgspec
from partners.overheard_line import village_text

from agent.technician import checkup_port
from agent.technician.reading import Plan
from gateway.clock import SystemClock
from gateway.line import LineSettings
from gateway.simulator import Village
from gateway.village_file import parse as parse_village
from protocols.errors import ProfileError
from protocols.profile import load

SIMULATED_METERS = (
    ("usw-dn15-40", "17", "802.609751"),
    ("cjt188-water", "00000805000001", "77.12"),
    ("mbus-water", "5", "9.001"),
)
SIMULATED_LINE = {"baudrate": 9600, "parity": "N", "stop_bits": 1}
# What nobody has, by protocol, the first one that is not on the list.
NOBODY = {
    "modbus": [str(unit) for unit in range(247, 0, -1)],
    "cjt188": ["99999999999998", "99999999999997"],
    "mbus": [str(address) for address in range(250, 0, -1)],
}


class WrongList(Exception):
    """The list of meters cannot be used; the text says why."""


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[meter]]`: who it is, and what its dial shows."""

    profile: str
    address: str
    expected_m3: str | None = None
    tolerance_m3: str = "0.1"
    name: str = ""

    @property
    def label(self):
        return self.name or f"{self.profile} {self.address}"


class ListFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of `--hil-meters`."""

    meter: list[Expected]
    line: dict[str, int | str] = {}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One check of one meter (or of the line): how it ended, and what was measured."""

    check: str
    meter: str
    outcome: str  # passed, failed, skipped
    detail: str = ""


class Bench:
    """The line under test. `port` is the one that is opened, `plans` the meters in the order of the list."""

    def __init__(self, port, line, meters, *, is_simulated):
        self.port, self.meters, self.is_simulated = port, meters, is_simulated
        self.line = LineSettings(name="hil", port=str(port), **line)
        self.results: list[Result] = []
        self.measured: dict[str, dict] = {}
        self.clock = SystemClock()
        self.replug = None  # of a simulated line: unplugs it, waits, plugs it in again

    def plan(self, meter, **changes):
        """How a meter is read."""
        profile = load(meter.profile)
        given = {
            "meter": meter.label,
            "line": self.line,
            "profile": profile,
            "address": profile.protocol.parse_address(meter.address),
            "address_text": meter.address,
            "timeout_ms": profile.timing.timeout_ms,
            "retries": profile.timing.retries,
        }
        return Plan(**given | changes)

    def nobody(self, meter):
        """A plan for an address of the meter's protocol that is not on the list."""
        profile = load(meter.profile)
        taken = {other.address for other in self.meters}
        address = next(one for one in NOBODY[profile.head.protocol] if one not in taken)
        return self.plan(meter, address=profile.protocol.parse_address(address), address_text=address, retries=0)

    def adapter(self):
        """What the port hangs on, in a sentence of both languages."""
        says = checkup_port.adapter(str(self.port)).says
        return f"{says.en} {says.zh}"


def read_list(path):
    """The list of expected meters and the line's settings. Raises WrongList."""
    try:
        listed = msgspec.convert(tomllib.loads(Path(path).read_text(encoding="utf-8")), type=ListFile)
    except (OSError, ValueError) as error:  # msgspec's and tomllib's errors are ValueErrors
        raise WrongList(f"{path}: {error}") from error
    if not listed.meter:
        raise WrongList(f"{path}: lists no [[meter]]")
    settings = []
    for number, meter in enumerate(listed.meter, 1):
        try:
            profile = load(meter.profile)
            profile.protocol.parse_address(meter.address)
            for text in filter(None, (meter.expected_m3, meter.tolerance_m3)):
                if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
                    raise InvalidOperation(f"{text!r} is no decimal such as 127.113")
        except (ProfileError, InvalidOperation) as error:
            raise WrongList(f"{path}: meter {number}: {error}") from error
        settings.append(msgspec.to_builtins(profile.line))
    line = {key: settings[0][key] for key in ("baudrate", "parity", "stop_bits")} | listed.line
    try:
        LineSettings(name="hil", port="p", **line)
    except TypeError as error:
        raise WrongList(f"{path}: line: {error}") from error
    return listed.meter, line


def millilitres(text):
    """Cubic metres as text, in millilitres."""
    return int(Decimal(text) * 10**6)


@contextlib.contextmanager
def simulated(folder):
    """A bench of simulated meters, one of each protocol, whose port has a name that survives replugging."""
    meters = [
        Expected(profile=profile, address=address, expected_m3=m3, tolerance_m3="0.01")
        for profile, address, m3 in SIMULATED_METERS
    ]
    text = village_text(*SIMULATED_METERS, line=f'baudrate = {SIMULATED_LINE["baudrate"]}\nlink = "port"')
    plan = parse_village(text, where="bench", folder=folder)
    running = [Village(plan, clock=SystemClock())]
    running[0].start()
    bench = Bench(folder / "port", SIMULATED_LINE, meters, is_simulated=True)

    def unplug():
        running.pop().stop()

    def plug_in():
        running.append(Village(plan, clock=SystemClock()))
        running[0].start()

    bench.replug = (unplug, plug_in)
    try:
        yield bench
    finally:
        for village in running:
            village.stop()
