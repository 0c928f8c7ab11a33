"""URLs of assets for pages: `<img>` sends no key, so the URL itself grants the
access of the user who asked for it.

A URL is valid for half an hour to an hour, for one asset or one preview of it. Its user is checked again at
each request: the account must be open, and must still be able to read the project. URLs made within the same
half hour are equal, so browsers keep the files that they have loaded.
"""

import base64
import re
import struct
from datetime import datetime, timedelta
from urllib.parse import quote

import msgspec
from bson import ObjectId

from ximler.accounts import account_status
from ximler.accounts.keyring import Keyring
from ximler.core.actor import Actor
from ximler.core.clock import from_ms
from ximler.core.errors import Forbidden, NotFound, Unauthenticated
from ximler.database import Database
from ximler.projects import assets
from ximler.schema.asset import Asset

__all__ = [
    "Followed",
    "Link",
    "LinkExpired",
    "LinkInvalid",
    "export_link",
    "exporter",
    "follow",
    "import_link",
    "importer",
    "link",
    "thumbnail_link",
    "thumbnail_reader",
]

# The purposes of the tokens.
_ASSET, _THUMBNAIL, _EXPORT, _IMPORT = "asset url", "thumbnail url", "export url", "import url"
_ROUND_S = 1800
_FIELDS = struct.Struct(">12s12sIHx")  # project, user, expiry, preview; filled up to whole characters
_MAC_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_-]{84}")  # the fields and the MAC


class LinkInvalid(Forbidden):
    """Its token was not made by this server for this asset."""

    code = "URL_INVALID"


class LinkExpired(Forbidden):
    code = "URL_EXPIRED"


class Followed(msgspec.Struct, frozen=True):
    """The asset of a URL, the size of its preview or 0 for the file itself, the user whose access it
    grants, and how long it is still valid.
    """

    asset: Asset
    preview: int
    actor: Actor
    left: timedelta


class Link(msgspec.Struct, frozen=True):
    """`url` is a path of the API. It needs no other credentials until `expires_at`."""

    url: str
    expires_at: datetime


def link(keyring: Keyring, actor: Actor, asset: Asset, now: datetime, *, preview: int = 0) -> Link:
    """A URL of an asset that the actor has read, or of its preview of this size."""
    token, until = _token(keyring, _ASSET, asset.id, actor, asset.project_id, now, preview)
    return Link(f"/v1/assets/{asset.id}?token={token}", until)


def thumbnail_link(keyring: Keyring, actor: Actor, project_id: ObjectId, now: datetime) -> Link:
    """A URL of the small picture of a project that the actor has read."""
    token, until = _token(keyring, _THUMBNAIL, project_id, actor, project_id, now)
    return Link(f"/v1/thumbnails/{project_id}?token={token}", until)


def export_link(keyring: Keyring, actor: Actor, project_id: ObjectId, now: datetime) -> Link:
    """A URL of the archive of a project that the actor has read. Raises Forbidden for API keys: the URL would
    be valid after the key is revoked, on networks that the key excludes, and without being metered.
    """
    if actor.via == "api_key":
        raise Forbidden(
            "exportUrl cannot be used with an API key:"
            f" export the project with the key by GET /v1/projects/{project_id}/export"
        )
    token, until = _token(keyring, _EXPORT, project_id, actor, project_id, now)
    return Link(f"/v1/exports/{project_id}?token={token}", until)


def import_link(keyring: Keyring, actor: Actor, now: datetime, *, name: str | None = None) -> tuple[ObjectId, Link]:
    """The id of a project that does not exist, and the URL that makes it of the file sent there. Raises
    Forbidden for API keys, as `export_link` does.
    """
    if actor.via == "api_key":
        raise Forbidden(
            "createProjectImport cannot be used with an API key: import with the key by POST /v1/projects/import"
        )
    project_id = ObjectId()
    token, until = _token(keyring, _IMPORT, project_id, actor, project_id, now)
    named = "" if name is None else f"&name={quote(name, safe='')}"
    return project_id, Link(f"/v1/imports/{project_id}?token={token}{named}", until)


async def follow(database: Database, keyring: Keyring, asset_id: ObjectId, token: str) -> Followed:
    """Raises Unauthenticated, LinkInvalid, LinkExpired,
    and NotFound once the URL's user cannot read the asset any more."""
    project_id, actor, preview, left = _opened(keyring, _ASSET, asset_id, token, database.clock.now())
    await _require_open(database, actor)
    return Followed(await assets.get(database, actor, project_id, asset_id), preview, actor, left)


async def thumbnail_reader(database: Database, keyring: Keyring, project_id: ObjectId, token: str) -> Actor:
    """The user whose access the URL of a project's small picture grants. Raises Unauthenticated, LinkInvalid,
    LinkExpired, and NotFound once the user's account is closed or locked.
    """
    return await _reader(database, keyring, _THUMBNAIL, project_id, token)


async def exporter(database: Database, keyring: Keyring, project_id: ObjectId, token: str) -> Actor:
    """As `thumbnail_reader`, of the URL of a project's archive."""
    return await _reader(database, keyring, _EXPORT, project_id, token)


async def importer(database: Database, keyring: Keyring, project_id: ObjectId, token: str, origin: Actor) -> Actor:
    """As `thumbnail_reader`, of the URL that makes the project. `origin`: the caller, for the audit log."""
    user = await _reader(database, keyring, _IMPORT, project_id, token)
    return msgspec.structs.replace(origin, kind=user.kind, user_id=user.user_id)


async def _reader(database: Database, keyring: Keyring, purpose: str, project_id: ObjectId, token: str) -> Actor:
    _, actor, _, _ = _opened(keyring, purpose, project_id, token, database.clock.now())
    await _require_open(database, actor)
    return actor


async def _require_open(database: Database, actor: Actor) -> None:
    user_id = actor.require_user()
    if user_id not in await account_status.open_among(database, [user_id]):
        raise NotFound("The account of this URL is closed or locked")


def _token(
    keyring: Keyring,
    purpose: str,
    subject: ObjectId,
    actor: Actor,
    project_id: ObjectId,
    now: datetime,
    preview: int = 0,
) -> tuple[str, datetime]:
    until = (int(now.timestamp()) // _ROUND_S + 2) * _ROUND_S
    fields = _FIELDS.pack(project_id.binary, actor.require_user().binary, until, preview)
    sealed = fields + keyring.seal(purpose, subject.binary + fields)
    return base64.urlsafe_b64encode(sealed).decode(), from_ms(1000 * until)


def _opened(
    keyring: Keyring, purpose: str, subject: ObjectId, token: str, now: datetime
) -> tuple[ObjectId, Actor, int, timedelta]:
    if not token:
        raise Unauthenticated("The URL lacks its token")
    if not _TOKEN.fullmatch(token):
        raise _invalid()
    raw = base64.urlsafe_b64decode(token)
    fields, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    if not keyring.is_sealed(purpose, subject.binary + fields, mac):
        raise _invalid()
    project_id, user_id, until, preview = _FIELDS.unpack(fields)
    left = from_ms(1000 * until) - now
    if left <= timedelta(0):
        raise LinkExpired("The URL has expired: ask for a new one")
    return ObjectId(project_id), Actor(kind="user", user_id=ObjectId(user_id)), preview, left


def _invalid() -> LinkInvalid:
    return LinkInvalid("The URL is not valid: it was changed, or is for something else")
