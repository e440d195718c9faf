"""pcapng files of scapy's making: its writer puts the blocks together, in either byte order."""

import contextlib
import struct

from scapy.utils import RawPcapNgReader, RawPcapNgWriter

ETHERNET, RAW_IP = 1, 101
IF_TSRESOL, IF_TSOFFSET = 9, 14


class Capture(RawPcapNgWriter):
    """A capture in a file. A section may be followed by another, in another byte order."""

    def section(self, order="<"):
        """Begin a section."""
        self.endian, self.endian_magic = order, struct.pack(f"{order}I", 0x1A2B3C4D)
        self._write_block_shb()

    def interface(self, link=ETHERNET, *, name=b"eth0"):
        """Describe an interface; its number is how many came before it in the section."""
        self._write_block_idb(linktype=link, ifname=name)

    def clock(self, link=ETHERNET, *, tsresol=None, tsoffset=None):
        """Describe an interface that counts time in its own way: scapy's writer knows microseconds only."""
        options = b""
        if tsresol is not None:
            options += struct.pack(f"{self.endian}HHB3x", IF_TSRESOL, 1, tsresol)
        if tsoffset is not None:
            options += struct.pack(f"{self.endian}HHq", IF_TSOFFSET, 8, tsoffset)
        self.block(1, struct.pack(f"{self.endian}HHI", link, 0, 0), options + bytes(4))

    def packet(self, data, *, interface=0, ticks=1, comment=None, flags=None):
        """Add an enhanced packet."""
        self.tsresol = 1
        self._write_block_epb(data, interface, timestamp=ticks, comments=comment and [comment], flags=flags)

    def simple(self, data):
        """Add a simple packet."""
        self._write_block_spb(data)

    def block(self, kind, body=b"", options=None):
        """Add any block."""
        self.f.write(self.build_block(struct.pack(f"{self.endian}I", kind), body, options))


def written(folder, *, write, order="<"):
    """Return the bytes of a capture that `write` filled, after the header of its first section."""
    path = folder / "scapy.pcapng"
    capture = Capture(str(path))
    with contextlib.closing(capture.f):
        capture.section(order)
        write(capture)
    return path.read_bytes()


def read(path):
    """Return (link type, bytes) of each packet as scapy reads them, in the order of the file."""
    reader = RawPcapNgReader(str(path))
    try:
        return [(metadata.linktype, data) for data, metadata in reader]
    finally:
        reader.close()
