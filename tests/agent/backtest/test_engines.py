"""The outcome does not depend on where, or on how many cores, the work is done."""

import msgspec
import pytest

from agent.backtest import engines
from agent.backtest.engines import run_here, run_on_cluster
from agent.backtest.problems import InputProblem
from agent.backtest.rules import parse_rules
from agent.backtest.splitting import Part
from agent.backtest.work import Job

JOB = Job(
    rules=parse_rules(["home=", "fixed=fixed_h:12"]),
    timezone="Asia/Shanghai",
    learn_days=10,
    stops=20,
    seed=3,
    episodes=True,
)


@pytest.fixture(scope="module")
def village(tmp_path_factory, life, write_csv):
    folder = tmp_path_factory.mktemp("village")
    homes = [life(f"m-{n}", days=25, seed=n, away=((20, 22),) if n == 2 else ()) for n in range(5)]
    return [Part(source=path, path=path) for path in (write_csv(folder / f"{h.meter}.csv", [h]) for h in homes)]


def encoded(results):
    return [msgspec.json.encode(result) for result in results]


@pytest.fixture(scope="module")
def alone(village):
    return encoded(run_here(village, JOB, jobs=1))


def test_one_process_or_several(village, alone):
    assert encoded(run_here(village, JOB, jobs=2)) == alone
    assert len(alone) == len(village)


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_a_local_cluster(village, alone):
    assert encoded(run_on_cluster(village, JOB, address="local", jobs=2)) == alone


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_a_cluster_that_somebody_else_started(village, alone):
    import distributed

    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as cluster:
        assert encoded(run_on_cluster(village, JOB, address=cluster.scheduler_address, jobs=1)) == alone


def test_a_cluster_that_does_not_answer_is_said(village, monkeypatch):
    monkeypatch.setattr(engines, "CLUSTER_WAIT_S", 0.5)
    with pytest.raises(InputProblem, match=r"--cluster tcp://127\.0\.0\.1:9: no scheduler answers"):
        list(run_on_cluster(village, JOB, address="tcp://127.0.0.1:9", jobs=1))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bad_row_ends_it_wherever_it_is_found(village, tmp_path, jobs):
    bad = tmp_path / "bad.csv"
    bad.write_text("timestamp,meter,litres_cum\nsoon,m,1\n", encoding="utf-8")
    with pytest.raises(InputProblem, match=r"bad\.csv:2: 'soon' is no time"):
        list(run_here([*village, Part(source=bad, path=bad)], JOB, jobs=jobs))


def test_no_more_than_a_few_parts_are_under_way(village):
    under_way = most = 0

    class Future:
        def result(self):
            nonlocal under_way
            under_way -= 1
            return "done"

    def submit(_part):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        return Future()

    assert len(list(engines._in_order(village * 10, submit, ahead=4))) == 50
    assert most == 4
