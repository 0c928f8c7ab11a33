"""`projectimports`: projects that are being imported,
so that nothing half-imported stays. Private to projects."""

from datetime import datetime

from ximler.schema.document import Collection, Identified, Internal, ShardKey, UserId, ascending

__all__ = ["PROJECT_IMPORTS", "ProjectImport"]


class ProjectImport(Identified, kw_only=True):
    """Has the project's id. Written before the project, removed once it is whole.
    At `until` its process has died."""

    user_id: UserId
    until: Internal[datetime]
    ended: Internal[bool | None] = None  # it is being undone


PROJECT_IMPORTS = Collection(
    name="projectimports",
    document=ProjectImport,
    purpose="Projects that are being imported; what a killed process leaves is removed.",
    owner="projects",
    indexes=(
        ascending("userId", ours=True, why="erased by user"),
        ascending("until", ours=True, why="imports whose process has died"),
    ),
    shard_key=ShardKey((("userId", 1),), "written and removed by user and id, erased by user"),
)
