"""One time axis over reboots: how long it certainly was from one reading to the next.

Within a boot, boot time says so exactly. Between two boots only the wall clock can, and it may be wrong: a box without
a real-time clock wakes in the past and stays there until NTP answers. Elapsed time that is taken too long would turn a
short power cut into 12 silent hours for a whole village; taken too short it only delays. So it is never overestimated:

    earlier clock   later clock    elapsed between two boots
    synced          synced         wall difference
    synced          unsynced       wall difference: a restored clock lags, it does not lead
    unsynced        unsynced       from the last word of the one to the first of the other: both lag alike, or both run
                                   on one real-time clock; what somebody set by hand in between is not counted
    unsynced        synced         time since the later boot: the earlier clock may have lagged by anything

and it is never less than the time since the later boot. When a boot's clock becomes synced, the axis is built anew.

The axis begins where the wall clock of the first boot says; with clocks that are synced it is UTC in ms since 1970.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from protocols.reading import ClockTrust, Moment

# A clock that jumps further than this between two boots (a real-time clock with an empty battery) proves nothing.
GAP_MS_MAX: Final = 60 * 86_400_000


class Anchor(msgspec.Struct, frozen=True, kw_only=True):
    """Where the wall clock says that a boot began, and whether a time source backs it.

    Somebody may set an unsynced clock by hand: then its first and its last word differ.
    """

    first_wall_ms: int
    last_wall_ms: int
    trust: ClockTrust


class Timeline:
    """Places moments on one axis in milliseconds. Moments of one boot may come in any order, boots only one by one."""

    def __init__(self, anchors: dict[str, Anchor] | None = None) -> None:
        self._anchors = anchors or {}
        self._boot_id = ""
        self._offset_ms = 0
        self._newest_boottime_ms = 0

    def place(self, moment: Moment) -> int:
        """Return where a moment lies."""
        known = self._anchors.get(moment.boot_id)
        # What a synced moment says of a boot that was unsynced so far waits for the axis to be built anew.
        if known is None or moment.trust is ClockTrust.UNSYNCED:
            self._anchors[moment.boot_id] = _anchor(moment, known)
        if moment.boot_id != self._boot_id:
            if self._boot_id:
                end_ms = self._offset_ms + self._newest_boottime_ms
                self._offset_ms = end_ms + self._elapsed_ms(moment) - moment.boottime_ms
            else:
                self._offset_ms = self._anchors[moment.boot_id].last_wall_ms
            self._boot_id = moment.boot_id
            self._newest_boottime_ms = moment.boottime_ms
        self._newest_boottime_ms = max(self._newest_boottime_ms, moment.boottime_ms)
        return self._offset_ms + moment.boottime_ms

    def is_outdated_by(self, moment: Moment) -> bool:
        """Tell whether a moment dates its boot for the first time, so that the axis should be built anew."""
        anchor = self._anchors.get(moment.boot_id)
        return moment.trust is ClockTrust.SYNCED and anchor is not None and anchor.trust is not ClockTrust.SYNCED

    def _elapsed_ms(self, later: Moment) -> int:
        """Return how long it certainly was from the newest moment of the boot before to the first of the next."""
        before, after = self._anchors[self._boot_id], self._anchors[later.boot_id]
        if before.trust is ClockTrust.UNSYNCED and after.trust is ClockTrust.SYNCED:
            return later.boottime_ms
        gap_ms = after.first_wall_ms + later.boottime_ms - before.last_wall_ms - self._newest_boottime_ms
        return max(later.boottime_ms, gap_ms) if gap_ms <= GAP_MS_MAX else later.boottime_ms


def anchors_of(moments: Iterable[Moment]) -> dict[str, Anchor]:
    """Return the anchor of every boot: its last synced moment, or its first and last one where none was."""
    anchors: dict[str, Anchor] = {}
    for moment in moments:
        anchors[moment.boot_id] = _anchor(moment, anchors.get(moment.boot_id))
    return anchors


def _anchor(moment: Moment, known: Anchor | None) -> Anchor:
    """Return what is known of a boot after another moment of it."""
    wall_ms = moment.wall_ms - moment.boottime_ms
    if moment.trust is ClockTrust.SYNCED or known is None:
        return Anchor(first_wall_ms=wall_ms, last_wall_ms=wall_ms, trust=moment.trust)
    if known.trust is ClockTrust.SYNCED:
        return known
    return msgspec.structs.replace(known, last_wall_ms=wall_ms)
