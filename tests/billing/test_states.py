"""The table of states: statuses and events that exist, and the same table in the guide."""

import re
from pathlib import Path
from typing import get_args

import pytest

from ximler.billing import states
from ximler.schema.subscription import SubscriptionStatus

DOCS = Path(__file__).resolve().parents[2] / "docs" / "billing.md"


def test_every_event_has_a_row_and_every_status_exists() -> None:
    assert set(states.TABLE) == set(get_args(states.Event))
    known = set(get_args(SubscriptionStatus))
    for row in states.TABLE.values():
        assert row.keys() | set(row.values()) <= known


def test_an_ended_subscription_never_lives_again() -> None:
    for row in states.TABLE.values():
        assert not row.keys() & {"CANCELLED", "EXPIRED"}


@pytest.mark.parametrize("event", states.TABLE)
def test_the_guide_shows_the_table(event: states.Event) -> None:
    row = states.TABLE[event]
    (after,) = set(row.values())
    assert f"| {event.replace('_', ' ')} | {', '.join(row)} | {after} |" in DOCS.read_text()


def test_the_guide_draws_the_same_transitions() -> None:
    drawn = {
        (before, event.replace(" ", "_"), after)
        for before, after, events in re.findall(r"^    ([A-Z_]+) --> ([A-Z_]+): (.+)$", DOCS.read_text(), re.MULTILINE)
        for event in events.split(", ")
    }
    assert drawn == {(before, event, after) for event, row in states.TABLE.items() for before, after in row.items()}
