"""The tree of errors: every leaf has its own code, and its words say what the poller does next."""

import inspect

import pytest

from protocols import errors

EVERY = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
LEAVES = [kind for kind in EVERY if issubclass(kind, errors.MeterError) and kind is not errors.MeterError]


def test_there_is_one_tree():
    assert all(issubclass(kind, errors.ShuiwangError) for kind in EVERY)


def test_our_mistakes_are_never_taken_for_the_meters():
    for ours in (errors.UsageError, errors.ProfileError, errors.ContractError):
        assert not issubclass(ours, errors.MeterError)


def test_the_reasons_are_these_because_counties_store_them():
    assert {kind.__name__: kind.reason for kind in LEAVES} == {
        "PortLost": "port_lost",
        "NoResponse": "no_response",
        "Garbled": "garbled",
        "WrongAnswer": "wrong_answer",
        "MeterRefused": "refused",
        "MeterFault": "meter_fault",
    }


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_each_leaf_is_a_leaf_and_says_what_happens_next(kind):
    assert not kind.__subclasses__()
    assert any(word in kind.__doc__ for word in ("The poller", "No repeat"))
