import tracemalloc

import pytest


@pytest.fixture
def left_behind():
    """A function that measures bytes: what a third month takes when two have filled all that has a size."""

    def measure(month):
        month(0)
        tracemalloc.start()
        month(1)
        before = tracemalloc.get_traced_memory()[0]
        month(2)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        return grown

    return measure
