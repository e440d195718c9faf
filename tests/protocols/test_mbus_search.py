"""The search finds every meter on simulated lines, whatever numbers they have, and says where it cannot."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import mbus, mbus_dialogue
from protocols.mbus import Identity
from protocols.mbus_data import MbusSpec
from protocols.mbus_dialogue import Slave
from protocols.mbus_search import Heard, Search


def meter(number, *, manufacturer=0x4024, version=1, medium=7):
    return Identity(number=number, manufacturer=manufacturer, version=version, medium=medium)


def slaves_of(identities):
    def telegrams(identity):
        return lambda: [mbus_dialogue.total_telegram(MbusSpec(), identity, 5_000)]

    return [Slave(identity=identity, telegrams=telegrams(identity)) for identity in identities]


def run(slaves, *, mask=None, acks_collide=False, limit=5_000):
    """Search a line on which answers that come at once are one collision, or clean where they are all the same."""
    search = Search(mask)
    queries = search.queries()
    asked, query = 0, next(queries)
    try:
        while True:
            asked += 1
            assert asked <= limit, "the search does not end"
            assert 0 <= search.explored <= 1
            answers = [answer for slave in slaves if (answer := slave.answer(query.frame))]
            if not answers:
                heard = Heard.SILENCE
            elif len(answers) > 1 and (query.wants_data or acks_collide):
                heard = Heard.COLLISION
            else:
                heard = query.reader().feed(answers[0])
            query = queries.send(heard)
    except StopIteration:
        assert search.explored == 1
        return search, asked


class TestFinding:
    def test_nobody(self):
        search, asked = run([])
        assert (search.found, search.unresolved, asked) == ([], [], 1)

    def test_one(self):
        search, asked = run(slaves_of([meter("00123456")]))
        assert (search.found, search.unresolved, asked) == ([meter("00123456")], [], 2)

    @pytest.mark.parametrize("acks_collide", [False, True])
    def test_sixty_neighbours(self, acks_collide):
        """A delivery: consecutive numbers, the worst case of the search."""
        wanted = [meter(f"{number:08d}") for number in range(12_345_670, 12_345_730)]
        search, asked = run(slaves_of(wanted), acks_collide=acks_collide)
        assert search.found == wanted
        assert search.unresolved == []
        assert asked < 300

    @given(st.sets(st.integers(0, 10**8 - 1) | st.integers(12_345_600, 12_345_699), max_size=12), st.booleans())
    def test_any(self, numbers, acks_collide):
        wanted = [meter(f"{number:08d}") for number in sorted(numbers)]
        search, _ = run(slaves_of(wanted), acks_collide=acks_collide)
        assert search.found == wanted
        assert search.unresolved == []

    @pytest.mark.parametrize(
        "twin",
        [
            meter("00123456", medium=6),
            meter("00123456", version=2),
            meter("00123456", medium=0x16, version=9),
            meter("00123456", manufacturer=0x0477),
            meter("00123456", manufacturer=0x4025),
        ],
    )
    def test_two_with_the_same_number(self, twin):
        search, _ = run(slaves_of([meter("00123456"), twin]))
        assert {str(identity) for identity in search.found} == {str(meter("00123456")), str(twin)}
        assert search.unresolved == []

    def test_twins_wait_until_everybody_else_is_found(self):
        """They cost hundreds of selections, and whoever drives the search may give up."""
        slaves = slaves_of([meter("00123456"), meter("00123456", manufacturer=0x0477), meter("98765432")])
        search = Search()
        queries = search.queries()
        query, asked = next(queries), 0
        while not search.found:
            asked += 1
            answers = [answer for slave in slaves if (answer := slave.answer(query.frame))]
            is_clash = len(answers) > 1 and query.wants_data
            query = queries.send(Heard.COLLISION if is_clash else query.reader().feed(answers[0]) if answers else
                                 Heard.SILENCE)  # fmt: skip
        assert (search.found, asked < 150) == ([meter("98765432")], True)

    def test_two_that_nothing_tells_apart(self):
        search, _ = run(slaves_of([meter("00123456"), meter("00123456"), meter("00123457")]))
        assert search.found == [meter("00123457")]
        assert search.unresolved == [meter("00123456")]

    def test_two_that_heed_no_narrower_mask_are_named(self):
        """Meters that know FFFF for any maker, and no single byte of it."""
        slaves = slaves_of([meter("00123456"), meter("00123456", manufacturer=0x0477)])

        class Strict:
            def __init__(self, slave):
                self.slave = slave

            def answer(self, frame):
                half = frame.ci == mbus.SELECT and (frame.data[4] == 0xFF) != (frame.data[5] == 0xFF)
                return self.slave.answer(frame) if not half else None

        search, _ = run([Strict(slave) for slave in slaves])
        assert search.found == []
        assert search.unresolved == [Identity(number="00123456", version=1, medium=7)]

    @pytest.mark.parametrize("other", ["12345678", "A2345679", "A2345E78"])
    def test_numbers_with_letters_are_found(self, other):
        search, _ = run(slaves_of([meter("A2345678"), meter(other)]))
        assert {identity.number for identity in search.found} == {"A2345678", other}

    def test_below_a_mask(self):
        search, _ = run(slaves_of([meter("00123456"), meter("50123456")]), mask=Identity(number="5FFFFFFF"))
        assert search.found == [meter("50123456")]

    def test_a_meter_that_is_found_twice_is_listed_once(self):
        search = Search(Identity(number="0012345F"))
        queries = search.queries()
        (slave,) = slaves_of([meter("00123456")])
        next(queries)
        query = queries.send(Heard.COLLISION)  # noise
        for _ in range(10):
            slave.is_selected = True
            query = queries.send(b"\xe5")
            assert query.wants_data
            answer = slave.answer(mbus.request_data(mbus.SELECTED, frame_count_bit=True).frame)
            try:
                query = queries.send(answer)
            except StopIteration:
                break
        assert search.found == [meter("00123456")]


class TestDisturbances:
    def test_noise_in_place_of_silence_costs_time_only(self):
        noisy = iter([True] * 20)
        (slave,) = slaves_of([meter("00123456")])
        search = Search()
        queries = search.queries()
        query = next(queries)
        try:
            while True:
                answer = slave.answer(query.frame)
                heard = Heard.COLLISION if next(noisy, False) else answer or Heard.SILENCE
                query = queries.send(heard)
        except StopIteration:
            pass
        assert meter("00123456") in search.found or search.unresolved
        assert search.explored == Fraction(1)

    def test_a_meter_that_acknowledges_and_sends_nothing_is_named(self):
        (slave,) = slaves_of([meter("00123456")])
        search = Search(Identity(number="00123456", medium=7))
        queries = search.queries()
        query = next(queries)
        try:
            while True:
                answer = slave.answer(query.frame)
                query = queries.send(Heard.SILENCE if query.wants_data else answer or Heard.SILENCE)
        except StopIteration:
            pass
        assert search.found == []
        assert search.unresolved == [Identity(number="00123456", medium=7)], "one meter: there is nobody to tell apart"
