"""`ximler projects`: customers' projects and their canvases, for operators."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import msgspec

from ximler.cli.context import Id, Run, connected, counted, fields, minute, paged
from ximler.cli.files import Output, output_option
from ximler.core.actor import Actor
from ximler.core.errors import Invalid

if TYPE_CHECKING:
    from ximler.projects.projects import ProjectSummary
    from ximler.schema.project import Project

_FIELDS = "id user_id name description storage_size canvas_revision created_at updated_at"
_VERSION = "id revision name pinned automatic size_bytes stored_bytes assets created_at"
_ASSET = "id name content_type size_bytes created_at"
_project = click.argument("project", type=Id())


@click.group()
def projects() -> None:
    """List, search, show, export, import, delete, restore and erase projects;
    restore versions of canvases."""


@projects.command("list")
@click.argument("user")
@click.option(
    "--sort", type=click.Choice(["created", "updated", "name"]), default="created", show_default=True, help="The order."
)
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many.")
@click.option("--after", help="Continue after the cursor of the previous page, which has the same order.")
@connected(json="Print projects and the next cursor as JSON.")
async def list_projects(run: Run, user: str, sort: str, limit: int, after: str | None) -> None:
    """List the projects of USER (an id or e-mail address): the newest or last changed first, or by name."""
    from ximler.projects import projects as owned

    actor = _as(run, await run.user_id(user))
    run.show_list(
        await owned.page(
            run.database,
            actor,
            first=limit,
            after=owned.order_of(sort.upper()).decoded(after),
            sort=sort.upper(),
        ),
        row=lambda project: fields(project, _FIELDS),
        columns={
            "Id": lambda project: project.id,
            "Name": lambda project: project.name,
            "Bytes": lambda project: f"{project.storage_size:,}",
            "Revision": lambda project: project.canvas_revision,
            "Changed": lambda project: minute(project.updated_at),
        },
        empty=f"{user} has no projects.",
    )


@projects.command()
@click.argument("text")
@paged
@connected(json="Print projects and the next cursor as JSON.")
async def search(run: Run, text: str, limit: int, after: Any) -> None:
    """Find projects of all users by words of name and description: any of them.
    `"a phrase"` is matched as a whole, and `-word` excludes.
    """
    from ximler.projects import everybodys

    run.show_list(
        await everybodys.search(run.database, run.actor, text, first=limit, after=after),
        row=lambda project: fields(project, _FIELDS),
        columns={
            "Id": lambda project: project.id,
            "User": lambda project: project.user_id,
            "Name": lambda project: project.name,
            "Bytes": lambda project: f"{project.storage_size:,}",
            "Changed": lambda project: minute(project.updated_at),
        },
        empty="No project has these words.",
    )


@projects.command("trash")
@click.argument("user")
@click.option("--restore", "project", type=Id(), help="Restore this project of the user's trash.")
@click.option("--empty", is_flag=True, help="Delete all of them permanently.")
@paged
@connected(json="Print projects and the next cursor as JSON.")
async def list_trash(run: Run, user: str, project: Any, empty: bool, limit: int, after: Any) -> None:
    """List the deleted projects of USER (an id or e-mail address), last deleted first.
    They are purged after 30 days."""
    from ximler.projects import projects as owned
    from ximler.projects import trash

    actor = _as(run, await run.user_id(user))
    if project is not None and empty:
        raise Invalid.field("empty", "does not go with --restore")
    if project is not None:
        await owned.restore(run.database, actor, project)
        _show(run, await owned.get(run.database, actor, project))
        return
    if empty:
        count = await trash.empty(run.database, actor)
        run.show({"purged": count}, f"{counted(count, 'project')} deleted permanently.")
        return
    run.show_list(
        await owned.deleted_page(run.database, actor, first=limit, after=after),
        row=lambda project: fields(project, f"{_FIELDS} deleted_at"),
        columns={
            "Id": lambda project: project.id,
            "Name": lambda project: project.name,
            "Bytes": lambda project: f"{project.storage_size:,}",
            "Deleted": lambda project: minute(project.deleted_at),
        },
        empty=f"The trash of {user} is empty.",
    )


@projects.command()
@_project
@connected(json="Print the project as JSON.")
async def show(run: Run, project: Any) -> None:
    """Show PROJECT, without its canvas."""
    from ximler.projects import projects as owned

    _show(run, await owned.get(run.database, await _owner(run, project), project))


def _refuse_terminal(*, whole: bool, output: Output, **_: object) -> None:
    if whole and output.path is None and sys.stdout.isatty():
        raise Invalid.field("output", "is a terminal, which cannot show an archive: give -o FILE, or a pipe")


@projects.command()
@_project
@click.option("--version", type=Id(), help="A kept version's id, in place of the canvas as it is.")
@click.option("--zip", "whole", is_flag=True, help="Settings, canvas, versions and assets as a zip archive.")
@output_option
@connected(first=_refuse_terminal)
async def export(run: Run, project: Any, version: Any, whole: bool, output: Output) -> None:
    """Write the canvas of PROJECT as JSON, byte for byte as it was imported if it is unchanged since, or with
    `--zip` the whole project. An archive is not written to a terminal.
    """
    from ximler.projects import archives

    if whole and version is not None:
        raise Invalid.field("version", "is not for --zip, which has all versions")
    actor = await _owner(run, project)
    if whole:
        pieces = await archives.export(run.database, actor, project)
    else:
        pieces = await archives.export_file(run.database, actor, project, version)
    with output.opened() as file:
        async for piece in pieces:
            file.write(piece)


def _read(*, file: BinaryIO, into: Any, name: str | None, **_: object) -> dict[str, Any]:
    """The file's text and value, before the database is opened, or the file of a zip archive, and the
    project's name. Limits and strictness are those of the API.
    """
    from ximler.core import strict_json
    from ximler.database.mixed import MAX_CONTAINERS, MAX_VALUES

    start = file.read(4)
    if start.startswith(b"PK"):
        return {"file": _seekable(start, file)}
    text = start + file.read()
    if name is None and into is None:
        if file.name == "<stdin>":
            raise Invalid.field("name", "is missing: --name NAME, because standard input has none")
        name = Path(file.name).stem
    try:
        data = strict_json.decode(text, values=MAX_VALUES, containers=MAX_CONTAINERS)
    except strict_json.NotJson as problem:
        raise Invalid.field("file", problem.about("The file")) from None
    return {"file": (text, data), "name": name}


def _seekable(start: bytes, file: BinaryIO) -> BinaryIO:
    if file.seekable():
        return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
    copy.write(start)
    shutil.copyfileobj(file, copy)
    return copy


@projects.command("import")
@click.argument("user")
@click.argument("file", type=click.File("rb"))
@click.option("--name", help="Name of the new project.  [default: the file's]")
@click.option("--into", type=Id(), help="Replace this project's canvas, in place of a new project.")
@connected(json="Print the project as JSON.", first=_read)
async def import_canvas(run: Run, user: str, file: Any, name: str | None, into: Any) -> None:
    """Make a project of USER (an id or e-mail address) from FILE: a zip archive that `export --zip` made, or
    JSON, such as a drawing of Excalidraw; `-` is standard input. With `--into`, the canvas as it was becomes
    a version.
    """
    from ximler.projects import archives, canvas, versions
    from ximler.projects import projects as owned

    actor = _as(run, await run.user_id(user))
    most = run.settings.asset_max_mb * 1_000_000
    if not isinstance(file, tuple):
        if into is not None:
            raise Invalid.field("into", "is for JSON: an archive is always a new project")
        made = await archives.load(run.database, actor, file, name=name, most=most)
        _show(run, await owned.get(run.database, actor, made))
        return
    text, data = file
    if into is None:
        made = await archives.load_file(run.database, actor, text, name=name or "", most=most)
        _show(run, await owned.get(run.database, actor, made))
        return
    await versions.create(run.database, actor, into, pinned=False, automatic=True)
    await canvas.replace(run.database, actor, into, data, based_on=None, any_keys=True, text=text)
    _show(run, await owned.get(run.database, actor, into))


@projects.command()
@_project
@connected(json="Print the project as JSON.")
async def delete(run: Run, project: Any) -> None:
    """Move PROJECT to its owner's trash, for 30 days."""
    from ximler.projects import projects as owned

    _show(run, await owned.delete(run.database, await _owner(run, project), project))


