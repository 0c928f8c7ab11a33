import re

import pytest

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.database import Database


def test_every_action_is_source_subject_verb_with_a_meaning() -> None:
    for action in Action:
        assert re.fullmatch(r"[a-z]+\.[a-z_]+\.[a-z_]+", action.value)
        assert action.meaning.endswith(".")
    assert len({action.value for action in Action}) == len(list(Action.__members__))


def test_stored_action_values_never_change() -> None:
    """A sample: searches, exports and other applications rely on them."""
    assert [Action.PASSWORD_CHANGED, Action.PROJECT_CREATED, Action.PERSON_ERASED] == [
        "accounts.password.changed",
        "projects.project.created",
        "audit.person.erased",
    ]


async def test_a_typo_is_no_new_action(database: Database) -> None:
    with pytest.raises(ValueError, match=r"accounts\.pasword\.changed"):
        await records.write(database, Actor(), "accounts.pasword.changed", resource="users")  # type: ignore[arg-type]
    assert await database.audit_logs.count({}) == 0
