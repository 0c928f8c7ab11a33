"""A customer's projects: create, change, delete, restore, list.

Invariant: a user never has more projects or bytes than their plan allows, however many requests race
(metering.quota.gauges). Projects of other users are NotFound, because the owner is part of every filter.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from bson import ObjectId

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core import names
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Forbidden, Invalid, NotFound
from ximler.core.ids import Position
from ximler.database import Database
from ximler.database.codec import part_of
from ximler.database.collection import Page
from ximler.database.pages import LATEST, Order
from ximler.database.topics import Topic
from ximler.metering.limits.plans import limits_of
from ximler.metering.quota import gauges
from ximler.projects import access, bases, finding, places, search, trash
from ximler.projects.bases import Stored
from ximler.projects.storage import CONTENT, base_in, canvas_of, measured, size_of, total_of
from ximler.projects.tags import normal as normal_tags
from ximler.schema.document import Identified, Mixed, Stamped, ref
from ximler.schema.project import ALPHABET, PROJECTS, Project
from ximler.schema.project_share import PROJECT_SHARES

__all__ = [
    "CHANGED",
    "ProjectSummary",
    "RevisionConflict",
    "canvases",
    "create",
    "delete",
    "deleted_page",
    "get",
    "get_own",
    "matching",
    "next_revision",
    "order_of",
    "owner_of",
    "page",
    "page_of",
    "restore",
    "settings_of",
    "touch",
    "update",
]

V = TypeVar("V", bound=Identified)

MAX_NAME = 200
_BEGINNING = datetime(2020, 1, 1, tzinfo=UTC)
MAX_DESCRIPTION = 5000
SORTS = {
    "CREATED": LATEST,
    "UPDATED": Order("updatedAt", b"updated"),
    "NAME": Order("name", collation=ALPHABET),
}

CHANGED = Topic(
    "projects",
    {
        PROJECTS.name: lambda change: change.id,
        PROJECT_SHARES.name: lambda change: access.project_of(change.id) if change.operation == "delete" else None,
    },
    each=False,
)
"""Writes of a project, and ends of its shares, by its id."""


class ProjectSummary(Stamped, kw_only=True):
    """A project without its large fields, as lists read it."""

    FORGIVEN: ClassVar[tuple[str, ...]] = ("description", "tags", "starred")

    user_id: Annotated[ObjectId, ref("users")]
    name: str
    description: str | None = None
    storage_size: int = 0
    canvas_revision: int = 0
    tags: list[str] = msgspec.field(default_factory=list[str])
    starred: bool = False
    deleted_at: datetime | None = None
    location: Mixed = None


class RevisionConflict(Conflict):
    """A change of the canvas is based on another revision than the stored one, which is `revision`."""

    code = "REVISION_CONFLICT"

    def __init__(self, revision: int) -> None:
        super().__init__(
            f"The canvas is at revision {revision:,}, which the change is not based on: read it again",
            fields={"base": f"the canvas is at revision {revision}"},
        )
        self.revision = revision


def next_revision(revision: int | None, now: datetime, *, above: int = 0) -> int:
    """The revision after this one; None: the project has none,
    because another application has written the whole of it.

    It may have had one before, which must not be used again: counting begins at the seconds since 2020, or
    after the last that this process has seen (`above`). GraphQL's Int has room for the seconds until 2088.
    """
    return revision + 1 if revision is not None else max(int((now - _BEGINNING).total_seconds()), above + 1)


class Settings(Identified, kw_only=True):
    settings: Mixed = msgspec.field(default_factory=dict[str, Any])


async def create(
    database: Database,
    actor: Actor,
    *,
    name: str,
    description: str | None = None,
    settings: Any = None,
    canvas_data: Any = None,
    tags: Iterable[str] | None = None,
    starred: bool | None = None,
    project_id: ObjectId | None = None,
    any_keys: bool = False,
    text: bytes | None = None,
    also: Callable[[Database], Awaitable[None]] | None = None,
    location: Mapping[str, float] | None = None,
) -> Project:
    """Create a project for the actor. Raises Invalid, QuotaExceeded.

    `any_keys` and `text` are those of `storage.canvas_of`; `also` writes in the same transaction.
    Safe to race: exactly as many succeed as the plan allows. Five commands; one more for the first where
    another application has made some before.
    """
    user_id = actor.require_user()
    settings = {} if settings is None else settings
    canvas_data = {} if canvas_data is None else canvas_data
    size, base = await asyncio.to_thread(canvas_of, canvas_data, any_keys=any_keys, text=text)
    project = Project(
        id=project_id or ObjectId(),
        user_id=user_id,
        name=_name(name),
        description=_description(description),
        settings=settings,
        canvas_data=canvas_data if base is None else None,
        canvas_base=None if base is None else base.at(0),
        storage_size=total_of({"settings": size_of("settings", settings), "canvasData": size}, apart=base is not None),
        search_terms=(words := search.terms(name, description)),
        search_keys=search.keys(words),
        tags=normal_tags(tags) or None,
        starred=starred or None,
        location=places.stored(location),
    )
    limits, existing = await gauges.room_of(database, user_id)

    async def write(transaction: Database) -> Project:
        await gauges.reserve(
            transaction, user_id, limits, projects=1, storage_bytes=project.storage_size, existing=existing
        )
        made = await transaction.projects.insert(project)
        await bases.swap(transaction, {"_id": made.id, "userId": user_id}, old=None, new=base)
        if also is not None:
            await also(transaction)
        await _record(transaction, actor, Action.PROJECT_CREATED, made, after={"name": made.name})
        return made

    made = await database.transaction(write)
    made.canvas_data = canvas_data
    return made


@access.editor
async def update(
    database: Database,
    actor: Actor,
    project_id: ObjectId,
    changes: dict[str, Any],
    *,
    based_on: Collection[int] | None = None,
    any_keys: bool = False,
    text: bytes | None = None,
) -> ProjectSummary:
    """Change the fields in `changes`: name, description, settings, canvas_data, tags, starred, location.

    None clears all but the name.

    `any_keys` and `text` are those of `storage.canvas_of`. With `based_on`, only a canvas at one of these
    revisions is changed. Raises NotFound, Invalid, QuotaExceeded, RevisionConflict. Three commands for texts,
    five with a canvas, a few more for a large one.
    """
    user_id = actor.require_user()
    mine = {"_id": project_id, "userId": user_id}
    patch: dict[str, Any] = {}
    for key, value in changes.items():
        match key:
            case "name":
                patch["name"] = _name(value)
            case "description":
                patch["description"] = _description(value)
            case "settings":
                patch["settings"] = {} if value is None else value
            case "tags":
                patch["tags"] = normal_tags(value) or None
            case "starred":
                patch["starred"] = value or None
            case "canvas_data":
                patch["canvasData"] = {} if value is None else value
            case "location":
                patch["location"] = places.stored(value)
            case _:
                raise Invalid.field(key, "is not a field of a project that can be changed")
    sizes = {"settings": size_of("settings", patch["settings"])} if "settings" in patch else {}
    saved, base = "canvasData" in patch, None
    if saved:
        sizes["canvasData"], base = await asyncio.to_thread(
            canvas_of, patch["canvasData"], any_keys=any_keys, text=text
        )
        if base is not None:
            del patch["canvasData"]
    limits = await limits_of(database, user_id) if sizes else None

    async def write(transaction: Database) -> ProjectSummary:
        # The same document is read and written, so a concurrent change is a write conflict,
        # and this runs again.
        now = await measured(transaction, mine)
        if actor.member_id is not None and changes.keys() & {"tags", "starred"}:
            raise Forbidden("Only its owner changes a project's tags and star")
        revision = now.get("canvasRevision")
        if based_on is not None and (revision or 0) not in based_on:
            raise RevisionConflict(revision or 0)
        if patch.keys() & {"name", "description"}:
            patch["searchTerms"] = search.terms_of(now | patch)
            patch["searchKeys"] = search.keys(patch["searchTerms"])
        operators: dict[str, Any] = {"$set": patch}
        apart = now["apart"]
        if saved:
            apart = base is not None
            patch["canvasRevision"] = next_revision(revision, database.clock.now())
            operators["$unset"] = dict.fromkeys(("canvasTail", *(() if base else ("canvasBase",))), "")
            if base is not None:
                patch["canvasBase"] = base.at(patch["canvasRevision"])
                # With the revision, because `canvasData` without it would be another application's change.
                first = {"canvasData": None, "canvasRevision": patch["canvasRevision"]}
                await transaction.projects.rewrite(mine, {"$set": first})
        if limits:
            kept = {name: now[name] for name in CONTENT}
            patch.update(storageSize=total_of(kept | sizes, apart=apart) + now["besideSize"], storageRoom=None)
            if grown := patch["storageSize"] - now["charged"]:
                await gauges.reserve(transaction, user_id, limits, storage_bytes=grown)
        changed = await transaction.projects.find_and_patch(mine, operators, into=ProjectSummary)
        if changed is None:
            raise _not_found()
        if saved:
            await bases.swap(transaction, mine, old=base_in(now), new=base)
        return changed

    return await database.transaction(write)


async def delete(database: Database, actor: Actor, project_id: ObjectId) -> ProjectSummary:
    """Move a project to the trash (`trash`): its place is free at once, its bytes when it is purged.
    `restore` undoes it.

    Raises NotFound, also when it is deleted already.
    """
    user_id = actor.require_user()

    async def write(transaction: Database) -> ProjectSummary:
        gone = await transaction.projects.find_and_patch(
            {"_id": project_id, "userId": user_id}, {"$set": {"deletedAt": database.clock.now()}}, into=ProjectSummary
        )
        if gone is None:
            raise _not_found()
        trimmed = await trash.trim(transaction, actor, user_id)
        await gauges.release(transaction, user_id, projects=1, storage_bytes=trimmed)
        await _record(transaction, actor, Action.PROJECT_DELETED, gone, before={"name": gone.name})
        return gone

    return await database.transaction(write)


async def restore(database: Database, actor: Actor, project_id: ObjectId) -> ProjectSummary:
    """Bring a deleted project back, if the plan has a place. Raises NotFound (also when it is not deleted),
    QuotaExceeded.
    """
    user_id = actor.require_user()
    limits = await limits_of(database, user_id)

    async def write(transaction: Database) -> ProjectSummary:
        mine = {"_id": project_id, "userId": user_id, **trash.IN_TRASH}
        if await transaction.projects.find_one(mine, into=Identified, deleted=True) is None:
            raise _not_found()
        # Before the project is restored, because a new gauge counts existing projects.
        await gauges.reserve(transaction, user_id, limits, projects=1)
        back = await transaction.projects.find_and_patch(
            mine, {"$unset": {"deletedAt": ""}}, into=ProjectSummary, deleted=True
        )
        if back is None:
            raise _not_found()
        await _record(transaction, actor, Action.PROJECT_RESTORED, back, after={"name": back.name})
        return back

    return await database.transaction(write)


@access.reader
async def get(database: Database, actor: Actor, project_id: ObjectId) -> ProjectSummary:
    """One of the actor's projects, or one that is shared with them. Raises NotFound."""
    return await get_own(database, actor, project_id)


