"""`projectthumbnails`: small pictures of projects. Private to projects."""

from datetime import datetime
from typing import Annotated

from bson import ObjectId
from msgspec import field

from ximler.schema.document import Collection, Document, Index, Internal, ShardKey, UserId, ascending, ref

__all__ = ["PROJECT_THUMBNAILS", "ProjectThumbnail"]


class ProjectThumbnail(Document, kw_only=True):
    """Has the project's id. One that was drawn can be drawn again at any time,
    so it expires; one that was sent stays."""

    id: Internal[Annotated[ObjectId, ref("projects")]] = field(name="_id")
    user_id: UserId
    data: Internal[bytes]  # empty: the canvas shows nothing that can be drawn
    content_type: Internal[str]
    digest: Internal[bytes]
    revision: Internal[int | None] = None  # of the canvas that was drawn; None: it was sent
    listed: Internal[str | None] = None  # the canvas's list of records that was drawn
    expires_at: Internal[datetime | None] = None


PROJECT_THUMBNAILS = Collection(
    name="projectthumbnails",
    document=ProjectThumbnail,
    purpose="Small pictures of projects: sent, or drawn from their canvases.",
    owner="projects",
    indexes=(
        ascending("userId", ours=True, why="erased by user"),
        Index(keys=(("expiresAt", 1),), ttl_seconds=0, ours=True, why="drawn ones are removed after 30 days"),
    ),
    shard_key=ShardKey((("userId", 1),), "read by user and id, erased by user"),
)
