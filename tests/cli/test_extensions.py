"""The example of docs/extending.md, loaded by its entry point into a running Ximler."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "bookmarks" / "src"
PASSWORD = "correct horse battery"


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment where the example is installed, as pip would."""
    metadata = tmp_path / "site" / "ximler_bookmarks-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ximler-bookmarks\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[ximler.extensions]\nbookmarks = ximler_bookmarks\n")
    return {"PYTHONPATH": f"{metadata.parent}:{EXAMPLE}"}


def until(find: Callable[[], Any]) -> Any:
    """The first result that is not empty."""
    deadline = time.monotonic() + 30
    while not (found := find()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_an_extension_brings_a_collection_a_mutation_a_job_and_a_page(up, installed):
    server = up(env=installed)
    ada = {"name": "Ada", "email": "ada@example.com", "password": PASSWORD}
    server.query("mutation ($input: RegisterInput!) { register(input: $input) { accepted } }", input=ada)
    (mail,) = until(lambda: server.client.get("/dev/mail.json").json()["items"])
    confirm = (
        "mutation ($token: String!, $password: String!) { confirmEmail(token: $token, password: $password) { token } }"
    )
    link = mail["links"][0].partition("token=")[2]
    answer = server.client.post("/graphql", json={"query": confirm, "variables": {"token": link, "password": PASSWORD}})
    token = answer.json()["data"]["confirmEmail"]["token"]
    add = 'mutation ($url: String!) { addBookmark(title: "Docs", url: $url) { title } }'
    refused = server.query(add, token=token, url="javascript:alert(1)")
    assert refused["errors"][0]["extensions"]["fields"] == {"url": "must begin with https:// or http://"}
    assert server.query(add, token=token, url="https://example.com")["data"] == {"addBookmark": {"title": "Docs"}}
    assert server.query("{ bookmarks { nodes { url } } }", token=token)["data"]["bookmarks"]["nodes"] == [
        {"url": "https://example.com"}
    ]
    ask = "{ notifications { nodes { title } } }"
    inbox = until(lambda: server.query(ask, token=token)["data"]["notifications"]["nodes"])
    assert inbox == [{"title": "Kept: Docs"}]

    page = {"Authorization": f"Bearer {token}"}
    assert "checked" in server.client.get("/bookmarks/settings", headers=page).text
    assert "checked" not in server.client.post("/bookmarks/settings", data={}, headers=page).text
    assert "checked" not in server.client.get("/bookmarks/settings", headers=page).text
    assert server.client.get("/bookmarks/settings").status_code == 401
    assert "/bookmarks/settings" in server.client.get("/docs/openapi.json").json()["paths"]
