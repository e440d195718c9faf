import itertools

import pytest


@pytest.fixture
def new_id():
    numbers = itertools.count(1)
    return lambda: f"01ARZ3NDEKTSV4RRFFQ69G{next(numbers):04d}"
