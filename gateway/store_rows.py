"""A reading as a row of the store, and back; an alert step as the text of one."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.store_file import StoreDamaged
from protocols.contract import AlertBody
from protocols.reading import ClockTrust, Moment, Quality, Reading

READING_SQL: Final = (
    "select meter, wall_ms, trust, uncertainty_ms, boot.boot_id as boot_id, boottime_ms,"
    " volume_ml, quality, reason, flags from reading join boot on boot.id = reading.boot"
)


def row_of(id_: int, reading: Reading, boot: int) -> tuple[Any, ...]:
    """Return the columns of a reading; `boot` is the number of its boot in the table of boots."""
    at = reading.at
    flags = " ".join(reading.flags) or None
    clock = at.wall_ms, at.trust, at.uncertainty_ms, boot, at.boottime_ms
    return id_, reading.meter, *clock, reading.volume_ml, reading.quality, reading.reason, flags


def decode_reading(row: Mapping[str, Any]) -> Reading:
    """Return the reading in a row joined with its boot. Raises StoreDamaged for what is none."""
    try:
        return reading_of_row(row)
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        raise StoreDamaged(f"a reading makes no sense: {error}") from error


def reading_of_row(row: Mapping[str, Any]) -> Reading:
    """Return the reading in a row joined with its boot.

    Raises ValueError, TypeError, AttributeError or AssertionError for what is none.
    """
    return Reading(
        meter=row["meter"],
        at=Moment(
            wall_ms=row["wall_ms"],
            trust=ClockTrust(row["trust"]),
            uncertainty_ms=row["uncertainty_ms"],
            boot_id=row["boot_id"],
            boottime_ms=row["boottime_ms"],
        ),
        quality=Quality(row["quality"]),
        volume_ml=row["volume_ml"],
        reason=row["reason"],
        flags=tuple(row["flags"].split()) if row["flags"] else (),
    )


def decode_alert(text: str) -> AlertBody:
    """Return the alert step in a text of the store. Raises StoreDamaged for what is none."""
    try:
        return msgspec.json.decode(text, type=AlertBody)
    except msgspec.DecodeError as error:
        raise StoreDamaged(f"an alert is not readable: {error}") from error
