"""A project as one zip archive: settings, canvas, kept versions and assets. Written and read as streams.

    canvas.json
    versions/0000.json    …
    assets/ID/NAME        …
    project.json          name, description, settings, and lists of the entries before it

`project.json` comes last, because an asset or version may be deleted while the archive is made: it lists what
is whole. An import reads only what it lists.

An import makes a new project. Its assets have new ids,
so ids in canvas and versions are replaced where they occur.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
from bson import ObjectId
from msgspec import Meta

from ximler.core import strict_json
from ximler.core.actor import Actor
from ximler.core.clock import EPOCH
from ximler.core.errors import Invalid, NotFound
from ximler.core.extended_json import plain
from ximler.core.zips import Entry, Unzipped, zipped
from ximler.database import Database
from ximler.database.chunks import Damaged
from ximler.database.mixed import MAX_CONTAINERS, MAX_VALUES
from ximler.metering.quota import gauges
from ximler.projects import (
    access,
    assets,
    assets_kinds,
    assets_uploads,
    canvas,
    data_urls,
    mentions,
    packing,
    places,
    projects,
    versions,
)
from ximler.projects.imports import Importing, importing
from ximler.schema.asset import ASSET_FILES, ASSETS
from ximler.schema.canvas_version import CANVAS_VERSIONS

__all__ = ["MOST_TEXT", "export", "export_file", "load", "load_file"]

MOST_TEXT = packing.MOST
_MOST_TEXTS = 1_000_000_000  # bytes of canvas and versions together
_MANIFEST, _CANVAS = "project.json", "canvas.json"
_ENTRY = re.compile(r"project\.json|canvas\.json|versions/[0-9]{4}\.json|assets/[0-9a-f]{24}/[^/\\\x00-\x1f]{1,255}")
_MOST_ASSETS, _MOST_VERSIONS = assets.MOST, versions.MOST
_MOST_ENTRIES = _MOST_ASSETS + _MOST_VERSIONS + 2


_HexId = Annotated[str, Meta(pattern=r"^[0-9a-f]{24}\Z")]
_Time = Annotated[datetime, Meta(tz=True)]


class _Asset(msgspec.Struct, rename="camel", kw_only=True):
    id: _HexId
    path: Annotated[str, Meta(max_length=300)]
    name: Annotated[str, Meta(min_length=1, max_length=assets_uploads.MAX_NAME)]
    content_type: Annotated[str, Meta(max_length=200)] | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None


class _Version(msgspec.Struct, rename="camel", kw_only=True):
    path: Annotated[str, Meta(max_length=300)]
    name: Annotated[str, Meta(max_length=versions.MAX_NAME)] | None = None
    pinned: bool = False
    automatic: bool = False
    revision: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0  # GraphQL's Int
    created_at: _Time

    def __post_init__(self) -> None:
        if self.created_at < EPOCH:
            raise ValueError("`createdAt` is before 1970")


class _Place(msgspec.Struct, kw_only=True):
    longitude: float
    latitude: float


class _Manifest(msgspec.Struct, rename="camel", kw_only=True):
    """Name, description, settings, tags and location have the limits of every project,
    which `projects.create` checks."""

    format: Literal["ximler.project/1"]
    id: _HexId
    name: str
    description: str | None = None
    settings: Any = msgspec.field(default_factory=dict)
    tags: list[str] = []
    location: _Place | None = None
    created_at: _Time | None = None
    assets: Annotated[list[_Asset], Meta(max_length=_MOST_ASSETS)] = []
    versions: Annotated[list[_Version], Meta(max_length=_MOST_VERSIONS)] = []


@access.reader
async def export(
    database: Database, actor: Actor, project_id: ObjectId, *, with_versions: bool = True, with_assets: bool = True
) -> AsyncGenerator[bytes, None]:
    """The archive, written while it is read. Not a snapshot: of concurrent changes some may be in it.

    Raises NotFound before the first byte, and later if the project is deleted meanwhile.
    """
    project = await projects.get(database, actor, project_id)
    settings = (await projects.settings_of(database, actor, [project_id])).get(project_id, {})
    mine = {"userId": await assets.require_project(database, actor, project_id, "READER"), "projectId": project_id}
    files = await database[ASSETS].find(mine, sort=[("createdAt", 1), ("_id", 1)]) if with_assets else []
    kept = await database[CANVAS_VERSIONS].find(mine, sort=[("createdAt", 1), ("_id", 1)]) if with_versions else []
    manifest = _Manifest(
        format="ximler.project/1",
        id=str(project.id),
        name=project.name,
        description=project.description,
        settings=settings,
        tags=project.tags,
        location=_place(project.location),
        created_at=project.created_at,
        assets=[],
        versions=[],
    )

    async def entries() -> AsyncIterator[Entry]:
        text, _ = await canvas.read_file(database, actor, project_id)
        yield Entry(_CANVAS, _once(text))
        for each in kept:
            try:
                text = await versions.content_file(database, actor, project_id, each.id)
            except NotFound:  # deleted meanwhile
                continue
            manifest.versions.append(_listed(each, len(manifest.versions)))
            yield Entry(manifest.versions[-1].path, _once(text))
        for asset in files:
            named = _named(asset)
            content = _asset(database, asset, named, manifest)
            yield Entry(named.path, content, packed=assets_kinds.is_packed(asset.content_type))
        if len(manifest.versions) < len(kept) or len(manifest.assets) < len(files):
            await canvas.revision_of(database, actor, project_id)  # the archive of a deleted project does not open
        yield Entry(_MANIFEST, _once(msgspec.json.format(_encoded(manifest), indent=2)))

    return zipped(entries(), database.clock.now())


@access.reader
async def export_file(
    database: Database, actor: Actor, project_id: ObjectId, version_id: ObjectId | None = None
) -> AsyncGenerator[bytes, None]:
    """The canvas, or a kept version of it, as one file, such as `.excalidraw`:
    as it was imported, if it is unchanged since. Raises NotFound.
    """
    if version_id is None:
        text, _ = await canvas.read_file(database, actor, project_id)
    else:
        text = await versions.content_file(database, actor, project_id, version_id)
    return data_urls.put_back(database, actor, project_id, text)


async def load(
    database: Database,
    actor: Actor,
    file: BinaryIO,
    *,
    name: str | None = None,
    most: int,
    project_id: ObjectId | None = None,
) -> ObjectId:
    """Make a project from an archive of at most so many bytes an asset;
    returns its id. All of it, or nothing.

    Raises Invalid with the entry's name, QuotaExceeded, LimitExceeded, and Conflict if a project has the
    given id.
    """
    archive = await asyncio.to_thread(Unzipped, file, entries=_MOST_ENTRIES, allowed=_is_allowed)
    try:
        manifest = _read_manifest(await archive.whole(_MANIFEST, most=MOST_TEXT))
        texts = [_CANVAS, *(each.path for each in manifest.versions)]
        if sum(archive.sizes.get(each, 0) for each in texts) > _MOST_TEXTS:
            raise Invalid.field("file", f"has more than {_MOST_TEXTS:,} bytes of canvas and versions")
        _require_once("entry", [_MANIFEST, *texts, *(each.path for each in manifest.assets)])
        _require_once("asset", [each.id for each in manifest.assets])
        for each in (*texts, *(each.path for each in manifest.assets)):
            if each not in archive.sizes:
                raise Invalid.field("file", f"lacks the entry {each!r}")
        await _require_room(database, actor.require_user(), archive, manifest)
        with _about(_MANIFEST, but=() if name is None else ("name",)):
            async with importing(
                database,
                actor,
                most=most,
                project_id=project_id,
                name=name or manifest.name,
                description=manifest.description,
                settings=manifest.settings,
                tags=manifest.tags,
                location=manifest.location and msgspec.structs.asdict(manifest.location),
            ) as under_way:
                await _fill(under_way, archive, manifest)
            return under_way.project_id
    finally:
        archive.close()


async def load_file(
    database: Database, actor: Actor, text: bytes, *, name: str, most: int, project_id: ObjectId | None = None
) -> ObjectId:
    """Make a project from a file of JSON, such as `.excalidraw` or `.tldr`;
    returns its id. All of it, or nothing.

    Its data URLs become assets. Raises Invalid, QuotaExceeded, Conflict if a project has the given id.
    """
    await asyncio.to_thread(_decoded, text, "file")
    async with importing(database, actor, most=most, project_id=project_id, name=name) as under_way:
        lifted = await data_urls.lift(under_way, text)
        await _set_canvas(under_way, lifted)
    return under_way.project_id


def _require_once(noun: str, listed: list[str]) -> None:
    twice = next((each for each, n in Counter(listed).items() if n > 1), None)
    if twice is not None:
        raise Invalid.field("file", f"lists the {noun} {twice!r} more than once")


async def _require_room(database: Database, user_id: ObjectId, archive: Unzipped, manifest: _Manifest) -> None:
    """Room for the assets, before any of them is written.
    Equal content, and content that the user has, is stored once."""
    sizes = {each.sha256 or each.path: archive.sizes[each.path] for each in manifest.assets}
    digests = [bytes.fromhex(each.sha256) for each in manifest.assets if each.sha256]
    if digests:
        for known in await database[ASSET_FILES].find({"userId": user_id, "digest": {"$in": digests}}):
            sizes.pop((known.digest or b"").hex(), None)
    if manifest.assets:
        await assets.refuse_too_many_of_all(database, user_id)
    await gauges.require_room(database, user_id, sum(sizes.values()))


async def _fill(under_way: Importing, archive: Unzipped, manifest: _Manifest) -> None:
    names = {manifest.id.encode(): str(under_way.project_id).encode()}
    for each in manifest.assets:
        made = await under_way.upload(each.name, archive.sizes[each.path], archive.read(each.path))
        if each.sha256 is not None and each.sha256 != made.digest.hex():
            raise Invalid.field("file", f"has the entry {each.path!r}, whose content is not the one that was exported")
        names[each.id.encode()] = str(made.id).encode()
    rename, settings = mentions.renamer(names), _encoded(manifest.settings)
    if (renamed := await asyncio.to_thread(rename, settings)) != settings:
        change = {"settings": msgspec.json.decode(renamed)}
        await projects.update(under_way.database, under_way.actor, under_way.project_id, change)
    for version in sorted(manifest.versions, key=lambda each: each.created_at):
        text = await asyncio.to_thread(rename, await archive.whole(version.path, most=MOST_TEXT))
        data, kept = await asyncio.to_thread(_read_canvas, text, version.path)
        with _about(version.path):
            await versions.add(
                under_way.database,
                under_way.actor,
                under_way.project_id,
                data,
                text=kept,
                name=version.name,
                pinned=version.pinned,
                automatic=version.automatic,
                revision=version.revision,
                created_at=version.created_at,
            )
        await under_way.keep()
    with _about(_CANVAS):
        text = await asyncio.to_thread(rename, await archive.whole(_CANVAS, most=MOST_TEXT))
        await _set_canvas(under_way, text)


async def _set_canvas(under_way: Importing, text: bytes) -> None:
    data, kept = await asyncio.to_thread(_read_canvas, text, _CANVAS)
    await canvas.replace(
        under_way.database, under_way.actor, under_way.project_id, data, based_on=None, any_keys=True, text=kept
    )


@contextmanager
def _about(entry: str, *, but: Sequence[str] = ()) -> Iterator[None]:
    """Problems of fields, other than those that the caller has given, are problems of this entry."""
    try:
        yield
    except Invalid as problem:
        if not problem.fields or problem.fields.keys() & {"file", *but}:
            raise
        raise Invalid.field("file", f"has the entry {entry!r}, which no export makes: {problem.message}") from None


def _place(location: Any) -> _Place | None:
    """The location of a project, unless it is one that no import accepts, from another application."""
    place = places.place_of(location)
    with suppress(Invalid):
        places.stored(place)
        return None if place is None else _Place(**place)
    return None


def _read_canvas(text: bytes, name: str) -> tuple[Any, bytes | None]:
    """The value, and the text unless it is made from the value again."""
    data = _decoded(text, name)
    return data, None if msgspec.json.encode(data) == text else text


def _read_manifest(text: bytes) -> _Manifest:
    value = _decoded(text, _MANIFEST)
    try:
        return msgspec.convert(value, _Manifest)
    except msgspec.ValidationError as error:
        raise Invalid.field("file", f"has another {_MANIFEST} than an exported project: {error}") from None


def _decoded(text: bytes, name: str) -> Any:
    try:
        return strict_json.decode(text, values=MAX_VALUES, containers=MAX_CONTAINERS)
    except strict_json.NotJson as problem:
        raise Invalid.field("file", problem.about(f"The entry {name}" if name != "file" else "The file")) from None


def _is_allowed(name: str) -> bool:
    return _ENTRY.fullmatch(name) is not None and not name.endswith(("/.", "/.."))


async def _once(content: bytes) -> AsyncGenerator[bytes, None]:
    yield content


def _listed(version: versions.CanvasVersion, number: int) -> _Version:
    return _Version(
        path=f"versions/{number:04}.json",
        name=version.name,
        pinned=version.pinned,
        automatic=version.automatic,
        revision=version.revision,
        created_at=version.created_at,
    )


def _named(asset: assets.Asset) -> _Asset:
    return _Asset(
        id=str(asset.id),
        path=f"assets/{asset.id}/{asset.name}",
        name=asset.name,
        content_type=asset.content_type,
        sha256=asset.digest.hex(),
    )


async def _asset(
    database: Database, asset: assets.Asset, named: _Asset, manifest: _Manifest
) -> AsyncGenerator[bytes, None]:
    """The content of an asset, which is listed once it is complete: it may be deleted meanwhile."""
    with suppress(Damaged):
        async for piece in assets.read(database, asset, 0, asset.size_bytes):
            yield piece
        manifest.assets.append(named)


def _encoded(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=plain)
