"""The options by which a technician's command is told a meter and its line: one meaning, one help for all of them."""

from pathlib import Path
from typing import Annotated

import typer

MeterArgument = Annotated[str | None, typer.Argument(help="With -c: the meter's id, or its address. 表号")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The configuration that knows meter and line. 配置文件")
]
PortOption = Annotated[
    str | None, typer.Option("--port", "-p", metavar="PORT", help="/dev/ttyUSB0, socket://host:port, rfc2217://…")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", "-a", help="Modbus: 1-247; CJ/T 188: 14 digits of the label. 表号"),
]
BaudrateOption = Annotated[int | None, typer.Option("--baudrate", "-b", min=50, help="Default: the profile's. 波特率")]
ParityOption = Annotated[str | None, typer.Option("--parity", help="N, E or O. 校验位")]
StopBitsOption = Annotated[int | None, typer.Option("--stop-bits", min=1, max=2, help="1 or 2. 停止位")]
DataBitsOption = Annotated[int | None, typer.Option("--data-bits", min=7, max=8, help="7 for Modbus ASCII. 数据位")]
FramingOption = Annotated[str | None, typer.Option("--framing", help="Modbus: rtu, ascii or tcp. 帧格式")]
TimeoutOption = Annotated[
    int | None, typer.Option("--timeout-ms", min=10, max=10_000, help="How long the meter may think. 超时")
]
