"""`shuiwang scan` on the terminal: a progress bar while it looks, meters as they are found, the table at the end."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from agent.exit_codes import ExitCode
from agent.technician import advice, cli, proposal, scan_plan, views_reading, views_scanning
from agent.technician.scan_found import Found
from agent.technician.scan_plan import Wanted
from agent.technician.scanning import Event, Scan, Told
from agent.technician.words import Words
from gateway.line import LineSettings

HOW_TO_GO_ON = Words("怎么办", "how to go on")

NOTHING_FOUND = [
    advice.POWER,
    advice.SWAPPED,
    Words(
        "表只在上电后短时间应答，或要按键、磁铁唤醒？唤醒后立即再查",
        "Does the meter answer only after power-on, a key or a magnet? Wake it up and scan again at once",
    ),
    Words(
        "多块 CJ/T 188 表：用 --addresses 给出表上的 14 位表号",
        "Several CJ/T 188 meters: give the 14 digits on them with --addresses",
    ),
    Words("表较慢：--timeout-ms 2000", "Slow meters: --timeout-ms 2000"),
    Words(
        "只答自己寄存器、或休眠的 Modbus 表，只在地址 1-10 细查过：用 --addresses 给出它的地址",
        "A Modbus meter that answers its own registers only, or sleeps, is looked for at units 1 to 10: name its unit"
        " with --addresses",
    ),
    Words(
        "知道型号？直接读：`shuiwang read --profile 型号 --address 表号`",
        "Is the model known? Read it: `shuiwang read --profile NAME --address ADDRESS`",
    ),
    advice.TERMINATION,
]


def run(
    ports: list[str], wanted: Wanted, *, is_forced: bool, listen_s: float, write: Path | None, as_json: bool
) -> ExitCode:
    """Scan and print; return the exit code."""
    talk = cli.new_console(stderr=True)
    ports = ports or advice.ports_here()
    if not ports:
        cli.fail(
            ExitCode.PORT,
            "this machine has no serial port 本机没有串口",
            [Words("插好 USB 转 485 适配器，或用 --port 指定", "Plug in the USB-RS-485 adapter, or give --port")],
        )
    if not any(scan_plan.quick(port, wanted) for port in ports):
        cli.fail(
            ExitCode.USAGE,
            "these options leave nothing to look for 这些选项下没有可查的: Modbus TCP needs --port socket://host:502,"
            " 7 data bits mean Modbus ASCII, and 14 digits CJ/T 188",
        )
    scan = Scan(ports, wanted, is_forced=is_forced, listen_s=listen_s)
    is_complete = _watch(scan, talk)
    if as_json:
        cli.print_json(views_scanning.as_json(scan, is_complete=is_complete))
    else:
        cli.new_console().print(views_scanning.table(scan))
    if not is_complete:
        talk.print("stopped: what was found until then 已中断：以上为已找到的", style="yellow")
    if write is not None and scan.found:
        _write(scan, write, talk)
    return _end(scan, talk, is_complete=is_complete)


def _watch(scan: Scan, talk: Console) -> bool:
    """Show the scan as it goes; tell whether it came to its end."""
    first_look = views_scanning.duration(scan.estimate_s())
    talk.print(
        f"first look 初查约 {first_look}, then all 再全查; Ctrl-C stops 可随时停止",
        style="dim",
    )
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[left]}", style="dim"),
        console=talk,
        transient=True,
        disable=not talk.is_terminal,
    )
    try:
        with bar:
            task = bar.add_task("", total=1.0, left="")
            for event in scan.run():
                _show(event, bar, task, talk)
    except KeyboardInterrupt:
        return False
    return True


def _show(event: Event, bar: Progress, task: TaskID, talk: Console) -> None:
    if isinstance(event, Found):
        bar.console.print(views_scanning.found_line(event))
    elif isinstance(event, Told):
        bar.console.print(views_scanning.told_lines(event, width=talk.width))
    else:
        left = views_scanning.duration(event.total_s - event.done_s)
        bar.update(
            task,
            description=views_scanning.step_text(event.step),
            completed=event.done_s,
            total=max(event.total_s, 0.001),
            left=f"about 约 {left} left",
        )


def _write(scan: Scan, path: Path, talk: Console) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(proposal.toml(scan.found))
    except OSError as error:
        cli.fail(ExitCode.USAGE, f"{path}: cannot be written 无法写入: {error.strerror}")
    talk.print(f"proposed in 建议配置已写入 {path}", style="green")
    left = sum(not found.is_decided for found in scan.found)
    if left:
        talk.print(f"{left} of them as comments, for you to decide 其中 {left} 块待您定夺，写成注释", style="yellow")


def _end(scan: Scan, talk: Console, *, is_complete: bool) -> ExitCode:
    if scan.found:
        return ExitCode.OK
    if len(scan.lost) == len(scan.ports):
        port, error = next(iter(scan.lost.items()))
        line = LineSettings(name="scan", port=port)
        talk.print(views_reading.advices(advice.port_advice(line, error.__cause__), title=HOW_TO_GO_ON))
        return ExitCode.PORT
    if is_complete and scan.requests:
        talk.print(views_reading.advices(NOTHING_FOUND))
    return ExitCode.NO_READING
