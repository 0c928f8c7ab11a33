"""An addition is one registration: one of each kind is made in a copy of the tree,
in the files that CONTRIBUTING.md names."""

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from ximler.schema.meta import SCHEMA_VERSION

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("src", "tools", "docs", "README.md", "pyproject.toml", "requirements.lock", "requirements-dev.lock",
          "requirements-bench.lock")  # fmt: skip

COLLECTION = """
from typing import Annotated
from bson import ObjectId
from ximler.schema.document import Collection, Created, ShardKey, Theirs, UserId, ascending

class Bookmark(Created, kw_only=True):
    user_id: UserId
    label: Theirs[str]

BOOKMARKS = Collection(
    name="bookmarks", document=Bookmark, purpose="Places to come back to.", owner="projects",
    indexes=(ascending("userId", why="a user's bookmarks"),), shard_key=ShardKey((("userId", "hashed"),), "read by user"),
)
"""
ROUTE = """
from litestar import get

@get("/v1/bookmarks", opt={"api_calls": 3}, tags=["projects"], summary="Bookmarks")
async def listed() -> list[str]:
    return ["here"]

routes = (listed,)
"""
COMMAND = '''
import click
from ximler.cli.context import Run, connected

@click.group()
def bookmarks() -> None:
    """Bookmarks."""

@bookmarks.command("list")
@connected(json="Print them as JSON.")
async def list_bookmarks(run: Run) -> None:
    """List bookmarks."""
    found = await run.database.raw["bookmarks"].find({}).to_list()
    run.show_list(found, row=dict, columns={"Label": lambda each: each["label"]}, empty="There are no bookmarks.")
'''
SDL = """
extend type Query {
  "How many bookmarks there are."
  bookmarkCount: Int! @scope
}
"""
RESOLVER = """

@resolvers.query("bookmarkCount")
async def bookmark_count(ctx: Context) -> int:
    return 7
"""
SETTING = """    bookmark_key: Annotated[Secret | None, Meta(description="A key.")] = None
    bookmark_days: Annotated[tuple[int, ...], Meta(description="Some days.")] = (1,)
"""
NEXT = SCHEMA_VERSION + 1
MIGRATION = f"""
from typing import Any
from ximler.database import Database
from ximler.database.migrating import Migration, Step

WHERE: dict[str, Any] = {{"kept": {{"$ne": True}}}}

async def _count(database: Database) -> int:
    return await database.raw["theirs"].count_documents(WHERE)

async def _batch(transaction: Database, place: dict[str, Any]) -> Step:
    done = await transaction.raw["theirs"].update_many(WHERE, {{"$set": {{"kept": True}}}}, session=transaction.session)
    return Step(done.modified_count, None)

MIGRATION = Migration(version={NEXT}, name="{NEXT:04}_kept", safe=True, count=_count, batch=_batch)
"""
# By kind: file → a new file's text, or (what stands there, what comes before it), or text to append.
ADDITIONS: dict[str, dict[str, str | tuple[str, str]]] = {
    "collection": {"schema/bookmark.py": COLLECTION},
    "field": {"schema/project.py": ("    storage_size: ", "    colour: Theirs[str | None] = None\n")},
    "audit action": {
        "audit/actions.py": (
            "    PROJECT_CREATED = ",
            '    MARKED = "projects.bookmark.made", "A bookmark was made."\n',
        )
    },
    "REST route": {"http/bookmarks.py": ROUTE},
    "GraphQL field": {"graphql/billing.graphql": SDL, "graphql/billing.py": RESOLVER},
    "setting": {
        "core/settings.py": (
            "    # HTTP\n",
            SETTING,
        )
    },
    "migration": {
        f"migrations/m{NEXT:04}_kept.py": MIGRATION,
        "schema/meta.py": ("\n\nclass Meta(", f"SCHEMA_VERSION = {NEXT}\n"),
    },
    "CLI command": {
        "cli/bookmarks.py": COMMAND,
        "cli/main.py": ('    "shell": (', '    "bookmarks": ("ximler.cli.bookmarks", "bookmarks", "Bookmarks."),\n'),
    },
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree with all additions, and the generated files written anew."""
    tree = tmp_path_factory.mktemp("additions")
    for name in COPIED:
        whole = ROOT / name
        copy = shutil.copytree if whole.is_dir() else shutil.copy
        copy(whole, tree / name)
    for files in ADDITIONS.values():
        for name, change in files.items():
            file = tree / "src" / "ximler" / name
            text = file.read_text() if file.exists() else ""
            if isinstance(change, tuple):
                before, added = change
                assert text.count(before) == 1, (name, before)
                file.write_text(text.replace(before, added + before))
            else:
                file.write_text(text + change)
    assert python(tree, "-m", "tools.generate").returncode == 0
    return tree


@pytest.fixture
def own(mongodb_uri: str) -> Iterator[tuple[dict[str, str], Any]]:
    """Environment for a database of the test's own, and the database."""
    name = f"ximler_test_additions_{secrets.token_hex(4)}"
    with MongoClient[dict[str, Any]](mongodb_uri) as client:
        yield {"MONGODB_URI": mongodb_uri, "XIMLER_DATABASE": name, "XIMLER_SECRET_KEY": "k" * 32}, client[name]
        client.drop_database(name)


def python(tree: Path, *arguments: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("XIMLER_", "MONGODB_"))}
    path = f"{tree / 'src'}{os.pathsep}{tree}"
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**plain, "PYTHONPATH": path, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )


