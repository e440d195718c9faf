import itertools

import pytest
from stores import StoreHere


@pytest.fixture
def new_id():
    numbers = itertools.count(1)
    return lambda: f"01ARZ3NDEKTSV4RRFFQ69G{next(numbers):04d}"


@pytest.fixture
def store(tmp_path):
    here = StoreHere(tmp_path / "store.db")
    yield here
    here.store.close()