async def touch(transaction: Database, user_id: ObjectId, project_id: ObjectId) -> None:
    """Change nothing but `updatedAt`, so that transactions that do this, or purge the project,
    conflict. Raises NotFound."""
    mine = {"_id": project_id, "userId": user_id}
    if not await transaction.projects.patch(mine, {"$inc": {"assetsSize": 0}}):
        raise _not_found()


async def get_own(database: Database, actor: Actor, project_id: ObjectId) -> ProjectSummary:
    """One of the actor's own projects. Raises NotFound."""
    where = {"_id": project_id, "userId": actor.require_user()}
    found = await database.projects.find_one(where, into=ProjectSummary)
    if found is None:
        raise _not_found()
    return found


async def owner_of(database: Database, actor: Actor, project_id: ObjectId, *, deleted: bool = False) -> ObjectId:
    """The owner of any project, for operators. Raises NotFound, Forbidden."""
    actor.require_operator()
    found = await database.projects.find_one({"_id": project_id}, into=ProjectSummary, deleted=deleted)
    if found is None:
        raise _not_found()
    return found.user_id


async def page(
    database: Database,
    actor: Actor,
    *,
    query: str | None = None,
    within: Mapping[str, Any] | None = None,
    first: int = 20,
    after: Any = None,
    tagged: Iterable[str] | None = None,
    starred: bool | None = None,
    sort: str | None = None,
    attributes: frozenset[str] | None = None,
) -> Page[ProjectSummary]:
    """The actor's projects that `matching` finds, in the order of `SORTS` that `sort` names, newest first
    without. One command; with words in `query` as in `finding`. `after` is a position of the order.

    Where `attributes` are given, the items have no others but `id` and `created_at`, and no others are read.
    """
    into = ProjectSummary if attributes is None else part_of(ProjectSummary, attributes)
    if query and search.words(_text("search", query, MAX_NAME)):
        mine = matching(actor, tagged=tagged, starred=starred, within=within)
        if sort is not None:
            return await finding.sorted_page(
                database, mine, query, into=into, first=first, after=after, order=SORTS[sort]
            )
        return await finding.page(database, mine, query, into=into, first=first, after=after)
    where = matching(actor, query=query, tagged=tagged, starred=starred, within=within)
    raw = attributes is not None
    return await database.projects.page(where, into=into, first=first, after=after, raw=raw, order=order_of(sort))


