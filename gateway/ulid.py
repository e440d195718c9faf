"""ULIDs (github.com/ulid/spec): identifiers that sort by the time they were made and need no registry."""

import secrets
from collections.abc import Callable
from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_LENGTH: Final = 26


def new_ulid(wall_ms: int, *, random_bits: Callable[[int], int] = secrets.randbits) -> str:
    """Return a ULID of that instant (UTC, ms since 1970); `random_bits` gives its lower 80 bits."""
    value = (wall_ms & (1 << 48) - 1) << 80 | random_bits(80)
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(5 * (_LENGTH - 1), -1, -5))
