"""Log lines: `event_name field=value …: what it means and what to do`, one line each, to stderr."""

import logging
import os
import sys
from typing import Final

_FORMAT: Final = "%(levelname)-7s %(message)s"
_FORMAT_WITH_TIME: Final = "%(asctime)s " + _FORMAT


def set_up(*, debug: bool = False) -> None:
    """Log to stderr; the journal dates its lines itself."""
    in_journal = "JOURNAL_STREAM" in os.environ
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if debug else logging.INFO,
        format=_FORMAT if in_journal else _FORMAT_WITH_TIME,
        force=True,
    )
    # paho and aiomqtt speak of packets; whoever debugs those turns them on.
    for name in ("aiomqtt", "mqtt", "paho", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
