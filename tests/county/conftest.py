"""Fixtures of the county's tests."""

import sys
from pathlib import Path

import pytest
from partners.mosquitto import Mosquitto

from county.receiver import Receiver
from county.store import Store

sys.path.insert(0, str(Path(__file__).parent))  # for samples.py


@pytest.fixture
def mosquitto(tmp_path):
    """A running mosquitto."""
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    broker = Mosquitto(folder)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def store(tmp_path):
    """An empty database."""
    opened = Store(tmp_path / "county.db")
    yield opened
    opened.close()


@pytest.fixture
def receiver(store):
    return Receiver(store)