def order_of(sort: str | None) -> Order:
    return LATEST if sort is None else SORTS[sort]


def matching(
    actor: Actor,
    *,
    query: str | None = None,
    tagged: Iterable[str] | None = None,
    starred: bool | None = None,
    within: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The filter of the actor's projects: with `query` those that match it (see `search`), with `tagged`
    those with all of these tags, with `within` those in an area (see `places`). Raises Invalid.
    """
    query = _text("search", query or "", MAX_NAME)
    where = {"userId": actor.require_user(), **search.condition(query)}
    if wanted := normal_tags(tagged):
        where["tags"] = wanted[0] if len(wanted) == 1 else {"$all": wanted}
    if starred is not None:
        where["starred"] = starred or {"$ne": True}
    if within is not None:
        where |= places.area(within)
    return where


async def page_of(
    database: Database,
    which: list[tuple[ObjectId, ObjectId]],
    query: str | None,
    first: int,
    after: Any,
    sort: str | None = None,
) -> Page[ProjectSummary]:
    """As `page`, of projects that are given by the ids of their owners and their own.
    One command, none for no projects."""
    query = _text("search", query or "", MAX_NAME)
    if not which:
        return Page([], [], has_next=False)
    owners, ids = (list(dict.fromkeys(part)) for part in zip(*which, strict=True))
    where = {"userId": {"$in": owners}, "_id": {"$in": ids}, **search.condition(query)}
    return await database.projects.page(where, into=ProjectSummary, first=first, after=after, order=order_of(sort))


async def deleted_page(
    database: Database, actor: Actor, *, first: int = 20, after: Position | None = None
) -> Page[ProjectSummary]:
    """The actor's deleted projects, last deleted first. One command."""
    where = {"userId": actor.require_user(), **trash.IN_TRASH}
    return await database.projects.page(
        where, into=ProjectSummary, first=first, after=after, deleted=True, by="deletedAt"
    )


async def canvases(
    database: Database,
    actor: Actor,
    project_ids: Iterable[ObjectId],
    *,
    take: Callable[[int], object] = lambda _: None,
) -> dict[ObjectId, Any]:
    """The canvas data of the actor's projects, deleted ones included, with one command,
    and one more for each large one.

    `take` gets the size of each large one before it is read, and may raise.
    """
    found = await _mine(database, actor, project_ids, Stored)
    for each in found:
        if each.base is not None:
            take(each.base.bytes)
    return {each.id: await bases.whole(database, each) for each in found}


async def settings_of(database: Database, actor: Actor, project_ids: Iterable[ObjectId]) -> dict[ObjectId, Any]:
    """The settings of the actor's projects, deleted ones included, with one command."""
    return {found.id: found.settings for found in await _mine(database, actor, project_ids, Settings)}


async def _record(
    transaction: Database, actor: Actor, action: Action, project: Project | ProjectSummary, **changed: dict[str, Any]
) -> None:
    """Audit the life cycle of a project, without its content."""
    before, after = changed.get("before"), changed.get("after")
    await records.write(
        transaction,
        actor,
        action,
        resource="projects",
        resource_id=project.id,
        before=before,
        after=after,
    )


async def _mine(database: Database, actor: Actor, project_ids: Iterable[ObjectId], into: type[V]) -> list[V]:
    """The actor's projects, deleted ones included, and those shared with the actor,
    which take two commands more."""
    ids = list(project_ids)
    if not ids:
        return []
    user_id = actor.require_user()
    found = await database.projects.find({"_id": {"$in": ids}, "userId": user_id}, into=into, deleted=True)
    if others := set(ids) - {each.id for each in found}:
        shares = await access.find_each(database, user_id, others)
        if shares:
            theirs = {"_id": {"$in": [s.project_id for s, _ in shares]}, "userId": {"$in": [o.id for _, o in shares]}}
            found += await database.projects.find(theirs, into=into)
    return found


def _name(name: Any) -> str:
    return names.checked(name if isinstance(name, str) else "", most=MAX_NAME)


def _description(description: str | None) -> str | None:
    return None if description is None else _text("description", description, MAX_DESCRIPTION)


def _text(field: str, text: str, limit: int) -> str:
    if len(text) > limit:
        raise Invalid.field(field, f"is longer than {limit} characters")
    if "\0" in text:
        raise Invalid.field(field, "must not contain a NUL byte")
    return text


def _not_found() -> NotFound:
    return NotFound("No such project")
