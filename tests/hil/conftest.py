"""The acceptance suite runs against simulated meters, or with `--hil-port` and `--hil-meters` against real ones."""

from pathlib import Path

import pytest
from hil import bench as benches
from hil import report as reports


def pytest_addoption(parser):
    group = parser.getgroup("hil", "meters on the bench 实物验收")
    group.addoption("--hil-port", metavar="PORT", help="the port with the real meters 串口")
    group.addoption("--hil-meters", metavar="FILE", help="TOML: the meters that are expected there 水表清单")
    group.addoption("--hil-report", metavar="FILE", help="where the report goes (Markdown) 报告文件")
    group.addoption("--hil-reads", metavar="N", type=int, default=10, help="how often each meter is read 次数")
    group.addoption("--hil-interactive", action="store_true", help="ask for what only hands can do 需要人工配合的检查")


def option(config, name):
    """An option's value; its default where this folder's options were not loaded (a run of the whole suite)."""
    return config.getoption(name, default=10 if name == "hil_reads" else None)


def pytest_configure(config):
    config.addinivalue_line("markers", "check(name): the line of the report that a test fills")
    port, meters = option(config, "hil_port"), option(config, "hil_meters")
    if (port is None) != (meters is None):
        raise pytest.UsageError("--hil-port and --hil-meters go together 两个选项要一起给")
    if port is not None:
        try:
            listed, line = benches.read_list(meters)
        except benches.WrongList as error:
            raise pytest.UsageError(str(error)) from error
        config.stash[BENCH] = benches.Bench(port, line, listed, is_simulated=False)


def pytest_generate_tests(metafunc):
    if "meter" in metafunc.fixturenames:
        real = metafunc.config.stash.get(BENCH, None)
        meters = real.meters if real else SIMULATED
        metafunc.parametrize("meter", meters, ids=[meter.label for meter in meters])


@pytest.fixture(scope="session")
def bench(request, tmp_path_factory):
    """The line under test, real or simulated."""
    real = request.config.stash.get(BENCH, None)
    if real is not None:
        yield real
        _file(real, request.config)
        return
    with benches.simulated(tmp_path_factory.mktemp("bench")) as simulated:
        yield simulated
        _file(simulated, request.config)


@pytest.fixture
def reads(request):
    """How often each meter is read in a series."""
    return option(request.config, "hil_reads")


@pytest.fixture
def is_interactive(request):
    """Whether somebody is there who can pull a plug."""
    return bool(option(request.config, "hil_interactive"))


@pytest.fixture
def say(bench, request):
    """Say what was measured: it goes into the report beside the outcome."""
    said = []
    yield said.append
    outcome = request.node.stash.get(OUTCOME, "failed")
    meter = request.node.callspec.params["meter"].label if hasattr(request.node, "callspec") else "–"
    check = request.node.get_closest_marker("check").args[0]
    detail = "; ".join(said) or request.node.stash.get(REASON, "")
    bench.results.append(benches.Result(check=check, meter=meter, outcome=outcome, detail=detail))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    made = yield
    if made.when == "call":
        item.stash[OUTCOME] = made.outcome
        if made.skipped and isinstance(made.longrepr, tuple):
            item.stash[REASON] = made.longrepr[2]
        elif made.failed and call.excinfo is not None:
            item.stash[REASON] = call.excinfo.exconly()[:200]
    return made


def _file(bench, config):
    path = option(config, "hil_report")
    if path and bench.results:
        Path(path).write_text(reports.render(bench, wall_ms=bench.clock.now().wall_ms), encoding="utf-8")


BENCH = pytest.StashKey()
OUTCOME = pytest.StashKey()
REASON = pytest.StashKey()
SIMULATED = [
    benches.Expected(profile=profile, address=address, expected_m3=m3, tolerance_m3="0.01")
    for profile, address, m3 in benches.SIMULATED_METERS
]
