"""Figures: months count in alerts, homes count alike in delays."""

from collections import Counter

import pytest

from agent.backtest.score import MONTH_H, RED, YELLOW, HomeScore, Sum, figures_of
from agent.backtest.stops import Delays

MONTH_MS = round(MONTH_H * 3_600_000)


def home(*, months=1.0, yellow=0, red=0, delays=None, standing=0, missed=0, red_ms=0):
    still = round(months * MONTH_MS)
    found = Delays(minutes=Counter(delays or {}), standing=standing, missed=missed)
    return HomeScore(
        home_ms=(still - red_ms, 0, red_ms),
        away_ms=MONTH_MS,
        alerts={YELLOW: yellow, RED: red},
        absence_alerts={YELLOW: 1, RED: 1},
        others={"leak": 1},
        yellow=Delays() if delays is not None else None,
        red=found if delays is not None else None,
    )


def test_alerts_count_by_month_at_home():
    total = Sum()
    total.add(home(months=3, yellow=6, red=3))
    total.add(home(months=1, yellow=2, red=0))
    figures = total.figures()
    assert figures.per_month == {YELLOW: 2.0, RED: 0.75}
    assert (figures.months, figures.away_months) == (4.0, 2.0)
    assert figures.absence_alerts == {YELLOW: 2, RED: 2}
    assert figures.others == {"leak": 2}
    assert figures.delays is None


def test_in_delays_each_home_weighs_the_same():
    total = Sum()
    total.add(home(delays={60: 1000}, standing=5))
    total.add(home(delays={600: 9, 1200: 1}, missed=2))
    red = total.figures().delays[RED]
    assert (red.stops, red.standing, red.missed) == (1017, 5, 2)
    assert red.median_h == 1.0
    assert red.mean_h == pytest.approx((1 + 0.9 * 10 + 0.1 * 20) / 2)
    assert red.p90_h == 10.0


def test_shares_of_time_are_means_of_the_homes():
    total = Sum()
    total.add(home(months=9, red_ms=0))
    total.add(home(months=1, red_ms=MONTH_MS // 2))
    assert total.figures().standing == {YELLOW: 0.25, RED: 0.25}


def test_nothing_to_judge_gives_no_figures():
    figures = figures_of(home(months=0, delays={}))
    assert figures.per_month == {YELLOW: None, RED: None}
    assert figures.standing == {YELLOW: None, RED: None}
    assert figures.delays[RED].median_h is None