def run(tree: Path, source: str, env: dict[str, str] | None = None) -> list[str]:
    done = python(tree, "-c", f"import ximler\nassert ximler.__file__.startswith({str(tree)!r})\n{source}", env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("kind", ADDITIONS)
def test_the_table_in_contributing_names_the_files_of_each_addition(kind: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| {kind} |"))
    named = re.findall(r"`([a-z]+/[A-Za-z_]+\.[a-z]+)`", row.split("|")[2])
    touched = ADDITIONS[kind]
    assert len(named) == len(touched)
    for pattern, name in zip(named, touched, strict=True):
        assert re.fullmatch(pattern.replace(".", r"\.").replace("NNNN", r"\d{4}").replace("NAME", "[a-z_]+"), name), (
            pattern,
            name,
        )


def test_a_collection_is_one_module(tree: Path, own: tuple[dict[str, str], Any]) -> None:
    env, database = own
    assert python(tree, "-m", "ximler", "db", "init", env=env).returncode == 0
    assert "userId_1" in database.bookmarks.index_information()
    [found] = database.list_collections(filter={"name": "bookmarks"})
    assert "label" in found["options"]["validator"]["$jsonSchema"]["properties"]
    assert python(tree, "-m", "ximler", "db", "status", env=env).returncode == 0
    assert "## bookmarks" in (tree / "docs" / "schema.md").read_text()
    source = "from ximler.schema.bookmark import BOOKMARKS as b; print(b.private, b.erasure, *b.exported)"
    assert run(tree, source) == ["True documents _id createdAt label"]


def test_only_its_owner_may_import_a_new_private_collection(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy)
    (copy / "src/ximler/billing/bookmarks.py").write_text("from ximler.schema.bookmark import BOOKMARKS\n")
    (copy / "src/ximler/projects/bookmarks.py").write_text("from ximler.schema.bookmark import BOOKMARKS\n")
    lint = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"
    done = python(copy, "-c", lint)
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "ximler.billing.bookmarks imports ximler.schema.bookmark, which is private to ximler.projects" in said
    assert "ximler.projects.bookmarks imports" not in said


def test_a_field_and_an_action_are_one_line(tree: Path) -> None:
    source = "from ximler.privacy.export import CONTENTS as c; print('colour' in c['projects.json'].exported)"
    assert run(tree, source) == ["True"]
    assert "| `colour` |" in (tree / "docs" / "schema.md").read_text()
    assert "| `projects.bookmark.made` | A bookmark was made. |" in (tree / "docs" / "audit.md").read_text()


def test_a_route_and_a_graphql_field_answer(tree: Path, own: tuple[dict[str, str], Any]) -> None:
    env, _ = own
    assert python(tree, "-m", "ximler", "db", "init", env=env).returncode == 0
    source = """
import asyncio, os, httpx
from ximler.app import create
from ximler.core import logs
from ximler.core.settings import load
from ximler.http.metered import Prices

async def main():
    logs.configure(load())
    app = create(load(), uri=os.environ["MONGODB_URI"])
    inner = app
    while not hasattr(inner, "routes"):
        inner = inner._litestar if hasattr(inner, "_litestar") else inner._app
    async with inner.lifespan():
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")
        print((await client.get("/v1/bookmarks")).json())
        print("/v1/bookmarks" in (await client.get("/docs/openapi.json")).json()["paths"])
        print((await client.post("/graphql", json={"query": "{ bookmarkCount }"})).json())
        print(Prices(inner.routes).of("/v1/bookmarks"))
asyncio.run(main())
"""
    answers = run(tree, source, {**env, "XIMLER_WORKER": "false"})
    assert answers == ["['here']", "True", "{'data': {'bookmarkCount': 7}}", "('/v1/bookmarks', 3)"]


def test_a_setting_is_one_field(tree: Path) -> None:
    source = """
from ximler.core.settings import load
found = load({"XIMLER_BOOKMARK_KEY": "hunter2", "XIMLER_BOOKMARK_DAYS": "1, 2"})
print(found.bookmark_key, found.bookmark_days, found)
"""
    [line] = run(tree, source)
    assert line == "hunter2 (1, 2) Settings(bookmark_key='…', bookmark_days=(1, 2))"
    assert "| `XIMLER_BOOKMARK_DAYS` | `1` | Some days. |" in (tree / "README.md").read_text()


def test_a_command_is_one_function(tree: Path, own: tuple[dict[str, str], Any]) -> None:
    env, database = own
    database.bookmarks.insert_one({"_id": 1, "label": "here"})
    assert "bookmarks" in python(tree, "-m", "ximler", "--help").stdout
    table = python(tree, "-m", "ximler", "bookmarks", "list", env=env)
    assert (table.returncode, table.stdout.split()) == (0, ["Label", "here"]), table.stderr
    listed = python(tree, "-m", "ximler", "bookmarks", "list", "--json", env=env).stdout
    assert '"items"' in listed
    assert '"next": null' in listed


def test_a_migration_is_one_module_and_a_number(tree: Path, own: tuple[dict[str, str], Any]) -> None:
    env, database = own
    assert python(ROOT, "-m", "ximler", "db", "init", env=env).returncode == 0
    database.theirs.insert_many([{"n": n} for n in range(3)])
    planned = python(tree, "-m", "ximler", "db", "migrate", "--dry-run", env=env)
    assert f"{NEXT:04}_kept: 3 documents" in planned.stdout, planned.stderr
    assert python(tree, "-m", "ximler", "db", "migrate", env=env).returncode == 0
    assert database.theirs.count_documents({"kept": True}) == 3
    assert database.meta.find_one({"_id": "schema"})["version"] == NEXT
    refused = python(ROOT, "-m", "ximler", "db", "status", env=env)
    assert "Upgrade Ximler" in refused.stderr
