"""What can be seen from outside: the agent's store and the county's database, both opened read-only.

The demo looks and does nothing else; whatever the picture shows and the summary counts was read here.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.demo import scene
from agent.detection.window import Window
from agent.service import STORE_NAME
from gateway.clock import FastClock
from gateway.store import Store, StoreError, StreamStatus
from protocols.contract import AlertBody, Stream, wall_ms
from protocols.reading import Quality, Reading

_COUNTY_BUSY_S: Final = 2.0


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A reading as the county has it; `received_ms` is when it came, in village time."""

    seq: int
    meter: str
    at_ms: int
    volume_ml: int | None
    quality: str
    reason: str | None
    received_ms: int


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """An alert step as the county has it, in village time."""

    seq: int
    id: str
    meter: str | None
    kind: str
    level: str
    transition: str | None
    at_ms: int
    received_ms: int
    text: dict[str, str] = {}  # by language
    visit: str | None = None  # what the county has said of a visit, as the step carries it


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """What the county told the gateway of a visit, once the county has the gateway's reply."""

    alert: str
    result: str
    done: bool
    at_ms: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a home has used within the rule's window: at least, at most (None: not watched so long), and last when."""

    least_ml: int
    most_ml: int | None
    last_use_ms: int | None


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """The network between gateway and county; `back_ms` is when it could carry again."""

    is_up: bool = True
    away_ms: int | None = None
    back_ms: int | None = None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one moment of village time. The sequences grow; nothing in them changes."""

    now_ms: int
    taken: Sequence[Reading] = ()
    stored: Sequence[Stored] = ()
    steps: Sequence[Step] = ()
    visits: Sequence[Visit] = ()
    open_episodes: tuple[AlertBody, ...] = ()
    usage: dict[str, Usage] = {}
    telemetry: StreamStatus = StreamStatus(last_seq=0, acked_seq=0, acked_wall_ms=None)
    alerts: StreamStatus = StreamStatus(last_seq=0, acked_seq=0, acked_wall_ms=None)
    link: Link = Link()
    confirmed_ms: dict[int, int] = {}  # alert step, by its number -> when the gateway learned that the county has it
    # The county has acknowledged exactly what `taken` holds: nothing waited, and nothing came while we looked.
    is_settled: bool = False

    @property
    def waiting(self) -> int:
        """How many messages the gateway holds that the county has not acknowledged."""
        return self.telemetry.last_seq - self.telemetry.acked_seq + self.alerts.last_seq - self.alerts.acked_seq


class Observer:
    """Looks again and again; keeps what it has seen."""

    def __init__(self, *, data_dir: Path, county_db: Path, clock: FastClock) -> None:
        self._store_path = data_dir / STORE_NAME
        self._county_path = county_db
        self._clock = clock
        self._store: Store | None = None
        self._county: sqlite3.Connection | None = None
        self._taken: list[Reading] = []
        self._stored: list[Stored] = []
        self._steps: list[Step] = []
        self._visits: list[Visit] = []
        self._windows = {home.meter: Window(scene.WINDOW_H * scene.HOUR_MS) for home in scene.HOMES}
        self._usage: dict[str, Usage] = {}
        self._confirmed_ms: dict[int, int] = {}
        self._gateway: dict[str, Any] = {}

    def look(self, link: Link) -> View:
        """Return what there is now. What a process has not made yet is empty."""
        view = View(now_ms=self._clock.now().wall_ms, link=link)
        try:
            self._gateway = self._look_at_gateway()
        except (StoreError, sqlite3.Error):  # not made yet, or just being made; the next look is soon
            self._gateway["is_settled"] = False
        self._look_at_county()
        return msgspec.structs.replace(
            view,
            taken=self._taken,
            stored=self._stored,
            steps=self._steps,
            visits=self._visits,
            usage=dict(self._usage),
            **self._gateway,
        )

    def close(self) -> None:
        """Close both files."""
        if self._store:
            self._store.close()
        if self._county:
            self._county.close()

    def _look_at_gateway(self) -> dict[str, Any]:
        if self._store is None:
            self._store = Store(self._store_path, read_only=True)
        # Numbers first: whatever they count is in the history that is read after them.
        telemetry, alerts = self._store.status(Stream.TELEMETRY), self._store.status(Stream.ALERT)
        episodes = tuple(self._store.open_episodes())
        known = len(self._taken)
        for number, reading in enumerate(self._store.history()):
            if number >= known:
                self._taken.append(reading)
                self._note(reading)
        if alerts.acked_wall_ms is not None:
            for seq in range(len(self._confirmed_ms) + 1, alerts.acked_seq + 1):
                self._confirmed_ms[seq] = alerts.acked_wall_ms
        is_settled = (
            telemetry == self._store.status(Stream.TELEMETRY)
            and alerts == self._store.status(Stream.ALERT)
            and (telemetry.acked_seq, alerts.acked_seq) == (telemetry.last_seq, alerts.last_seq)
        )
        return {
            "telemetry": telemetry,
            "alerts": alerts,
            "open_episodes": episodes,
            "confirmed_ms": dict(self._confirmed_ms),
            "is_settled": is_settled,
        }

    def _note(self, reading: Reading) -> None:
        if reading.volume_ml is None or reading.quality is not Quality.OK:
            return
        window = self._windows[reading.meter]
        window.add(reading.at.wall_ms, reading.volume_ml)
        least_ml, most_ml = window.usage()
        last_use = window.last_use()
        self._usage[reading.meter] = Usage(least_ml=least_ml, most_ml=most_ml, last_use_ms=last_use and last_use[1])

    def _look_at_county(self) -> None:
        try:
            if self._county is None:
                uri = f"{self._county_path.as_uri()}?mode=ro"
                self._county = sqlite3.connect(uri, uri=True, timeout=_COUNTY_BUSY_S)
            readings = self._county.execute(
                "select r.seq, meter, at, volume_ml, quality, reason, m.received_at from readings as r"
                " join messages as m on m.county = r.county and m.gateway = r.gateway and m.epoch = r.epoch"
                " and m.stream = 'telemetry' and m.seq = r.seq order by r.rowid limit -1 offset ?",
                [len(self._stored)],
            ).fetchall()
            steps = self._county.execute(
                "select seq, id, meter, kind, level, transition, at, received_at, text,"
                " json_extract(evidence, '$.county.result') from alert_steps order by rowid limit -1 offset ?",
                [len(self._steps)],
            ).fetchall()
            visits = self._county.execute(
                "select alert, result, done, replied_at from commands where do = 'resolve' and replied_at is not null"
                " order by rowid"
            ).fetchall()
        except sqlite3.OperationalError:
            return  # the receiver has not made it yet
        for seq, meter, at, volume_ml, quality, reason, received_at in readings:
            self._stored.append(
                Stored(
                    seq=seq,
                    meter=meter,
                    at_ms=wall_ms(at),
                    volume_ml=volume_ml,
                    quality=quality,
                    reason=reason,
                    received_ms=scene.village_ms(self._clock, wall_ms(received_at)),
                )
            )
        self._steps += self._steps_of(steps)
        self._visits = [
            Visit(alert=alert, result=result, done=bool(done), at_ms=wall_ms(at)) for alert, result, done, at in visits
        ]

    def _steps_of(self, rows: Iterable[tuple[Any, ...]]) -> Iterable[Step]:
        for seq, id_, meter, kind, level, transition, at, received_at, text, visit in rows:
            yield Step(
                seq=seq,
                id=id_,
                meter=meter,
                kind=kind,
                level=level,
                transition=transition,
                at_ms=wall_ms(at),
                received_ms=scene.village_ms(self._clock, wall_ms(received_at)),
                text=msgspec.json.decode(text, type=dict[str, str]) if text else {},
                visit=visit,
            )
