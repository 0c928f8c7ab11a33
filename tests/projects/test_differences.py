"""Differences of canvases as JSON Patch."""

import copy
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ximler.projects.differences import TooDifferent, between
from ximler.projects.positional import patched

scalars = st.none() | st.booleans() | st.sampled_from([0, 1, 1.0, -0.0, 2**53 + 1, "", "a", "~/", "1"])
shapes = st.lists(
    st.builds(lambda name, x: {"id": name, "x": x}, st.sampled_from("abcdef"), scalars),
    max_size=6,
    unique_by=lambda shape: shape["id"],
)
values = st.recursive(
    scalars | shapes,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "~/", "id"]), inner),
    max_leaves=12,
)


@pytest.mark.slow
@given(values, values)
def test_a_difference_leads_from_one_canvas_to_the_other(before: Any, after: Any) -> None:
    result = patched(copy.deepcopy(before), between(before, after))
    assert msgspec.json.encode(result, order="sorted") == msgspec.json.encode(after, order="sorted")


def test_shapes_are_compared_by_id() -> None:
    before = [{"id": str(n), "x": n} for n in range(100)]
    after = copy.deepcopy(before)
    after.insert(0, {"id": "new"})
    after.append(after.pop(50))
    del after[20]
    after[60]["x"] = -1
    assert len(between({"elements": before}, {"elements": after})) == 5  # a move is two


def test_canvases_that_differ_too_much_are_refused() -> None:
    with pytest.raises(TooDifferent):
        between({"a": [0] * 10_001}, {"a": [1] * 10_001})


@pytest.mark.slow
def test_the_work_of_a_comparison_is_bounded() -> None:
    before: Any = {"large": "x" * 4_000_000, "n": 0}
    after: Any = {"large": "x" * 4_000_000, "n": 1}
    for _ in range(90):
        before, after = {"a": before}, {"a": after}
    began = time.process_time()
    with pytest.raises(TooDifferent, match="levels"):
        between(before, after)
    assert time.process_time() - began < 3
