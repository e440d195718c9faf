"""The technician's commands for a whole line: options and help. What they do is imported when it is done."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.exit_codes import ExitCode
from agent.options import JsonOption, finite
from agent.technician.cli import fail, load_profile, made, refuse_unwritable
from agent.technician.options import DataBitsOption, FramingOption, ParityOption, StopBitsOption

if TYPE_CHECKING:
    from agent.technician.lines import LineOptions

app = typer.Typer()

PortOption = Annotated[
    str, typer.Option("--port", "-p", metavar="PORT", help="/dev/ttyUSB0, socket://host:port, rfc2217://… 串口")
]
BaudrateOption = Annotated[
    int | None, typer.Option("--baudrate", "-b", min=50, max=4_000_000, help="Absent: found by trying. 波特率")
]
SecondsOption = Annotated[
    float | None,
    typer.Option(
        "--seconds", "-s", min=0.1, max=31 * 86_400, callback=finite, help="How long; absent: until Ctrl-C. 时长"
    ),
]


@app.command()
def scan(
    port: Annotated[
        list[str] | None,
        typer.Option("--port", "-p", metavar="PORT", help="Where to look; several are possible; absent: all. 串口"),
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option("--protocol", help="cjt188, modbus, mbus; absent: all. 协议")
    ] = None,
    baudrate: Annotated[
        list[int] | None, typer.Option("--baudrate", "-b", min=50, max=4_000_000, help="Absent: the usual ones. 波特率")
    ] = None,
    parity: Annotated[
        list[str] | None, typer.Option("--parity", help="N, E, O; absent: the usual ones. 校验位")
    ] = None,
    stop_bits: StopBitsOption = None,
    data_bits: DataBitsOption = None,
    framing: Annotated[
        list[str] | None, typer.Option("--framing", help="Of Modbus: rtu, ascii, tcp; absent: all. 帧格式")
    ] = None,
    addresses: Annotated[
        str | None,
        typer.Option("--addresses", "-a", help="1-247 or 1,5,17 (255 on TCP); CJ/T 188: the meters' 14 digits. 地址"),
    ] = None,
    timeout_ms: Annotated[
        int | None, typer.Option("--timeout-ms", min=10, max=10_000, help="How long an address may think. 超时")
    ] = None,
    listen_s: Annotated[
        float,
        typer.Option(
            "--listen", min=0, max=86_400, callback=finite, metavar="SECONDS", help="Listen first, for so long. 先听"
        ),
    ] = 2.0,
    write: Annotated[
        Path | None, typer.Option("--write", "-w", metavar="FILE", help="Propose [[bus]] and [[meter]]. 生成配置")
    ] = None,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="Go on at other settings after something was found. 全查")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Ask although another master does. 强行查找")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find the meters on a line: speed, parity, protocol, addresses, and which profile reads them. 查找水表

    Listens first and leaves a line alone that another master uses. Only requests to read are sent. Ctrl-C keeps what
    was found.

        shuiwang scan

        shuiwang scan --port /dev/ttyUSB0 --write meters.toml

        shuiwang scan --port /dev/ttyUSB0 --protocol modbus --baudrate 9600 --addresses 1-60

        shuiwang scan --port /dev/ttyUSB0 --addresses 00000805000001,00000805000002

        shuiwang scan --port socket://192.168.1.20:502

    Exit code 0: a meter was found; 9: none; 6: no port could be used.
    """
    from agent.technician import field_scan, lines
    from agent.technician.scan_plan import PROTOCOLS, Wanted, parse_addresses

    if write is not None:
        if write.exists():
            fail(ExitCode.USAGE, f"{write} exists and is not overwritten 文件已存在; name another one with --write")
        refuse_unwritable(write)
    for one in port or ():
        made(lambda one=one: lines.check_port(one))  # type: ignore[misc]
    for name in protocol or ():
        if name not in PROTOCOLS:
            fail(ExitCode.USAGE, f"--protocol {name!r}: there are {', '.join(PROTOCOLS)} 协议无效")
    units, numbers = made(lambda: parse_addresses(addresses) if addresses is not None else ((), ()))
    wanted = Wanted(
        protocols=tuple(protocol or ()),
        baudrates=tuple(baudrate or ()),
        parities=tuple(made(lambda: [lines.parity_of(given) for given in parity or ()])),
        stop_bits=stop_bits,
        data_bits=data_bits,
        framings=tuple(made(lambda: [lines.framing_of(given) for given in framing or ()])),
        units=units,
        numbers=numbers,
        timeout_ms=timeout_ms,
        everywhere=every,
    )
    code = field_scan.run(port or [], wanted, is_forced=force, listen_s=listen_s, write=write, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def sniff(
    port: PortOption,
    baudrate: BaudrateOption = None,
    parity: ParityOption = None,
    stop_bits: StopBitsOption = None,
    data_bits: DataBitsOption = None,
    seconds: SecondsOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Overhear a line without sending: every frame, who answers whom and how fast, what is damaged. 旁听

    Without --baudrate the usual speeds are tried until frames make sense. --json prints one line for each frame and a
    summary at the end.

        shuiwang sniff --port /dev/ttyUSB0

        shuiwang sniff --port /dev/ttyUSB0 --baudrate 2400 --parity E --seconds 600 --json

    Modbus TCP cannot be overheard: capture it with tcpdump, then shuiwang decode --file meter.pcap.

    Exit code 0: frames were heard; 9: none; 6: the port cannot be used.
    """
    from agent.technician import field_sniff
    from agent.technician.overhearing import candidates

    options: LineOptions = {
        "baudrate": baudrate, "parity": parity, "stop_bits": stop_bits, "data_bits": data_bits,
    }  # fmt: skip
    lines = made(lambda: candidates(port, options))
    raise typer.Exit(field_sniff.run(lines, seconds=seconds, as_json=as_json))


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Check all that this configuration names. 配置文件")
    ] = None,
    port: Annotated[
        str | None, typer.Option("--port", "-p", metavar="PORT", help="Check this port alone. 只查串口")
    ] = None,
    baudrate: Annotated[
        int, typer.Option("--baudrate", "-b", min=50, max=4_000_000, help="With --port. 波特率")
    ] = 9600,
    parity: Annotated[str, typer.Option("--parity", help="With --port: N, E or O. 校验位")] = "N",
    stop_bits: Annotated[int, typer.Option("--stop-bits", min=1, max=2, help="With --port: 1 or 2. 停止位")] = 1,
    data_bits: DataBitsOption = None,
    framing: FramingOption = None,
    reads: Annotated[
        int, typer.Option("--reads", min=1, max=10_000, help="How often each meter is read. 每表次数")
    ] = 5,
    listen_s: Annotated[
        float,
        typer.Option(
            "--listen", min=0.1, max=86_400, callback=finite, metavar="SECONDS", help="Listen first, so long. 先听"
        ),
    ] = 1.5,
    *,
    as_json: JsonOption = False,
) -> None:
    """Find out what is wrong: port, adapter, noise, echo, every meter, clock, disk, store, broker. 体检

        shuiwang doctor -c shuiwang.toml

        shuiwang doctor --port /dev/ttyUSB0

    While the service runs its lines are left alone. Each finding says what to check next. The exit code is that of the
    first thing that is wrong: 6 port, 9 a meter, 5 disk or store, 7 broker; 0 where nothing is; 130 where Ctrl-C ended
    it before anything wrong was found.
    """
    from agent.technician import field_doctor
    from agent.technician.lines import line_of

    if (config is None) == (port is None):
        fail(ExitCode.USAGE, "give either -c FILE or --port PORT 请给出 -c 配置 或 --port 串口之一")
    line = None
    if port is not None:
        options: LineOptions = {
            "baudrate": baudrate, "parity": parity, "stop_bits": stop_bits, "data_bits": data_bits, "framing": framing,
        }  # fmt: skip
        line = made(lambda: line_of(port, **options))
    raise typer.Exit(field_doctor.examine(config, line, reads=reads, listen_s=listen_s, as_json=as_json))


@app.command()
def record(
    port: PortOption,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="A new file; never overwritten. 文件")],
    baudrate: BaudrateOption = None,
    parity: ParityOption = None,
    stop_bits: StopBitsOption = None,
    data_bits: DataBitsOption = None,
    framing: FramingOption = None,
    seconds: SecondsOption = None,
    read: Annotated[
        list[str] | None,
        typer.Option("--read", metavar="PROFILE:ADDRESS", help="Read this meter and record it. 主动读并录制"),
    ] = None,
    times: Annotated[int, typer.Option("--times", min=1, max=100_000, help="With --read: how often. 次数")] = 3,
    every_s: Annotated[
        float,
        typer.Option(
            "--every", min=0, max=3600, callback=finite, metavar="SECONDS", help="With --read: pause between. 间隔"
        ),
    ] = 1.0,
    profile: Annotated[str | None, typer.Option("--profile", help="Without --read: what the meters are. 型号")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Record a line into a file that `shuiwang replay` plays and our tests run: passively, or while reading. 录制

    Passively, another master's readings:

        shuiwang record --port /dev/ttyUSB0 --to capture.txt --seconds 60

    Our own, ten of one meter:

        shuiwang record --port /dev/ttyUSB0 --to capture.txt --read usw-dn15-40:17 --times 10

    A profile of one's own, ./my-meter.toml:17, is named by its way from the capture: move the two files together.

    Exit code 0: recorded (with --read: at least one value); 9: nothing; 6: the port; 2: the file exists.
    """
    from agent.technician import field_record
    from agent.technician.overhearing import candidates

    refuse_unwritable(to)
    options: LineOptions = {
        "baudrate": baudrate, "parity": parity, "stop_bits": stop_bits, "data_bits": data_bits, "framing": framing,
    }  # fmt: skip
    if read:
        if profile is not None or seconds is not None:
            fail(ExitCode.USAGE, "--profile and --seconds go with a passive capture; --read names its profile itself")
        code = field_record.active(port, to, read, options, times=times, every_s=every_s, as_json=as_json)
    else:
        lines = made(lambda: candidates(port, options))
        code = field_record.passive(lines, to, seconds=seconds, profile=profile, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A capture of `shuiwang record`, or a golden dialogue. 录制文件")],
    profile: Annotated[
        str | None, typer.Option("--profile", help="Read it as this model in place of the recorded one. 型号")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Play a capture against our decoder: what each exchange means, and whether it comes out as recorded. 回放

        shuiwang replay capture.txt

        shuiwang replay capture.txt --profile cjt188-water

    Put into tests/gateway/captures, a capture is a test. Exit code 0: as recorded; 10: otherwise; 9: nothing in it
    could be read; 2: no capture.
    """
    from agent.technician import field_record

    known = load_profile(profile) if profile is not None else None
    raise typer.Exit(field_record.play(file, profile=known, as_json=as_json))
