"""ULIDs (github.com/ulid/spec) made by chance."""

import secrets
from collections.abc import Callable

from protocols.ulid import RANDOM_BITS, ulid


def new_ulid(wall_ms: int, *, random_bits: Callable[[int], int] = secrets.randbits) -> str:
    """Return a ULID of that instant (UTC, ms since 1970); `random_bits` gives its lower 80 bits."""
    return ulid(wall_ms, random=random_bits(RANDOM_BITS))
