"""What the service manager is told."""

import socket

import pytest

from gateway.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A socket as systemd's, and its address as systemd writes it."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + path[1:] if request.param == "abstract" else path)
        receiver.settimeout(1)
        yield receiver, "@" + path[1:] if request.param == "abstract" else path


def test_every_notification_arrives(manager):
    receiver, address = manager
    notifier = Notifier(address)
    notifier.ready("watching 3 meters on 1 buses")
    notifier.alive()
    notifier.stopping()
    said = [receiver.recv(1000) for _ in range(3)]
    assert said == [b"READY=1\nSTATUS=watching 3 meters on 1 buses", b"WATCHDOG=1", b"STOPPING=1"]


def test_the_address_comes_from_the_environment(manager, monkeypatch):
    receiver, address = manager
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    Notifier().alive()
    assert receiver.recv(1000) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@nobody-listens-here", "x" * 200])
def test_nobody_who_listens_is_no_error(address, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    for notifier in (Notifier(address), Notifier()):
        notifier.ready("here")
        notifier.alive()
        notifier.stopping()
