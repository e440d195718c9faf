"""The technician's commands: their options and their help. What they do is imported when it is done."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, NoReturn, TypeVar

import msgspec
import typer

from agent.exit_codes import ExitCode
from agent.options import JsonOption, WatchCommand, finite
from agent.technician.options import (
    AddressOption,
    BaudrateOption,
    ConfigOption,
    DataBitsOption,
    FramingOption,
    MeterArgument,
    ParityOption,
    PortOption,
    StopBitsOption,
    TimeoutOption,
)
from protocols.errors import ProfileError, ShuiwangError

if TYPE_CHECKING:
    from rich.console import Console

    from agent.settings import Config
    from agent.technician.reading import Plan, Report, Station
    from agent.technician.words import Words
    from gateway.line import LineSettings
    from protocols.errors import PortLost
    from protocols.profile import Profile

app = typer.Typer()
FILE_BYTES_MAX = 1024 * 1024
Made = TypeVar("Made")


@app.command(cls=WatchCommand)
def read(
    meter: MeterArgument = None,
    config: ConfigOption = None,
    port: PortOption = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="A name of `shuiwang profiles`, or a file. 型号")
    ] = None,
    address: AddressOption = None,
    baudrate: BaudrateOption = None,
    parity: ParityOption = None,
    stop_bits: StopBitsOption = None,
    data_bits: DataBitsOption = None,
    framing: FramingOption = None,
    timeout_ms: TimeoutOption = None,
    retries: Annotated[int | None, typer.Option("--retries", min=0, max=5, help="Repeats after silence. 重试")] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            "--watch",
            "-w",
            metavar="[SECONDS]",
            min=0.2,
            max=3600,
            callback=finite,
            help="Read again and again (every 5 s if not said), with differences and flow; Ctrl-C ends it. 连续读",
        ),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Read one meter now: its value, and the frames that prove it. Never writes to a meter. 读一块表

    A meter of the configuration:

        shuiwang read -c shuiwang.toml m-001

    A meter at the pit, without configuration:

        shuiwang read --port /dev/ttyUSB0 --profile cjt188-water --address 00002020120218

        shuiwang read --port socket://192.168.1.20:502 --framing tcp --profile tuf-2000 --address 1

    Is water running? Every two seconds, with the flow:

        shuiwang read -c shuiwang.toml m-001 --watch 2

    Exit code 0: a value; 9: none; 6: the port cannot be used (the service may hold it).
    """
    from agent.technician.reading import Station
    from gateway.clock import SystemClock

    given = Given(port, profile, address, baudrate, parity, stop_bits, timeout_ms, retries, data_bits, framing)
    plan, _ = plan_of(meter, config, given)
    station = Station(plan, clock=SystemClock())
    try:
        if watch is None:
            _read_once(station, as_json=as_json)
        else:
            _watch(station, every_s=watch, as_json=as_json)
    except KeyboardInterrupt:
        fail(ExitCode.NO_READING, "stopped 已中断")
    finally:
        station.close()


