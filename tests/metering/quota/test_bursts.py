"""Burst limits: never more than the bucket holds, never less than the rate gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ximler.metering.quota.bursts import BurstExceeded, Bursts


class Hand:
    """Bursts, by a clock that the test moves."""

    def __init__(self, *, rate: float, size: int) -> None:
        self.now = 1000.0
        self.bursts = Bursts("you", rate=rate, size=size)

    def take(self, caller: object, n: int = 1) -> float:
        """Seconds to wait; 0 when they were taken."""
        try:
            self.left = self.bursts.take(caller, n, self.now)
        except BurstExceeded as refused:
            return refused.retry_after_s or float("nan")
        return 0


def test_a_burst_is_granted_at_once_and_then_the_rate_applies() -> None:
    hand = Hand(rate=10, size=5)
    assert [(hand.take("a"), hand.left) for _ in range(5)] == [(0, left) for left in (4, 3, 2, 1, 0)]
    assert 0 < hand.take("a") < 0.1001
    hand.now += 0.1001
    assert hand.take("a") == 0
    assert hand.take("a") > 0


def test_callers_do_not_share_a_bucket() -> None:
    hand = Hand(rate=1, size=1)
    assert hand.take("a") == 0
    assert hand.take("b") == 0
    assert hand.take("a") > 0


def test_a_rejection_takes_nothing_and_names_the_limit() -> None:
    hand = Hand(rate=1, size=3)
    assert hand.take("a", 2) == 0
    assert 0.999 < hand.take("a", 2) < 1.001
    assert hand.take("a") == 0
    assert hand.left == 0
    with pytest.raises(BurstExceeded, match="you may make 1 calls a second, and 3 at once"):
        hand.bursts.take("a", 1, hand.now)


def test_returned_units_can_be_taken_again() -> None:
    hand = Hand(rate=1, size=3)
    assert hand.take("a", 3) == 0
    hand.bursts.put_back("a", 2)
    assert hand.take("a", 2) == 0
    assert hand.take("a") > 0


def test_more_units_than_the_bucket_holds_are_always_rejected() -> None:
    hand = Hand(rate=1, size=3)
    for _ in range(3):
        assert hand.take("a", 4) == 3600
        hand.now += 3600


def test_a_caller_that_waits_for_retry_after_is_served() -> None:
    hand = Hand(rate=7, size=3)
    for _ in range(100):
        if wait := hand.take("a"):
            hand.now += wait * 1.0001
            assert hand.take("a") == 0


def test_full_buckets_are_removed() -> None:
    hand = Hand(rate=1000, size=10)
    for n in range(100_000):
        hand.now += 0.001
        assert hand.take(n) == 0
    assert len(hand.bursts) <= 10_001


@given(
    rate=st.floats(0.5, 1000), size=st.integers(1, 50), steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 9)))
)
def test_in_any_span_no_more_than_size_and_rate_allow(rate: float, size: int, steps: list[tuple[float, int]]) -> None:
    hand = Hand(rate=rate, size=size)
    room = float(size)  # as a bucket that is filled drop by drop has it
    taken: list[tuple[float, int]] = []
    for pause, n in steps:
        hand.now += pause
        room = min(float(size), room + pause * rate)
        if hand.take("a", n) == 0:
            taken.append((hand.now, n))
            assert n <= room + 1e-3
            room = max(0.0, room - n)
            assert abs(hand.left - room) < 1.001
        else:
            assert n > room - 1e-3
    for i, (start, _) in enumerate(taken):
        spent = 0
        for moment, n in taken[i:]:
            spent += n
            assert spent <= size + (moment - start) * rate + 1e-3