def _confirm_erasure(*, yes: bool, **_: object) -> None:
    if not yes:
        click.confirm("Erase the project with its versions and assets for good?", abort=True, err=True)


@projects.command()
@_project
@click.option("--yes", is_flag=True, help="Do not ask.")
@connected(json="Print the project's id as JSON.", first=_confirm_erasure)
async def erase(run: Run, project: Any, yes: bool) -> None:  # noqa: ARG001 (`first` reads it)
    """Erase PROJECT, which is in its owner's trash, for good, with its versions and assets."""
    from ximler.projects import projects as owned
    from ximler.projects import trash as deleted

    owner = await owned.owner_of(run.database, run.actor, project, deleted=True)
    await deleted.purge(run.database, _as(run, owner), project)
    run.show({"id": str(project)}, f"{project} is erased.")


@projects.command("versions")
@_project
@paged
@connected(json="Print versions and the next cursor as JSON.")
async def list_versions(run: Run, project: Any, limit: int, after: Any) -> None:
    """List the versions of PROJECT's canvas, newest first."""
    from ximler.projects import versions

    run.show_list(
        await versions.page(run.database, await _owner(run, project), project, first=limit, after=after),
        row=lambda version: fields(version, _VERSION),
        columns={
            "Id": lambda version: version.id,
            "Revision": lambda version: version.revision,
            "Name": lambda version: version.name or ("(automatic)" if version.automatic else ""),
            "Pinned": lambda version: "yes" if version.pinned else "no",
            "Bytes": lambda version: f"{version.stored_bytes:,}",
            "Kept": lambda version: minute(version.created_at),
        },
        empty="The canvas has no versions yet.",
    )


