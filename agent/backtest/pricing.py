"""Which price of a false red alert suits a home: what it has shown, weighed with what real homes have shown.

One quiet month says little: on the one-resident homes of decision 4, a month without one red alert at a price of 400
was followed by 1.9 a month. So what a home shows counts for as long as it lasted (Poisson), beside what such homes had
(a gamma prior). With reds counted in so many months at home, those to expect in a month to come are

    (SHAPE + reds) / (SHAPE / usual + months)
"""

import itertools
import math
from collections.abc import Mapping
from typing import Final

# Red alerts a month at home by red_cost_h: docs/decisions/0004, the homes that were trained on.
USUAL: Final = {400: 2.5, 1_500: 1.0, 4_000: 0.6}
# From home to home these rates scatter by about half their mean: as a gamma distribution of this shape does.
SHAPE: Final = 4
EXPECTED_MAX: Final = 1.0  # red alerts a month that a village can answer for one home: each sends somebody to the door
MONTHS_LEAST: Final = 0.9  # at home: with less, nothing that is set is changed


def usual_reds(cost_h: int) -> float:
    """Return the red alerts a month of real homes at a price; between the known prices, and beyond, by power laws."""
    known = sorted(USUAL.items())
    pairs = list(itertools.pairwise(known))
    (low_h, low), (high_h, high) = next((pair for pair in pairs if cost_h <= pair[1][0]), pairs[-1])
    share = math.log(cost_h / low_h) / math.log(high_h / low_h)
    return low * math.pow(high / low, share)


def expected_reds(cost_h: int, *, reds: int, months: float) -> float:
    """Return the red alerts to expect in a month at home, after so many in so many months at home."""
    return (SHAPE + reds) / (SHAPE / usual_reds(cost_h) + months)


def suitable_cost_h(reds: Mapping[int, int], *, months: float, configured: int) -> int:
    """Return the cheapest price at which less than `EXPECTED_MAX` red alerts a month are to be expected.

    `reds` are those of each price in the same months at home. Where no price does, the one with the fewest; what is
    configured where less than `MONTHS_LEAST` have been seen.
    """
    if months < MONTHS_LEAST:
        return configured
    expected = {cost_h: expected_reds(cost_h, reds=count, months=months) for cost_h, count in reds.items()}
    few = [cost_h for cost_h, count in expected.items() if count < EXPECTED_MAX]
    return min(few, default=min(expected, key=lambda cost_h: (expected[cost_h], cost_h)))
