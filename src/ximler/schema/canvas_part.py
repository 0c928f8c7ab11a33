"""`canvasparts`: large canvases, compressed, in documents of a few megabytes. Private to projects."""

from datetime import datetime
from typing import Annotated

from bson import ObjectId
from msgspec import field

from ximler.schema.document import AT_WRITE, Collection, Document, Internal, ShardKey, UserId, ascending, ref

__all__ = ["CANVAS_PARTS", "CanvasPart"]


class CanvasPart(Document, kw_only=True):
    """Never changed: a canvas that is stored anew has other parts."""

    id: Internal[bytes] = field(name="_id")  # the id of the whole, and the part's number in two bytes
    user_id: UserId
    project_id: Internal[Annotated[ObjectId, ref("projects")]]
    data: Internal[bytes]
    created_at: Internal[datetime] = AT_WRITE


CANVAS_PARTS = Collection(
    name="canvasparts",
    document=CanvasPart,
    purpose="Large canvases and their versions, compressed, in parts.",
    owner="projects",
    indexes=(ascending("userId", "projectId", ours=True, why="the parts of a project, to remove them with it"),),
    shard_key=ShardKey((("userId", 1), ("projectId", 1)), "written and read by project, erased by user"),
)
