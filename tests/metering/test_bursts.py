"""Burst limits: never more than the bucket holds, never less than the rate gives."""

from hypothesis import given
from hypothesis import strategies as st

from ximler.metering.bursts import Bursts


class Hand:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_taken_at_once_and_then_the_rate_holds() -> None:
    clock = Hand()
    bursts = Bursts(rate=10, size=5, clock=clock)
    assert [bursts.take("a") for _ in range(5)] == [0] * 5
    assert 0 < bursts.take("a") < 0.1001
    clock.now += 0.1001
    assert bursts.take("a") == 0
    assert bursts.take("a") > 0


def test_callers_do_not_share_a_bucket() -> None:
    bursts = Bursts(rate=1, size=1, clock=Hand())
    assert bursts.take("a") == 0
    assert bursts.take("b") == 0
    assert bursts.take("a") > 0


def test_a_refusal_takes_nothing() -> None:
    clock = Hand()
    bursts = Bursts(rate=1, size=3, clock=clock)
    assert bursts.take("a", 2) == 0
    assert 0.999 < bursts.take("a", 2) < 1.001
    assert bursts.left("a") == 1
    assert bursts.take("a") == 0


def test_more_than_the_bucket_holds_never_fits() -> None:
    assert Bursts(rate=1, size=3, clock=Hand()).take("a", 4) == float("inf")


def test_who_waits_as_long_as_told_is_served() -> None:
    clock = Hand()
    bursts = Bursts(rate=7, size=3, clock=clock)
    for _ in range(100):
        if wait := bursts.take("a"):
            clock.now += wait * 1.0001
            assert bursts.take("a") == 0


def test_full_buckets_are_forgotten() -> None:
    clock = Hand()
    bursts = Bursts(rate=1000, size=10, clock=clock)
    for n in range(100_000):
        clock.now += 0.001
        assert bursts.take(n) == 0
    assert len(bursts) <= 10_001


@given(
    rate=st.floats(0.5, 1000), size=st.integers(1, 50), steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 9)))
)
def test_in_any_span_no_more_than_size_and_rate_allow(rate: float, size: int, steps: list[tuple[float, int]]) -> None:
    clock = Hand()
    bursts = Bursts(rate=rate, size=size, clock=clock)
    taken: list[tuple[float, int]] = []
    for pause, n in steps:
        clock.now += pause
        before = bursts.left("a")
        if bursts.take("a", n) == 0:
            taken.append((clock.now, n))
            assert n <= before
        else:
            assert n > before
            assert bursts.left("a") == before
    for i, (start, _) in enumerate(taken):
        spent = 0
        for moment, n in taken[i:]:
            spent += n
            assert spent <= size + (moment - start) * rate + 1e-3
