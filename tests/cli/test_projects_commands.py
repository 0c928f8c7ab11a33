"""`ximler projects` as an operator types it."""

import asyncio
import json

import pytest
from bson import ObjectId
from tests.serving import Client

from ximler.accounts import roles
from ximler.cli import projects
from ximler.cli.files import Output
from ximler.core.actor import Actor
from ximler.core.errors import Invalid
from ximler.projects import bases, versions
from ximler.projects import projects as owned

DRAWING = {"type": "excalidraw", "version": 2, "elements": [{"id": "a", "x": 1.5, "text": "é"}], "appState": {}}


def test_a_canvas_goes_in_and_out_and_back_to_a_version(ximler, own, tmp_path):
    env, _ = own
    made = ximler(
        "users", "create", "--name", "Ada", "--email", "ada@example.com", "--password-stdin", env=env,
        stdin="seven violet anchors drift",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    file = tmp_path / "plan.excalidraw"
    file.write_text(json.dumps(DRAWING, indent=2))
    imported = ximler("projects", "import", "ada@example.com", str(file), "--json", env=env)
    assert imported.returncode == 0, imported.stderr
    assert json.loads(imported.stdout)["name"] == "plan"
    project = json.loads(imported.stdout)["id"]
    assert ximler("projects", "export", project, env=env).stdout == file.read_text()

    replaced = ximler("projects", "import", "ada@example.com", "-", "--into", project, env=env, stdin='{"b": 1}')
    assert "revision 2" in replaced.stdout
    assert ximler("projects", "export", project, env=env).stdout == '{"b": 1}'
    listed = json.loads(ximler("projects", "versions", project, "--json", env=env).stdout)["items"]
    assert [(each["name"], each["automatic"], each["pinned"], each["assets"]) for each in listed] == [
        (None, True, False, [])
    ]
    assert ximler("projects", "export", project, "--version", listed[0]["id"], env=env).stdout == file.read_text()
    assert ximler("projects", "restore", project, listed[0]["id"], env=env).returncode == 0
    out = tmp_path / "out.json"
    ximler("projects", "export", project, "-o", str(out), env=env)
    assert out.read_bytes() == file.read_bytes()
    assert "plan" in ximler("projects", "list", "ada@example.com", "--sort", "name", env=env).stdout
    assert "plan" in ximler("projects", "search", "plans", env=env).stdout

    twice = ximler(
        "projects", "import", "ada@example.com", "-", "--name", "n", env=env, stdin='{"a": {"b": 1, "b": 2}}'
    )
    assert twice.returncode == 2
    assert "/a/b in the file is a key that its object has twice" in twice.stderr
    nameless = ximler("projects", "import", "ada@example.com", "-", env=env, stdin="{}")
    assert (nameless.returncode, "--name NAME" in nameless.stderr) == (2, True)


def test_an_archive_is_not_written_to_a_terminal(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    terminal, file = Output(None), Output(tmp_path / "p.zip")
    with pytest.raises(Invalid, match="-o FILE"):
        projects._refuse_terminal(whole=True, output=terminal)
    projects._refuse_terminal(whole=True, output=file)
    projects._refuse_terminal(whole=False, output=terminal)


def test_the_trash_is_listed_restored_and_emptied(ximler, own):
    env, _ = own
    made = ximler(
        "users", "create", "--name", "Bea", "--email", "bea@example.com", "--password-stdin", env=env,
        stdin="seven violet anchors drift",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    drawn = ximler("projects", "import", "bea@example.com", "-", "--name", "Gone", "--json", env=env, stdin="{}")
    project = json.loads(drawn.stdout)["id"]
    assert "is empty" in ximler("projects", "trash", "bea@example.com", env=env).stdout
    assert ximler("projects", "trash", "bea@example.com", "--restore", project, env=env).returncode != 0
    assert json.loads(ximler("projects", "trash", "bea@example.com", "--empty", "--json", env=env).stdout) == {
        "purged": 0
    }


def test_a_whole_project_goes_out_and_in_and_is_erased(ximler, own, tmp_path):
    env, _ = own
    created = ximler(
        "users", "create", "--name", "Ada", "--email", "ada@example.com", "--password-stdin", env=env,
        stdin="seven violet anchors drift",
    )  # fmt: skip
    assert created.returncode == 0, created.stderr
    drawing = json.dumps(DRAWING | {"files": {"a": {"dataURL": f"data:image/png;base64,{'AAAA' * 300}"}}}, indent=1)
    made = ximler("projects", "import", "ada@example.com", "-", "--name", "P", "--json", env=env, stdin=drawing)
    project = json.loads(made.stdout)["id"]
    assert ximler("projects", "export", project, env=env).stdout == drawing
    assert "1.png" in ximler("projects", "assets", project, env=env).stdout
    assert "No assets are unused" in ximler("projects", "assets", project, "--unused", env=env).stdout

    archive = tmp_path / "p.zip"
    assert ximler("projects", "export", project, "--zip", "-o", str(archive), env=env).returncode == 0
    copied = ximler("projects", "import", "ada@example.com", str(archive), "--json", env=env)
    copy = json.loads(copied.stdout)
    assert (copy["name"], copy["id"] != project) == ("P", True)
    assert ximler("projects", "export", copy["id"], env=env).stdout == drawing
    assert ximler("projects", "import", "ada@example.com", str(archive), "--into", project, env=env).returncode == 2

    assert ximler("projects", "erase", copy["id"], "--yes", env=env).returncode == 5
    assert ximler("projects", "delete", copy["id"], env=env).returncode == 0
    assert "is erased" in ximler("projects", "erase", copy["id"], "--yes", env=env).stdout
    assert ximler("projects", "show", copy["id"], env=env).returncode == 5


_SHOWN = "{ edges { node { id name description storageSize canvasRevision tags starred role thumbnailUrl } } }"
_LISTS = [
    f"projects(first: 50) {_SHOWN}",
    *(f"projects(first: 50, sort: {sort}) {_SHOWN}" for sort in ("UPDATED", "NAME")),
    *(f'projects(first: 50, search: "{words}") {_SHOWN}' for words in ("pl", "plan harb")),
    f'projects(first: 50, tags: ["t"], starred: true) {_SHOWN}',
    f"projects(first: 50, near: {{latitude: 50, longitude: 8}}) {_SHOWN}",
    f"me {{ projects(first: 50) {_SHOWN} }}",
    f"trash(first: 50) {_SHOWN}",
    f"sharedProjects(first: 50) {_SHOWN}",
    f'sharedProjects(first: 50, search: "pl") {_SHOWN}',
    'allProjects(first: 50, search: "plan") { edges { node { id name description storageSize } } }',
]


@pytest.mark.slow
async def test_lists_of_graphql_and_of_commands_read_no_canvas(database, app, ximler, own, monkeypatch) -> None:
    """By the server's own account of the bytes that it sent."""
    monkeypatch.setattr(bases, "LIMIT", 60_000)
    env, _ = own
    ada, bob = [await Client(app).join(f"{name}@example.com") for name in ("ada", "bob")]
    await roles.grant(
        database, Actor(kind="operator", via="cli"), ObjectId((await bob.ask("{ me { id } }"))["me"]["id"]), "operator"
    )
    await bob.sign_in("bob@example.com")
    owner = Actor(kind="user", user_id=ObjectId((await ada.ask("{ me { id } }"))["me"]["id"]))
    await database.raw["plans"].update_many({}, {"$set": {"limits.projects": 200}})
    for n in range(51):
        made = await owned.create(
            database, owner, name=f"Plan {n}", description="Harbour", tags=["t"], starred=True,
            canvas_data={"elements": [{"id": "a", "text": "x" * (80_000 if n % 5 else 40_000)}]},
            location={"latitude": 50.0, "longitude": 8.0},
        )  # fmt: skip
        if n < 10:
            share = (
                'mutation ($id: ID!) { shareProject(projectId: $id, email: "bob@example.com", role: READER) { role } }'
            )
            assert not (await ada.ask(share, id=str(made.id))).errors
        if n % 10 == 0:
            await versions.create(database, owner, made.id)
            await owned.delete(database, owner, made.id) if n else None
    await database.raw.command("profile", 2)
    try:
        found = 0
        for asked in _LISTS:
            by = bob if "allProjects" in asked or "shared" in asked else ada
            answer = await by.ask(f"{{ {asked} }}")
            assert not answer.errors, answer.errors
            (listed,) = answer.data.values()
            found += len(listed.get("projects", listed)["edges"])
        for command in (("list", "ada@example.com"), ("trash", "ada@example.com"), ("search", "plan")):
            done = await asyncio.to_thread(ximler, "projects", *command, "--limit", "50", "--json", env=env)
            found += len(json.loads(done.stdout)["items"])
        sent = await database.raw["system.profile"].find({"ns": {"$regex": r"\.(projects|canvas\w+)$"}}).to_list()
    finally:
        await database.raw.command("profile", 0)
        await database.raw["system.profile"].drop()
    assert found == 8 * 46 + 5 + 2 * 10 + 46 + (46 + 5 + 46)
    assert {each["ns"].partition(".")[2] for each in sent} == {"projects"}
    assert sum(each["responseLength"] for each in sent) < 1000 * found
