"""`shuiwang backtest` and `shuiwang advise`: their options and their help. What they do is imported when it is done."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import msgspec
import typer

from agent.exit_codes import ExitCode
from agent.options import JsonOption

if TYPE_CHECKING:
    from agent.settings import Config

app = typer.Typer()

TimezoneOption = Annotated[
    str | None,
    typer.Option("--timezone", metavar="ZONE", help="The clocks of the homes, such as Asia/Shanghai. 时区"),
]
ValuesOption = Annotated[
    str | None,
    typer.Option(
        "--values",
        metavar="cumulative|interval",
        help="Whether litres are the meter's register or the use since the row before; needed unless the column is"
        " called litres_cum or litres_interval. 累计或时段",
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="TIMESTAMP,METER,LITRES",
        help="The names of the columns; an empty METER: one home per file, named like it. 列名",
    ),
]
MeterOption = Annotated[list[str] | None, typer.Option("--meter", help="Only this home; may be repeated. 只看此表")]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Count bad rows and go on, instead of refusing. 跳过坏行")
]
RulesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rules",
        metavar="NAME=key:value,…",
        help="A rule set; repeat it for several side by side. Keys: window_h, threshold_m3, red_cost_h, red_after_h,"
        " fixed_h, red (home or off). Default: the county's rule with the home's own limit, with fixed 12 h and with"
        " 16 h. 规则",
    ),
]


@app.command()
def backtest(
    source: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="CSV (also .csv.gz) or Parquet. 读数文件或文件夹")
    ],
    timezone: TimezoneOption = None,
    values: ValuesOption = None,
    columns: ColumnsOption = None,
    rules: RulesOption = None,
    meter: MeterOption = None,
    learn_days: Annotated[
        int, typer.Option("--learn-days", min=0, max=3650, help="Days that only teach. 学习天数")
    ] = 60,
    stops: Annotated[
        int, typer.Option("--stops", min=0, max=1_000_000, help="Simulated stops for each home. 模拟停水次数")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the moments of the stops. 随机种子")] = 1,
    episodes: Annotated[
        Path | None, typer.Option("--episodes", metavar="FILE", help="Write one JSON line per episode. 告警明细")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="DIR", help="Draw one picture (PNG) per home. 图")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, max=1024, help="Processes; default: one for each core. 进程数")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster", metavar="ADDRESS|local", help="A Dask scheduler, tcp://host:8786; or start one. 集群"
        ),
    ] = None,
    spill: Annotated[
        Path | None,
        typer.Option(
            "--spill", metavar="DIR", help="Where a file of many homes is divided; as large as its text. 临时目录"
        ),
    ] = None,
    *,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
) -> None:
    """What the rules would have done on readings of the past: alerts, and how late help would have come. 回测

    A file with the columns timestamp, meter and litres, homes in any order, each sorted by time:

        shuiwang backtest readings.csv --timezone Asia/Shanghai --values cumulative

    How late would help come, if everybody stopped drawing water at 500 random moments?

        shuiwang backtest readings.csv.gz --timezone Asia/Shanghai --values cumulative --stops 500 --seed 7

    Other rules side by side:

        shuiwang backtest homes/ --timezone Asia/Shanghai --rules a=threshold_m3:0.05 --rules b=red_cost_h:400

    Exit code 0: judged; 2: the options or the files cannot be used (the message says where).
    """
    from agent.backtest.columns import parse_columns
    from agent.backtest.problems import InputProblem, require
    from agent.backtest.report import print_report
    from agent.backtest.rules import parse_rules
    from agent.backtest.run import backtest as run
    from agent.backtest.work import Job

    try:
        if plot is not None:
            require("matplotlib", "--plot")
        if cluster is not None:
            require("distributed", "--cluster")
        job = Job(
            rules=parse_rules(rules or []),
            timezone=_timezone(timezone),
            columns=parse_columns(columns) if columns else None,
            values=_values(values),
            meters=frozenset(meter) if meter else None,
            skip_bad=skip_bad,
            learn_days=learn_days,
            stops=stops,
            seed=seed,
            episodes=episodes is not None,
            plot=plot,
        )
        report = run(
            source, job, jobs=jobs or len(os.sched_getaffinity(0)), cluster=cluster, spill=spill, episodes=episodes
        )
    except InputProblem as problem:
        fail(str(problem))
    if as_json:
        print_json(report)
    else:
        print_report(report)


def _timezone(timezone: str | None) -> str:
    from agent.backtest.moments import LocalClock
    from agent.backtest.problems import InputProblem

    if timezone is None:
        raise InputProblem(
            "--timezone is missing: the hours of day belong to the clocks of the homes, e.g. Asia/Shanghai"
        )
    LocalClock(timezone)
    return timezone


def _values(values: str | None) -> str | None:
    from agent.backtest.columns import CUMULATIVE, INTERVAL
    from agent.backtest.problems import InputProblem

    if values not in {None, CUMULATIVE, INTERVAL}:
        raise InputProblem(f"--values {values!r} should be {CUMULATIVE} or {INTERVAL}")
    return values


def print_json(value: object) -> None:
    """Print a value for machines."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def fail(message: str) -> NoReturn:
    """Say what cannot be used, in one line, and end."""
    typer.echo(message, err=True)
    raise typer.Exit(ExitCode.USAGE)


@app.command()
def advise(
    source: Annotated[
        Path | None, typer.Argument(metavar="[FILE|FOLDER]", help="Readings as for `shuiwang backtest`. 读数文件")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Take the history of a gateway's own store. 配置文件")
    ] = None,
    meter: MeterOption = None,
    timezone: TimezoneOption = None,
    values: ValuesOption = None,
    columns: ColumnsOption = None,
    *,
    skip_bad: SkipBadOption = False,
    as_json: JsonOption = False,
) -> None:
    """What each rule would have done in a home last month, and the settings that suit it, with the reasons. 规则建议

    The homes of a gateway, from what its store remembers of the last two months (also while the service runs):

        shuiwang advise -c shuiwang.toml --meter m-001

    A file, as for `shuiwang backtest`:

        shuiwang advise readings.csv --timezone Asia/Shanghai --values cumulative

    Exit code 0: advised; 2: the options or the files cannot be used; 5: the store cannot be read.
    """
    from agent.backtest import advising
    from agent.backtest.columns import parse_columns
    from agent.backtest.problems import InputProblem
    from gateway.store import StoreError

    try:
        if (source is None) == (config is None):
            raise InputProblem("give either a file with readings or -c CONFIG")
        if config is not None:
            given = [option for option in (timezone, values, columns) if option is not None]
            if given or skip_bad:
                raise InputProblem("-c CONFIG knows timezone, values and columns; leave these options out")
            advised = advising.of_gateway(_load_config(config), meters=meter or [])
        else:
            assert source is not None
            advised = advising.of_file(
                source,
                timezone=_timezone(timezone),
                values=_values(values),
                columns=parse_columns(columns) if columns else None,
                meters=meter or [],
                skip_bad=skip_bad,
            )
    except StoreError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(ExitCode.STORE) from None
    except InputProblem as problem:
        fail(str(problem))
    if as_json:
        print_json(advising.as_data(advised))
    else:
        advising.show(advised)


def _load_config(path: Path) -> "Config":
    from agent.config import ConfigError, load
    from protocols.errors import ProfileError

    try:
        return load(path)
    except (ConfigError, ProfileError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(ExitCode.CONFIGURATION) from None
