"""What can go wrong at the county's end, and the exit code that each of it leaves with."""

import enum

from protocols.errors import ShuiwangError


class ExitCode(enum.IntEnum):
    """What `shuiwang-county` says to the shell; docs/contract.md lists them."""

    OK = 0  # done, or stopped by SIGTERM or SIGINT
    BUG = 1  # an error that nobody foresaw
    USAGE = 2  # a wrong command line (typer's own code)
    CONFIGURATION = 3  # a wrong broker URL, a missing or unusable file
    DATABASE = 4  # the database cannot be opened or is not ours
    BROKER = 5  # --once-idle, or the time of a command, ended without ever having reached the broker
    REFUSED = 6  # the gateway has refused a command; its reply says why
    NO_REPLY = 7  # the gateway has not replied to a command in time


class CountyError(ShuiwangError):
    """Ends the command; the text says what happened and what to do."""

    exit_code = ExitCode.BUG


class ConfigurationError(CountyError):
    """The broker's URL or a file named on the command line cannot be used."""

    exit_code = ExitCode.CONFIGURATION


class DatabaseError(CountyError):
    """The database cannot be opened, or is not the receiver's."""

    exit_code = ExitCode.DATABASE


class BrokerError(CountyError):
    """The broker was not reached within the time allowed."""

    exit_code = ExitCode.BROKER


class NoReply(CountyError):
    """The gateway has not replied in time; it may still do what it was asked until the deadline."""

    exit_code = ExitCode.NO_REPLY


class StoreFailed(ShuiwangError):
    """A transaction was not committed (full disk, I/O error, lock): nothing of the batch may be acknowledged."""