@app.command()
def decode(
    text: Annotated[list[str] | None, typer.Argument(metavar="HEX…", help="The bytes; absent: stdin.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A hex dump, a log, or a capture of tcpdump. 文件")
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="Say the exact volume as this profile reads it. 型号")
    ] = None,
    request: Annotated[
        str | None, typer.Option("--request", metavar="HEX", help="The request that the bytes answer. 请求帧")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Explain frames byte by byte: Modbus RTU, ASCII, TCP; CJ/T 188; M-Bus. Noise, echo, damage too. 解码

    Spaces, commas, 0x, hexdump -C, xxd and logs with >> << or TX RX are all understood.

        shuiwang decode FE FE FE 68 10 18 02 12 20 20 00 00 01 03 90 1F 00 97 16

        shuiwang decode --request 110302040004 --profile usw-dn15-40 1103080000 00000001F0891571

        shuiwang decode :110302040004E2  and  shuiwang decode 0001 0000 0006 11 03 02 04 00 04

        xxd capture.bin | shuiwang decode

        tcpdump -w meter.pcap port 502, then: shuiwang decode --file meter.pcap

    Exit code 0: at least one sound frame; 9: none; 2: not hexadecimal.
    """
    from agent.technician import decoding, pasted, views_decoding

    loaded = load_profile(profile) if profile is not None else None
    chunks = made(lambda: pasted.chunks(_input(text or [], file)))
    asked = made(lambda: pasted.joined(request)) if request is not None else b""
    result = decoding.decode(chunks, profile=loaded, request=decoding.completed(asked))
    if as_json:
        print_json(views_decoding.as_json(result))
    else:
        views_decoding.show(result, new_console(), has_profile=loaded is not None)
    if not result.frames or (loaded and not any(volume.measurement for volume in result.volumes)):
        raise typer.Exit(ExitCode.NO_READING)


class Given(NamedTuple):
    """What the command line says of a meter and its line; None: not said."""

    port: str | None
    profile: str | None
    address: str | None
    baudrate: int | None
    parity: str | None
    stop_bits: int | None
    timeout_ms: int | None
    retries: int | None
    data_bits: int | None = None
    framing: str | None = None


def plan_of(meter: str | None, config: Path | None, given: Given) -> "tuple[Plan, Config | None]":
    """Return which meter is meant, and the configuration if it says so.

    Ends the command where that does not become clear, or where the service holds the meter's line.
    """
    if config is None:
        if meter is not None:
            fail(ExitCode.USAGE, f"{meter!r} needs -c FILE; or give --port, --profile and --address")
        return _plan_from_options(given), None
    if any(option is not None for option in (*given[:6], *given[8:])):
        fail(ExitCode.USAGE, "-c FILE METER knows port, profile, address and line; leave these options out")
    settings = _load_config(config)
    plan = _plan_from_config(settings, meter, timeout_ms=given.timeout_ms, retries=given.retries)
    _refuse_while_service_runs(settings, plan)
    return plan, settings


def _load_config(path: Path) -> "Config":
    from agent.config import ConfigError, load

    try:
        return load(path)
    except (ConfigError, ProfileError) as error:
        fail(ExitCode.CONFIGURATION, str(error))


def load_profile(name: str) -> "Profile":
    """Return a profile by name or path; ends the command where there is none."""
    from protocols.profile import load

    try:
        return load(name)
    except ProfileError as error:
        fail(ExitCode.CONFIGURATION, str(error))


def _plan_from_config(settings: "Config", meter: str | None, *, timeout_ms: int | None, retries: int | None) -> "Plan":
    from agent.technician.reading import NoSuchMeter, plan_from_config

    try:
        plan = plan_from_config(settings, meter)
    except NoSuchMeter as error:
        fail(ExitCode.USAGE, str(error))
    return msgspec.structs.replace(
        plan,
        timeout_ms=plan.timeout_ms if timeout_ms is None else timeout_ms,
        retries=plan.retries if retries is None else retries,
    )


def _plan_from_options(given: Given) -> "Plan":
    from agent.technician.lines import line_of
    from agent.technician.reading import Plan

    port, profile, address, baudrate, parity, stop_bits, timeout_ms, retries, data_bits, framing = given
    options = (("--port", port), ("--profile", profile), ("--address", address))
    missing = [name for name, value in options if value is None]
    if missing or port is None or profile is None or address is None:
        fail(ExitCode.USAGE, f"give {', '.join(missing)}; or -c FILE METER 请给出以上选项，或 -c 配置 表号")
    loaded = load_profile(profile)
    line = made(
        lambda: line_of(
            port,
            profile=loaded,
            baudrate=baudrate,
            parity=parity,
            stop_bits=stop_bits,
            data_bits=data_bits,
            framing=framing,
        )
    )
    try:
        parsed = loaded.parse_address(address, framing=line.framing)
    except ProfileError as error:
        fail(ExitCode.USAGE, f"--address {address!r}: {error}")
    return Plan(
        meter=address,
        line=line,
        profile=loaded,
        address=parsed,
        address_text=address,
        timeout_ms=loaded.timing.timeout_ms if timeout_ms is None else timeout_ms,
        retries=loaded.timing.retries if retries is None else retries,
    )


def _refuse_while_service_runs(settings: "Config", plan: "Plan") -> None:
    """End the command where the service polls this line: two masters on one line garble each other."""
    from agent.technician.advice import service_advice
    from gateway.lock import is_locked

    if is_locked(settings.gateway.data_dir):
        fail(
            ExitCode.PORT,
            f"the service runs and polls {plan.line.port} (data_dir {settings.gateway.data_dir})"
            f" 水望服务正在运行并占用该线路",
            service_advice(),
        )


def _read_once(station: "Station", *, as_json: bool) -> None:
    from agent.technician import views_reading

    report = _read_with_patience(station, as_json=as_json)
    if as_json:
        print_json(views_reading.as_json(report))
    elif report.error is None or report.frames:
        views_reading.show(report, new_console())
    else:
        views_reading.show(report, new_console(stderr=True))
    if report.error is not None:
        raise typer.Exit(_code_of(report))


def _read_with_patience(station: "Station", *, as_json: bool) -> "Report":
    """Read; on a terminal say meanwhile that we do."""
    console = new_console(stderr=True)
    if as_json or not console.is_terminal:
        return station.read()
    plan = station.plan
    with console.status(f"reading 正在读 {plan.line.port} {plan.line_text}, {plan.timeout_ms} ms × {plan.retries + 1}"):
        return station.read()


def _code_of(report: "Report") -> ExitCode:
    return ExitCode.PORT if report.error is not None and report.error.reason == "port_lost" else ExitCode.NO_READING


def _watch(station: "Station", *, every_s: float, as_json: bool) -> None:
    """Read until Ctrl-C. The exit code says whether there was any value."""
    from agent.technician import views_reading
    from agent.technician.watching import Watch

    console = new_console()
    watch = Watch(station, every_s=every_s)
    try:
        for report, since_last, since_first in watch.reports():
            if as_json:
                print_json(views_reading.as_json(report, since_last), is_line=True)
            elif watch.readings + watch.missed == 1:
                views_reading.show(report, console)
                console.print()
            else:
                console.print(views_reading.watch_line(report, since_last, since_first))
            if report.error is not None and report.error.reason == "port_lost" and not watch.readings:
                raise typer.Exit(ExitCode.PORT)
    except KeyboardInterrupt:
        pass
    if not as_json:
        console.print()
        console.print(views_reading.watch_summary(watch.readings, watch.missed, watch.total))
    if not watch.readings:
        raise typer.Exit(ExitCode.NO_READING)


def _input(arguments: list[str], file: Path | None) -> bytes:
    """Return what is to be decoded: the arguments, a file, or stdin."""
    if file is not None and arguments:
        fail(ExitCode.USAGE, "give either HEX or --file")
    if arguments:
        return " ".join(arguments).encode()
    if file is None:
        if sys.stdin.isatty():
            typer.echo("paste the bytes, then Ctrl-D 粘贴数据后按 Ctrl-D:", err=True)
        return _whole(sys.stdin.buffer.read(FILE_BYTES_MAX + 1), "stdin")
    try:
        with file.open("rb") as stream:
            return _whole(stream.read(FILE_BYTES_MAX + 1), str(file))
    except OSError as error:
        fail(ExitCode.USAGE, f"{file}: {error.strerror}")


def _whole(data: bytes, where: str) -> bytes:
    if len(data) > FILE_BYTES_MAX:
        fail(
            ExitCode.USAGE,
            f"{where}: more than {FILE_BYTES_MAX >> 20} MiB 文件太大: give the part that matters; capture fewer packets"
            " (`-c 500`), or keep some of them: `editcap -r IN OUT 1-500`",
        )
    return data


def new_console(*, stderr: bool = False) -> "Console":
    """Return where text for people goes; colours only on a terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def print_json(value: object, *, is_line: bool = False) -> None:
    """Print a value for programs, over several lines or on one."""
    encoded = msgspec.json.encode(value)
    typer.echo(encoded if is_line else msgspec.json.format(encoded, indent=2))  # bytes: JSON is UTF-8 everywhere


def port_failed(line: "LineSettings", error: "PortLost") -> NoReturn:
    """End the command where a port cannot be used, and say what to do."""
    from agent.technician.advice import port_advice

    fail(ExitCode.PORT, str(error), port_advice(line, error.__cause__))


def made(make: Callable[[], Made]) -> Made:
    """Return what options mean; ends the command where they mean nothing."""
    try:
        return make()
    except ShuiwangError as error:
        fail(ExitCode.USAGE, str(error))


def refuse_unwritable(file: Path) -> None:
    """End the command where a new file cannot be made in its folder: better now than when the work is done."""
    folder = file.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        why = "cannot be written to 不可写" if folder.is_dir() else "is no folder 目录不存在"
        fail(ExitCode.USAGE, f"{file}: cannot be made 无法生成文件: {folder} {why}")


def fail(code: ExitCode, message: str, advice: "list[Words] | None" = None) -> NoReturn:
    """End the command with a code, a word to stderr, and what to do."""
    typer.echo(message, err=True)
    if advice:
        from agent.technician import views_reading
        from agent.technician.words import Words

        new_console(stderr=True).print(views_reading.advices(advice, title=Words("怎么办", "how to go on")))
    raise typer.Exit(code)
