"""The documentation page works offline: it loads everything from the same origin."""

import asyncio
import gzip
import json
import re
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import pytest
from litestar.enums import MediaType
from tests.serving import Client

from ximler.http import docs, routes

PAGE = "http://ximler.test/docs"

LOADING = {"src", "href", "action", "srcset", "data", "poster", "background", "manifest"}


class Links(HTMLParser):
    """Every URL that the page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [value or "" for name, value in attrs if name in LOADING]


def is_here(url: str) -> bool:
    return url.startswith("data:") or urlsplit(urljoin(PAGE, url)).netloc == "ximler.test"


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/docs/oauth2-redirect.html", "/"])
async def test_a_page_loads_nothing_from_elsewhere(client: Client, path: str) -> None:
    response = await client.http.get(path)
    page = Links()
    page.feed(response.text)
    assert [url for url in page.urls if not is_here(url)] == []
    assert "//cdn" not in response.text
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] in ("'self'", "'none'")
    assert policy["frame-ancestors"] == "'none'"
    sources = {source for value in policy.values() for source in value.split()}
    assert {source for source in sources if not source.startswith("'sha256-")} <= {"'self'", "'none'", "data:"}


@pytest.mark.parametrize("path", ["/docs/nothing", "/docs/redoc", "/docs/openapi.yaml", "/docs/a/b"])
async def test_unknown_paths_below_the_page_return_problem_details(client: Client, path: str) -> None:
    response = await client.http.get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"] == f"Nothing is found at {path}"


async def test_everything_the_page_loads_is_there_and_loads_nothing_from_elsewhere(client: Client) -> None:
    page = Links()
    page.feed((await client.http.get("/docs")).text)
    assert {"script", "link"} <= set(page.tags)
    kinds = []
    for url in page.urls:
        response = await client.http.get(urljoin(PAGE, url))
        assert response.status_code == 200, url
        kinds.append(response.headers["content-type"].split(";")[0])
        if kinds[-1] == "text/css":
            inside = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", response.text)
            assert [found for pair in inside for found in pair if found and not is_here(found)] == []
    assert sorted(kinds) == ["text/css", "text/javascript", "text/javascript"]


async def test_the_document_is_openapi_and_names_every_route_that_people_use(client: Client) -> None:
    response = await client.http.get("/docs/openapi.json")
    document = json.loads(response.content)
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": "/"}]
    shown = {path for route in routes() if route.include_in_schema is not False for path in route.paths}
    assert document["paths"].keys() == {re.sub(r":[a-z]+}", "}", path) for path in shown}
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            assert operation["summary"], (path, verb)
            for status, answer in operation["responses"].items():
                assert answer["description"] != "Additional response", (path, verb, status)
                if status in ("400", "413"):
                    page = status == "413" and not path.startswith("/v1/")  # for people
                    assert list(answer["content"]) in (["application/problem+json"], ["text/html"] * page), path


def test_rest_is_under_v1_and_only_pages_and_operation_are_not() -> None:
    for route in routes():
        page = getattr(route, "media_type", None) == MediaType.HTML
        free = page or not route.include_in_schema or "operation" in (route.tags or ())
        assert all(free is not path.startswith("/v1/") for path in route.paths), route.paths


@pytest.mark.parametrize(
    "path",
    ["..%2f..%2f..%2fsetup.py", "%2e%2e/%2e%2e/pyproject.toml", "....//....//etc/passwd", "/etc/passwd", "%00", "",
     "swagger-editor.js", "swagger-ui.css%00.js", "__init__.py", "..%2fcore.py", "%2e%2e%2fcore.py", "%5c..%5c..%5cetc"],
)  # fmt: skip
async def test_only_the_pages_own_files_can_be_had(client: Client, path: str) -> None:
    response = await client.http.get(f"/docs/assets/{path}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


async def test_the_document_is_complete_for_generators(client: Client) -> None:
    """The rules of `redocly lint` that a document of ours has broken."""
    document = (await client.http.get("/docs/openapi.json")).json()
    assert document["info"]["license"]["identifier"] == "Apache-2.0"
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            assert operation.get("security", document["security"]), (path, verb)
            assert any(status.startswith("4") for status in operation["responses"]), (path, verb)
    bodies = {
        path for path, operations in document["paths"].items() if any("requestBody" in o for o in operations.values())
    }
    assert {"/v1/avatar", "/v1/usage/events", "/v1/projects/{project}/canvas", "/webhooks/stripe"} <= bodies
    refresh = document["paths"]["/v1/session/refresh"]["post"]
    assert "`SESSION_EXPIRED`" in refresh["description"]  # from the docstring: decision 7
    assert [each["name"] for each in refresh["parameters"]] == ["Idempotency-Key"]
    assert "oneOf" not in document["components"]["schemas"]["VersionChanges"]["properties"]["pinned"]


async def test_many_first_requests_compress_a_file_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = []
    compress = gzip.compress

    def counted(data: bytes, **options: int) -> bytes:
        compressed.append(len(data))
        return compress(data, **options)

    monkeypatch.setattr(docs, "_read", {})
    monkeypatch.setattr(docs.gzip, "compress", counted)
    answers = await asyncio.gather(*(client.http.get("/docs/assets/swagger-ui.css") for _ in range(20)))
    assert {each.status_code for each in answers} == {200}
    assert len(compressed) == 1