@projects.command("assets")
@_project
@click.option("--unused", is_flag=True, help="Those that neither the canvas nor a kept version shows.")
@paged
@connected(json="Print assets and the next cursor as JSON.")
async def list_assets(run: Run, project: Any, unused: bool, limit: int, after: Any) -> None:
    """List the assets of PROJECT, its files, newest first."""
    from ximler.projects import assets, assets_usage

    listed = assets_usage.unused if unused else assets.page
    run.show_list(
        await listed(run.database, await _owner(run, project), project, first=limit, after=after),
        row=lambda asset: fields(asset, _ASSET),
        columns={
            "Id": lambda asset: asset.id,
            "Name": lambda asset: asset.name,
            "Type": lambda asset: asset.content_type,
            "Bytes": lambda asset: f"{asset.size_bytes:,}",
            "Uploaded": lambda asset: minute(asset.created_at),
        },
        empty="No assets are unused." if unused else "The project has no assets yet.",
    )


@projects.command()
@_project
@click.argument("version", type=Id())
@connected(json="Print the project as JSON.")
async def restore(run: Run, project: Any, version: Any) -> None:
    """Make VERSION the canvas of PROJECT. The canvas as it was becomes a version."""
    from ximler.projects import projects as owned
    from ximler.projects import versions

    actor = await _owner(run, project)
    await versions.restore(run.database, actor, project, version)
    _show(run, await owned.get(run.database, actor, project))


async def _owner(run: Run, project: Any) -> Actor:
    from ximler.projects import projects as owned

    return _as(run, await owned.owner_of(run.database, run.actor, project))


def _as(run: Run, user_id: Any) -> Actor:
    """The operator, in place of a user: limits and storage are the user's."""
    return msgspec.structs.replace(run.actor, user_id=user_id)


def _show(run: Run, project: "ProjectSummary | Project") -> None:
    size = counted(project.storage_size, "byte")
    run.show(fields(project, _FIELDS), f"{project.name}: {size}, revision {project.canvas_revision}. Id: {project.id}")
