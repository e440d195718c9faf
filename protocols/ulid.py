"""ULIDs (github.com/ulid/spec): identifiers that sort by the time they were made and need no registry."""

from typing import Final

RANDOM_BITS: Final = 80
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_LENGTH: Final = 26


def ulid(wall_ms: int, *, random: int) -> str:
    """Return the ULID of an instant (UTC, ms since 1970; its lower 48 bits) and of `RANDOM_BITS` random bits."""
    value = (wall_ms & (1 << 48) - 1) << RANDOM_BITS | random
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(5 * (_LENGTH - 1), -1, -5))
