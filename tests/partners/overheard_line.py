"""A line of simulated meters that one program asks and another overhears: socat copies both directions to a tap."""

import contextlib
import random

from partners.processes import Running, find, wait_until

from gateway.clock import SystemClock
from gateway.simulator import Village
from gateway.village_file import parse

METER = '[[meter]]\nprofile = "{profile}"\naddress = "{address}"\nstart_m3 = "{start_m3}"\nusage = []\n'


def village_text(*meters, line="baudrate = 9600", rest=""):
    """The text of a village; each meter is (profile, address, m³) or (profile, address, m³, more lines)."""
    tables = [
        METER.format(profile=meter[0], address=meter[1], start_m3=meter[2]) + "".join(meter[3:]) for meter in meters
    ]
    return f"[line]\n{line}\n{rest}" + "".join(tables)


def village(*meters, line="baudrate = 9600", seed=3):
    """Meters that work within a `with`; a client opens the Village's `port`."""
    plan = parse(village_text(*meters, line=line), where="village")
    return Village(plan, clock=SystemClock(), chance=random.Random(seed))


@contextlib.contextmanager
def tapped(folder, port):
    """Put a tap on a port; yields (the port for the master, the port on which both directions are heard)."""
    master, tap, tap_in = (folder / name for name in ("master", "tap", "tap-in"))
    pty = "pty,raw,echo=0,link="
    with Running(folder / "tap.log", find("socat"), f"{pty}{tap_in}", f"{pty}{tap}"):
        wait_until(lambda: tap.exists() and tap_in.exists(), what="the tap")
        tee = [find("socat"), "-r", tap_in, "-R", tap_in, f"{pty}{master}", f"{port},raw,echo=0,b9600"]
        with Running(folder / "tee.log", *tee):
            wait_until(master.exists, what="the tee")
            yield str(master), str(tap)
