"""What can go wrong between a meter and its reading; each leaf says what the poller does next.

Portable: also runs on MicroPython.
"""

DUMP_BYTES_MAX = 40  # of garbage in a message: enough to recognise it by, little enough for one line


class ShuiwangError(Exception):
    """Base of every error that shuiwang raises on purpose. Anything else is a bug of ours."""


class UsageError(ShuiwangError):
    """We broke a rule: a request that no meter could answer. The poller reports a bug and goes on."""


class MeterError(ShuiwangError):
    """They broke a rule, or the line did: there is no reading from this exchange, and never a value.

    `reason` is the code that stands in a reading in place of the volume.
    """

    reason = "error"


class PortLost(MeterError):
    """The adapter is gone. The poller closes the port, backs off and opens it again by its name."""

    reason = "port_lost"


class NoResponse(MeterError):
    """Silence until the deadline. The poller repeats the request a bounded number of times, then goes on."""

    reason = "no_response"


class Garbled(MeterError):
    """Bytes came that are no frame (checksum, length, echo). The poller drains the line and repeats."""

    reason = "garbled"


class WrongAnswer(MeterError):
    """A valid frame that does not answer this request. The poller drops it, drains the line and repeats."""

    reason = "wrong_answer"


class MeterRefused(MeterError):
    """The meter said no. The poller does not repeat; it asks again only at the pace of a failing meter."""

    reason = "refused"


class MeterFault(MeterError):
    """A valid answer whose content cannot be a volume (not a number, unknown unit). No repeat."""

    reason = "meter_fault"


class ProfileError(ShuiwangError):
    """A meter profile is wrong; the text says which file, which key and what would be right."""


class ContractError(ShuiwangError):
    """A message does not follow the county contract; the text says where and why."""
