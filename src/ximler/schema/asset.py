"""`assets`, `assetfiles`, `assetpreviews`:
the files of projects, where their content is stored, and small pictures of them. Private to projects.
"""

from datetime import datetime
from typing import Annotated, Literal

from bson import ObjectId
from msgspec import field

from ximler.schema.document import (
    Collection,
    Created,
    Document,
    Index,
    Internal,
    Kept,
    ShardKey,
    Theirs,
    UserId,
    ascending,
    ref,
)

__all__ = ["ASSETS", "ASSET_FILES", "ASSET_PREVIEWS", "Asset", "AssetFile", "AssetPreview", "FileState"]

FileState = Literal["UPLOADING", "STORED", "GARBAGE"]


class Asset(Created, kw_only=True):
    """A reference to a file. Assets of equal content refer to one file,
    which stays while one of them exists."""

    user_id: UserId
    project_id: Internal[Annotated[ObjectId, ref("projects")]]
    file_id: Internal[ObjectId]  # of `assetfiles`
    name: Theirs[str]
    content_type: Internal[str]  # by the content, never by the name
    size_bytes: Internal[int]
    digest: Internal[bytes]  # SHA-256 of the content


ASSETS = Collection(
    name="assets",
    document=Asset,
    purpose="The files of projects: name, type and size, without their content.",
    owner="projects",
    indexes=(
        ascending("userId", "projectId", "-createdAt", "-_id", ours=True, why="a project's assets, newest first"),
        ascending("userId", "fileId", "projectId", ours=True, why="whether a file is in use"),
    ),
    shard_key=ShardKey((("userId", 1), ("projectId", 1)), "read by project, erased by user"),
)


class AssetFile(Created, kw_only=True):
    """A file in GridFS, with the same id: written before its first chunk, and removed after its last one.

    UPLOADING becomes STORED or GARBAGE, STORED becomes GARBAGE. `project_id` is the project whose storage
    counts `charged_bytes`: of an upload the bytes reserved for it, of a stored file its size, of garbage 0.
    """

    user_id: UserId
    project_id: Kept[Annotated[ObjectId, ref("projects")]]
    state: Kept[FileState]
    charged_bytes: Kept[int] = 0
    size_bytes: Kept[int] = 0  # of an upload: what is stored so far
    digest: Internal[bytes | None] = None  # of a stored file
    content_type: Internal[str | None] = None
    name: Internal[str | None] = None  # of an upload
    # An upload belongs to the process with `holder`, and is garbage at `until`.
    # Garbage is removed at `until`.
    holder: Kept[ObjectId | None] = None
    until: Kept[datetime | None] = None
    # Of an upload that is resumed: its holder may be replaced at `held_until`,
    # and is asked to go by `wanted`.
    resumable: Kept[bool] = False
    length: Kept[int | None] = None  # None: not known yet
    held_until: Kept[datetime | None] = None
    wanted: Kept[bool] = False
    asset_id: Kept[ObjectId | None] = None  # once it is finished
    # Incremented with each change of references, so that concurrent changes conflict.
    generation: Kept[int] = 0


ASSET_FILES = Collection(
    name="assetfiles",
    document=AssetFile,
    purpose="The content of assets in GridFS: uploads, stored files, and those that are being removed.",
    owner="projects",
    indexes=(
        Index(
            keys=(("userId", 1), ("digest", 1)),
            partial={"digest": {"$exists": True}},
            unique=True,
            ours=True,
            why="a user's file by its content, which is stored once",
        ),
        ascending("userId", "projectId", ours=True, why="the files that a project's storage counts"),
        ascending("state", "until", ours=True, why="abandoned uploads and garbage"),
    ),
    shard_key=ShardKey((("userId", 1),), "equal content of a user is one file, by a unique index"),
)


class AssetPreview(Document, kw_only=True):
    """A small picture of a stored file. It can be made again at any time,
    so it expires and is not counted."""

    id: Internal[bytes] = field(name="_id")  # the file's id and the size
    user_id: UserId
    file_id: Internal[ObjectId]  # of `assetfiles`
    data: Internal[bytes]  # WebP
    expires_at: Internal[datetime]


ASSET_PREVIEWS = Collection(
    name="assetpreviews",
    document=AssetPreview,
    purpose="Small pictures of assets, made when they are first asked for.",
    owner="projects",
    indexes=(
        ascending("userId", "fileId", ours=True, why="removed with their file"),
        Index(keys=(("expiresAt", 1),), ttl_seconds=0, ours=True, why="removed by MongoDB after 30 days"),
    ),
    shard_key=ShardKey((("userId", 1),), "read by user and id, erased by user"),
)
