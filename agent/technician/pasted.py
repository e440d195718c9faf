"""What people give the decoder: text with bytes in it, or a network capture."""

from agent.technician import hextext, packets, pcap
from agent.technician.hextext import Chunk


def chunks(data: bytes) -> list[Chunk]:
    """Return the bytes in a text or in a capture file. Raises NoHex or NoCapture."""
    return pcap.chunks(data) if packets.is_capture(data) else hextext.parse(data.decode(errors="replace"))


def joined(text: str) -> bytes:
    """Return all bytes in a text, whichever way they went. Raises NoHex."""
    return b"".join(chunk.data for chunk in hextext.parse(text))
