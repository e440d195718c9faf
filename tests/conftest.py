import os

LONG_S = 120
# The processes that the tests start by the hundred should not compile us each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def limit_s(item):
    marker = item.get_closest_marker("timeout")
    return marker.args[0] if marker else 0


def pytest_collection_modifyitems(config, items):
    """The longest tests begin first, one at each worker: behind one that begins last, the others would wait idle.

    Which they are, their own time limits say. `--dist worksteal` gives each worker an equal share in this order.
    """
    longest_first = sorted((item for item in items if limit_s(item) > LONG_S), key=limit_s, reverse=True)
    others = [item for item in items if limit_s(item) <= LONG_S]
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    ordered = []
    for worker in range(workers):
        share = (len(items) - len(ordered)) // (workers - worker)
        first = longest_first[worker::workers]
        rest = max(0, share - len(first))
        ordered += first + others[:rest]
        del others[:rest]
    items[:] = ordered + others
