"""Bytes to values and back, and the county contract. Pure: no I/O, no clock, no logging, no asyncio."""
