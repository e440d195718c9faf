"""What a Sniffer makes of frames that come one after the other, and Modbus frames to feed it with."""

from agent.technician.sniffing import Sniffer
from protocols import modbus


def ask(address, count, *, function=3, unit=17):
    """A request for registers."""
    return modbus.ReadRequest(unit=unit, function=function, address=address, count=count)


def registers(volume_ml, count=4):
    """The registers that hold a number, the high ones first."""
    return [volume_ml >> 16 * index & 0xFFFF for index in reversed(range(count))]


def overhear(*parts, sniffer=None):
    """(pause in ms, bytes)... as they come, each after the one before."""
    sniffer = sniffer or Sniffer(byte_ms=1.0)
    now_ms, heard = 0.0, []
    for pause_ms, data in parts:
        now_ms += pause_ms + len(data)
        heard += sniffer.feed(now_ms, data)
    return sniffer, heard + sniffer.finish()


def volumes(heard):
    """What each answer was read as, by whatever profile."""
    return [{fit.volume_ml for fit in one.fits} for one in heard if one.kind == "answer"]
