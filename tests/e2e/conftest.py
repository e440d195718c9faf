import contextlib
import json

import pytest
from partners.mosquitto import Mosquitto
from partners.plain_county import PlainCounty
from partners.processes import ModbusLine, Running, run_shuiwang, shuiwang, wait_until

CONFIG = """
[gateway]
id = "g-0371522"
county = "shenxian"
data_dir = "{folder}/data"
timezone = "Asia/Shanghai"

[broker]
url = "mqtt://127.0.0.1:{broker_port}"
{broker}

[[bus]]
name = "rs485-1"
port = "{port}"

[detection]
window_h = {window_h}
threshold_m3 = "0.1"
"""
# The meters answer at once, but on a busy machine they may stand still for 0.2 s: that is no failure of theirs.
METER = """
[[meter]]
id = "m-{unit:03}"
bus = "rs485-1"
profile = "usw-dn15-40"
address = "{unit}"
poll_every_s = {poll_every_s}
timeout_ms = 500
"""


class World:
    """A village of USW meters, a broker, a county, and an agent that the test starts and stops."""

    def __init__(self, folder, stack):
        self.folder = folder
        self.broker = stack.enter_context(Mosquitto(folder / "broker"))
        self.config = folder / "shuiwang.toml"
        self._stack = stack
        self._agents = 0

    def meters(self, *units):
        """Third-party meters on a pty."""
        self.line = self._stack.enter_context(ModbusLine(self.folder, *units))
        return self.line

    def county(self, **options):
        """A county that knows the design's page only."""
        county = PlainCounty(self.broker.port, **options)
        self._stack.callback(county.close)
        return county

    def configure(self, units, *, port=None, window_h=12, poll_every_s=0.3, broker=""):
        text = CONFIG.format(
            folder=self.folder,
            broker_port=self.broker.port,
            port=port or self.line.port,
            window_h=window_h,
            broker=broker,
        )
        meters = "".join(METER.format(unit=unit, poll_every_s=poll_every_s) for unit in units)
        self.config.write_text(text + meters, encoding="utf-8")

    def agent(self, **options):
        """Start `shuiwang run`."""
        self._agents += 1
        log = self.folder / f"agent-{self._agents}.log"
        return self._stack.enter_context(Running(log, *shuiwang("run", "-c", self.config), **options))

    def status(self):
        """What `shuiwang status` says."""
        done = run_shuiwang("status", "-c", self.config, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def world(tmp_path):
    with contextlib.ExitStack() as stack:
        yield World(tmp_path, stack)


@pytest.fixture
def soon():
    return wait_until
