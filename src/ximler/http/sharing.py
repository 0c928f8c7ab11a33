"""Who else may use a project, over REST: people and public links. Sessions only: no API key shares."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec
from litestar import delete, get, post, put
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import JSONBody, PathParameter, QueryParameter

from ximler.core.ids import decode_cursor, object_id
from ximler.http.authentication import Caller, signed_in
from ximler.http.idempotency import IDEMPOTENT, KEY_ERRORS
from ximler.http.problems import JSON_ONLY, documented_in_project
from ximler.projects import links, sharing

__all__ = ["routes"]

_SHARES = "/v1/projects/{project:str}/shares"
_LINKS = "/v1/projects/{project:str}/links"
_Project = Annotated[str, PathParameter(max_length=100, description="The project's id")]
_READS = documented_in_project("list", _403="API keys cannot read shares", _422="An id, cursor or size is malformed")
_CHANGES = documented_in_project(
    "share",
    _403="API keys cannot share, nor users without a confirmed address; or sent by another site",
    _422="An id or field is invalid",
    _429="The project has the most people or links, or too many changes",
)


class Share(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """A person's access to the project."""

    email: str
    role: sharing.Role
    created_at: datetime


class Shares(msgspec.Struct, frozen=True):
    """All people, oldest first."""

    shares: Sequence[Share]


class Shared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    email: str
    role: sharing.Role


class Unshared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    email: str


class Link(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """A public link, without its token."""

    id: str
    created_at: datetime
    expires_at: datetime


class Links(msgspec.Struct, frozen=True):
    """Newest first. `next` continues the list, as `after`; null at its end."""

    links: Sequence[Link]
    next: str | None


class NewLink(msgspec.Struct, rename="camel", frozen=True, forbid_unknown_fields=True):
    expires_at: datetime | None = None


class CreatedLink(msgspec.Struct, frozen=True):
    """`token` (`xil_…`) is shown once: send it to `GET /v1/shared`."""

    token: str
    link: Link


@get(_SHARES, **signed_in(), tags=["projects"], summary="People who share a project", responses=_READS)
async def people(project: _Project, caller: NamedDependency[Caller], state: State) -> Shares:
    """Oldest first; at most 100."""
    found = await sharing.people(state.database, caller.actor, object_id(project, "project"))
    return Shares([_share(each) for each in found])


@put(_SHARES, **signed_in(), tags=["projects"], summary="Share a project", responses=_CHANGES | JSON_ONLY)
async def share(project: _Project, data: JSONBody[Shared], caller: NamedDependency[Caller], state: State) -> Share:
    """Let a person read or edit the project, or change their role. They need no account yet.
    A new person is notified."""
    mine = object_id(project, "project")
    made = await sharing.share(state.database, state.keyring, caller.actor, mine, email=data.email, role=data.role)
    return _share(made)


@post(
    f"{_SHARES}/revoke",
    **signed_in(),
    status_code=204,
    tags=["projects"],
    summary="End a person's access",
    responses=_CHANGES | JSON_ONLY,
)
async def unshare(project: _Project, data: JSONBody[Unshared], caller: NamedDependency[Caller], state: State) -> None:
    """At once: open streams end within a second. The address is in the body, because logs keep paths."""
    await sharing.revoke(state.database, caller.actor, object_id(project, "project"), data.email)


@get(_LINKS, **signed_in(), tags=["projects"], summary="Public links to a project", responses=_READS)
async def list_links(
    project: _Project,
    caller: NamedDependency[Caller],
    state: State,
    first: Annotated[int, QueryParameter(ge=1, le=100, description="How many, at most")] = 20,
    after: Annotated[str | None, QueryParameter(description="The `next` of the page before")] = None,
) -> Links:
    """Newest first."""
    position = None if after is None else decode_cursor(after)
    mine = object_id(project, "project")
    page = await links.page(state.database, caller.actor, mine, first=first, after=position)
    return Links([_link(each) for each in page.items], page.end_cursor if page.has_next else None)


@post(
    _LINKS,
    **signed_in(),
    **IDEMPOTENT,
    tags=["projects"],
    summary="Create a public link",
    responses=_CHANGES | JSON_ONLY | KEY_ERRORS,
)
async def create_link(
    project: _Project, data: JSONBody[NewLink], caller: NamedDependency[Caller], state: State
) -> CreatedLink:
    """It reads the project until `expiresAt`: in 30 days if omitted, in 366 at most.
    At most 20 for each project."""
    mine = object_id(project, "project")
    link, token = await links.create(state.database, caller.actor, mine, expires_at=data.expires_at)
    return CreatedLink(token, _link(link))


@delete(f"{_LINKS}/{{link:str}}", **signed_in(), tags=["projects"], summary="Revoke a public link", responses=_CHANGES)
async def revoke_link(
    project: _Project,
    link: Annotated[str, PathParameter(max_length=100, description="The link's id")],
    caller: NamedDependency[Caller],
    state: State,
) -> None:
    """At once."""
    await links.revoke(state.database, caller.actor, object_id(project, "project"), object_id(link, "link"))


def _share(share: sharing.ProjectShare) -> Share:
    return Share(email=share.email, role=share.role, created_at=share.created_at)


def _link(link: links.ProjectLink) -> Link:
    return Link(id=str(link.id), created_at=link.created_at, expires_at=link.expires_at)


routes = (people, share, unshare, list_links, create_link, revoke_link)
