"""Who acts."""

import pytest
from bson import ObjectId

from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import Unauthenticated


def test_a_signed_in_user_has_an_id() -> None:
    user_id = ObjectId()
    assert Actor(kind="user", via="session", user_id=user_id).require_user() == user_id


@pytest.mark.parametrize("nobody", [Actor(), SYSTEM, Actor(kind="operator", via="cli")])
def test_anonymous_callers_are_asked_to_sign_in(nobody: Actor) -> None:
    with pytest.raises(Unauthenticated, match="Sign in first"):
        nobody.require_user()


def test_an_actor_may_do_nothing_by_default_and_cannot_be_changed() -> None:
    assert Actor().scopes == frozenset()
    with pytest.raises(AttributeError):
        Actor().kind = "system"  # type: ignore[misc]  # that is the point
