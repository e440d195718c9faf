"""The command line of the county's end: `shuiwang-county receive` and `shuiwang-county show`.

Data goes to stdout, talk to stderr; `county.errors.ExitCode` lists what it exits with.
"""

import asyncio
import logging
import math
import re
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer
from rich.console import Console

from county import command_cli, report, service
from county.command_cli import timezone_of
from county.display import Display
from county.errors import ConfigurationError, CountyError
from county.link import Link, parse_address
from protocols.contract import NAME_PATTERN

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The county's end of shuiwang: receives what the gateways send, stores it, and only then acknowledges it.",
)
app.add_typer(command_cli.app, name="command")

DatabaseOption = Annotated[
    Path, typer.Option("--db", help="The SQLite database; `receive` makes it where it is missing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
TimezoneOption = Annotated[
    str | None, typer.Option(help="Time zone of the times shown, such as Asia/Shanghai. Default: the machine's own.")
]


def main() -> NoReturn:
    """Run the command line; an error of ours is one line on stderr and its exit code."""
    try:
        app()
    except CountyError as error:
        print(f"shuiwang-county: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    sys.exit(0)


@app.command()
def receive(
    broker: Annotated[str, typer.Option(help="mqtt://HOST[:PORT], or mqtts://HOST[:PORT] with TLS.")],
    db: DatabaseOption,
    county: Annotated[
        str, typer.Option(help="The county to serve, as in its gateways' configuration; + is all.")
    ] = "+",
    json: JsonOption = False,  # noqa: FBT002
    ca_file: Annotated[Path | None, typer.Option(help="Certificates to trust (PEM); default: the system's.")] = None,
    cert_file: Annotated[Path | None, typer.Option(help="Our own certificate (PEM).")] = None,
    key_file: Annotated[Path | None, typer.Option(help="The key of our own certificate (PEM).")] = None,
    username: Annotated[str | None, typer.Option(help="User name at the broker.")] = None,
    password_file: Annotated[Path | None, typer.Option(help="File that holds the password alone.")] = None,
    client_id: Annotated[
        str | None,
        typer.Option(help="Our name at the broker, one per running receiver. Default: shuiwang-county-COUNTY."),
    ] = None,
    timezone: TimezoneOption = None,
    once_idle: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="End when nothing has come for so long.")
    ] = None,
) -> None:
    """Receive, store, acknowledge, and print alerts as they come. SIGTERM and Ctrl-C end it."""
    if once_idle is not None and not math.isfinite(once_idle):
        raise ConfigurationError(f"--once-idle {once_idle}: not a number of seconds")
    if county != "+" and not re.fullmatch(NAME_PATTERN, county):
        raise ConfigurationError(f"--county {county!r}: a-z, 0-9 and - only, or + for all counties")
    address = parse_address(
        broker,
        client_id=client_id or f"shuiwang-county-{'all' if county == '+' else county}",
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        username=username,
        password_file=password_file,
    )
    display = Display(Console(), json=json, timezone=timezone_of(timezone))
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = service.Settings(database=db, county=county, idle_s=once_idle)
    asyncio.run(service.serve(settings, link=Link(address), display=display))


@app.command()
def show(db: DatabaseOption, json: JsonOption = False, timezone: TimezoneOption = None) -> None:  # noqa: FBT002
    """Show open alerts, gateways, readings per meter and what was set aside. The receiver may be running."""
    found = report.read_report(db)
    if json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        report.print_report(found, Console(), timezone=timezone_of(timezone))


if __name__ == "__main__":
    main()
