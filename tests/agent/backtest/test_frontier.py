"""The backtest on real homes says what `benchmarks/frontier.py` says, which judges hourly bins with code of its own.

They differ a little: the frontier takes readings to come at every full hour, and red to need no rule of the county's;
the backtest goes by the readings' own times (in D001 a quarter of the hours has none).
"""

import frontier
import pytest
from silence_rules import own_limits

from agent.backtest.columns import parse_columns
from agent.backtest.rules import parse_rules
from agent.backtest.score import RED, figures_of
from agent.backtest.splitting import Part
from agent.backtest.work import Job, work_on
from agent.detection.limit import COST_H


@pytest.mark.parametrize("household", ["D001", "D067"])
def test_red_on_a_real_home_agrees_with_the_frontier(households, household):
    home = frontier.load(households, household)
    proofs = frontier.real_use(home)
    silences = frontier.silences(home, proofs)
    expected = frontier.score(proofs, silences, own_limits(home, proofs, cost_h=COST_H))
    mean_h = sum(delay * count for delay, count in expected.delays.items()) / expected.delays.total()

    job = Job(
        rules=parse_rules(["home="]),
        timezone="Europe/Madrid",
        columns=parse_columns("timestamp_local,household,litres_cum"),
        meters=frozenset({household}),
        stops=1500,
        seed=1,
    )
    (found,) = work_on(Part(source=households, path=households), job).homes
    figures = figures_of(found.scores[0])
    assert figures.months == pytest.approx(expected.months, rel=0.02)
    assert figures.alerts[RED] == pytest.approx(expected.alarms, abs=1)
    assert figures.delays[RED].mean_h == pytest.approx(mean_h, rel=0.05)
    assert figures.delays[RED].missed == 0
