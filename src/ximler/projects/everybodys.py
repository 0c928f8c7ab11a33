"""Search across all users' projects, for operators.

It uses the specification's text index: whole words of name and description in any of their English forms, as
alternatives, `"a phrase"`, and `-without`. A common word reads every project that has it, so customers search
by `finding` instead.
"""

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.collection import Page
from ximler.projects.projects import ProjectSummary

__all__ = ["search"]

_MAX_SEARCH = 200


async def search(
    database: Database, actor: Actor, text: str, *, first: int = 20, after: Position | None = None
) -> Page[ProjectSummary]:
    """Projects of all users that match a text, without deleted ones, newest first.
    Audits whose projects were seen.

    Two commands. Raises Invalid, Forbidden.
    """
    actor.require_operator()
    text = text.strip()
    if not 0 < len(text) <= _MAX_SEARCH or "\0" in text:
        raise Invalid.field("search", f"needs 1 to {_MAX_SEARCH} characters, none of them NUL")
    where = {"$text": {"$search": text}}
    page = await database.projects.page(where, into=ProjectSummary, first=first, after=after)
    seen = list(dict.fromkeys(each.user_id for each in page.items))
    await records.write(database, actor, Action.PROJECTS_SEARCHED, resource="projects", seen=seen)
    return page
