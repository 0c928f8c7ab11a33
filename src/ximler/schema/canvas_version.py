"""`canvasversions` and `canvascontents`: kept versions of canvases. Private to projects.

A version is small and names its content by hash, so lists never read content,
and versions of equal content share it.
"""

from datetime import datetime
from typing import Annotated

from bson import ObjectId
from msgspec import field

from ximler.schema.document import (
    AT_WRITE,
    Collection,
    Created,
    Document,
    Internal,
    ShardKey,
    Theirs,
    UserId,
    ascending,
    ref,
)

__all__ = ["CANVAS_CONTENTS", "CANVAS_VERSIONS", "CanvasContent", "CanvasVersion"]


class CanvasVersion(Created, kw_only=True):
    """`revision` is the canvas's when it was read. It identifies nothing:
    another application may reset it."""

    user_id: UserId
    project_id: Internal[Annotated[ObjectId, ref("projects")]]
    revision: Internal[int] = 0
    digest: Internal[bytes]  # SHA-256 of the content's BSON
    size_bytes: Internal[int]  # of the content's BSON
    stored_bytes: Internal[int]  # compressed; shared by versions of equal content
    assets: Internal[list[ObjectId] | None] = None  # of the project, whose ids the canvas names; None: unknown
    name: Theirs[str | None] = None
    pinned: Internal[bool] = False  # whether it stays until it is deleted
    automatic: Internal[bool] = False


CANVAS_VERSIONS = Collection(
    name="canvasversions",
    document=CanvasVersion,
    purpose="Kept versions of canvases, without their content.",
    owner="projects",
    indexes=(
        ascending("userId", "projectId", "-createdAt", "-_id", ours=True, why="a project's versions, newest first"),
    ),
    shard_key=ShardKey((("userId", 1), ("projectId", 1)), "read by project, erased by user"),
)


class CanvasContent(Document, kw_only=True):
    """The canvas of one or more versions of a project.
    `uses` counts these and the contents based on it; at 0 it is deleted."""

    id: Internal[bytes] = field(name="_id")  # the project's id and the digest
    user_id: UserId
    project_id: Internal[Annotated[ObjectId, ref("projects")]]
    uses: Internal[int] = 0
    stored_bytes: Internal[int]
    data: Internal[bytes]  # the canvas in BSON, compressed with zstd; empty where it is in parts (`canvasparts`)
    parts: Internal[int] = 0
    base: Internal[bytes | None] = None  # the content that is needed to read it, as zstd's dictionary
    created_at: Internal[datetime] = AT_WRITE


CANVAS_CONTENTS = Collection(
    name="canvascontents",
    document=CanvasContent,
    purpose="The content of canvases' versions, compressed.",
    owner="projects",
    indexes=(ascending("userId", "projectId", "storedBytes", ours=True, why="the bytes of a project's versions"),),
    shard_key=ShardKey((("userId", 1), ("projectId", 1)), "written and read by project, erased by user"),
)
