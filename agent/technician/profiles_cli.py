# ruff: noqa: ARG001 - the options of `new` reach the wizard as a whole, through context.params
"""`shuiwang profiles`: list, show, new. What they do is imported when it is done."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from agent.exit_codes import ExitCode
from agent.options import JsonOption
from agent.technician.cli import fail, load_profile, new_console, print_json
from agent.technician.options import (
    AddressOption,
    DataBitsOption,
    FramingOption,
    ParityOption,
    PortOption,
    StopBitsOption,
    TimeoutOption,
)
from protocols.errors import ShuiwangError

app = typer.Typer()
profiles_app = typer.Typer(
    invoke_without_command=True,
    help="List the meters that shuiwang can read, with the grade of their evidence; show one; make a new one. 型号\n\n"
    "shuiwang profiles                       the table 列表\n\n"
    "shuiwang profiles show cjt188-water     one profile and its proof 详情\n\n"
    "shuiwang profiles new --help            a profile from one capture and the dial 新建",
)
app.add_typer(profiles_app, name="profiles")


@profiles_app.callback()
def profiles(context: typer.Context, *, as_json: JsonOption = False) -> None:
    """List the profiles."""
    if context.invoked_subcommand is not None:
        return
    from agent.technician import views_profiles
    from protocols.profile import built_in_names, load

    known = [load(name) for name in built_in_names()]
    if as_json:
        print_json([views_profiles.as_json(profile, full=False) for profile in known])
    else:
        views_profiles.show_all(known, new_console())


@profiles_app.command("show")
def profiles_show(
    name: Annotated[str, typer.Argument(help="A name of `shuiwang profiles`, or a file.")],
    *,
    every: Annotated[bool, typer.Option("--all", help="Decode every proof, not only the best. 全部解码")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show everything about one profile, with the frames that prove it. 型号详情

    shuiwang profiles show tuf-2000
    """
    from agent.technician import views_profiles

    loaded = load_profile(name)
    if as_json:
        print_json(views_profiles.as_json(loaded, full=True))
    else:
        views_profiles.show_one(loaded, new_console(), every=every)


@profiles_app.command("new")
def profiles_new(
    context: typer.Context,
    name: Annotated[str | None, typer.Option("--name", help="a-z 0-9 -; also the file's name. 文件名")] = None,
    title: Annotated[str | None, typer.Option("--title", help="Maker and model, as people say it. 厂家型号")] = None,
    dial: Annotated[
        list[str] | None,
        typer.Option(
            "--dial", metavar="M3", help="What the dial showed, in m³: 123.456; one for each answer. 表盘读数"
        ),
    ] = None,
    request: Annotated[list[str] | None, typer.Option("--request", metavar="HEX", help="请求帧")] = None,
    response: Annotated[
        list[str] | None, typer.Option("--response", metavar="HEX", help="The captured answer. 应答帧")
    ] = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="modbus or cjt188; found by itself. 协议")] = None,
    port: PortOption = None,
    address: AddressOption = None,
    baudrate: Annotated[
        int | None, typer.Option("--baudrate", "-b", min=50, help="Default: 9600, CJ/T 188: 2400. 波特率")
    ] = None,
    parity: ParityOption = None,
    stop_bits: StopBitsOption = None,
    data_bits: DataBitsOption = None,
    framing: FramingOption = None,
    timeout_ms: TimeoutOption = None,
    register: Annotated[
        int | None, typer.Option("--register", min=0, max=0xFFFF, help="First register, from 0. 起始寄存器")
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, max=125, help="Registers to read. 数量")] = 4,
    function: Annotated[int, typer.Option("--function", min=3, max=4, help="3 holding, 4 input. 功能码")] = 3,
    number_type: Annotated[str | None, typer.Option("--type", help="uint32, float32 … 类型")] = None,
    order: Annotated[str | None, typer.Option("--order", help="ABCD CDAB BADC DCBA 字节序")] = None,
    unit: Annotated[str | None, typer.Option("--unit", help="m3, L, mL … 单位")] = None,
    scale: Annotated[str | None, typer.Option("--scale", help='What one count is worth: "0.001". 倍率')] = None,
    choose: Annotated[int | None, typer.Option("--choose", min=1, help="Which proposal to take. 选第几项")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Who saw these frames, where. 来源")] = None,
    evidence: Annotated[
        str | None, typer.Option("--evidence", help="manual, constructed; capture or field with --source. 证据")
    ] = None,
    date: Annotated[str | None, typer.Option("--date", help="With field: 2026-11-21. 日期")] = None,
    place: Annotated[str, typer.Option("--place", help="With field: village or gateway, no person. 地点")] = "",
    note: Annotated[str, typer.Option("--note", help="What the next technician should know. 备注")] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: NAME.toml here. 输出文件")] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there. 覆盖")] = False,
    as_json: JsonOption = False,
) -> None:
    r"""Make a profile for an unknown meter: give one answer and the dial, it finds how the answer is read. 新建型号

    From a captured answer (what is missing is asked on a terminal):

        shuiwang profiles new --name xt-dn20 --title "Xintai DN20" --dial 0.545 \
            --request "01 03 00 01 00 02 95 CB" --response "01 03 04 1E 85 0B 3F AA D2"

    From the meter itself; nothing but a read is ever sent:

        shuiwang profiles new --port /dev/ttyUSB0 --address 1 --register 0 --count 8 --dial 123.45

        shuiwang profiles new --port /dev/ttyUSB0 --protocol cjt188 --address 00002020120218 --dial 2.00

    The frames go into the file as its proof. Two readings with two dials leave less to chance than one. What the meter
    was just asked is a capture (silver); pasted frames are that only with --evidence capture --source "who saw them".
    """
    from agent.technician import wizard_dialogue

    given = {name: value for name, value in context.params.items() if name != "as_json"}
    answers = wizard_dialogue.Answers(**given | {"out": out})
    try:
        made = wizard_dialogue.run(answers, ask=_ask if sys.stdin.isatty() else None, console=new_console(stderr=True))
    except wizard_dialogue.NoReading as error:
        fail(ExitCode.PORT if error.is_port else ExitCode.NO_READING, str(error), error.advice)
    except typer.Abort:
        fail(ExitCode.USAGE, "stopped 已中断")
    except ShuiwangError as error:
        fail(ExitCode.USAGE, str(error))
    if as_json:
        print_json(made)
    else:
        typer.echo(made["file"])


def _ask(question: str, default: str | None) -> str:
    return str(typer.prompt(question, default=default, err=True))
