"""`/v1/projects/{id}/canvas`: entity tags, preconditions, media types,
and JSON that comes back as it was sent."""

import gzip
import json
from typing import Any

import httpx
import pytest
import zstandard
from tests.serving import Client

from ximler.projects import bases

JSON_PATCH = "application/json-patch+json"
RECORDS = "application/vnd.ximler.records+json"


class Editor:
    """Ada's editor, with a project open."""

    def __init__(self, ada: Client, project: str) -> None:
        self.path = f"/v1/projects/{project}/canvas"
        self.http, self._token = ada.http, {"Authorization": f"Bearer {ada.token}"}

    async def read(self, **headers: str) -> httpx.Response:
        return await self.http.get(self.path, headers={**self._token, **named(headers)})

    async def save(
        self,
        content: Any,
        *,
        method: str = "PUT",
        kind: str = "application/json",
        base: int | None = None,
        **headers: str,
    ) -> httpx.Response:
        sent = {"content": content} if isinstance(content, bytes) else {"json": content}
        return await self.http.request(
            method,
            self.path,
            **sent,
            params={} if base is None else {"base": base},
            headers={**self._token, "Content-Type": kind, **named(headers)},
        )


def named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@pytest.fixture
async def editor(ada: Client) -> Editor:
    made = await ada.create(canvasData={"a": 1})
    return Editor(ada, made["createProject"]["id"])


async def test_it_is_read_and_saved_with_entity_tags(editor: Editor) -> None:
    first = await editor.read()
    assert (first.json(), first.headers["etag"], first.headers["canvas-revision"]) == ({"a": 1}, '"0"', "0")
    assert (await editor.read(if_none_match='"0"')).status_code == 304
    saved = await editor.save({"a": 2}, if_match='"0"')
    assert (saved.status_code, saved.json(), saved.headers["etag"]) == (200, {"revision": 1}, '"1"')
    late = await editor.save({"a": 3}, if_match='"0"')
    assert (late.status_code, late.headers["canvas-revision"]) == (412, "1")
    weak = await editor.save({"a": 3}, if_match='W/"1"')
    assert weak.status_code == 412
    assert "weak entity tag" in weak.json()["detail"]
    behind = await editor.save({"a": 3}, base=0)
    assert (behind.status_code, behind.json()["code"], behind.headers["canvas-revision"]) == (
        409, "REVISION_CONFLICT", "1",
    )  # fmt: skip
    assert (await editor.save({"a": 3})).status_code == 428
    assert (await editor.save({"a": 3}, if_match="*")).json() == {"revision": 2}
    assert (await editor.save({"a": 4}, if_match='"9", "2-gzip"')).json() == {"revision": 3}
    assert (await editor.read(if_none_match='"1", W/"3"')).status_code == 304


@pytest.mark.parametrize(
    ("encoding", "decompress"),
    [("gzip", gzip.decompress), ("zstd", lambda raw: zstandard.ZstdDecompressor().decompressobj().decompress(raw))],
)
@pytest.mark.parametrize("limit", [bases.LIMIT, 100], ids=["in the project", "with a base"])
async def test_it_is_compressed_with_a_tag_of_its_own(
    editor: Editor, encoding: str, decompress: Any, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "LIMIT", limit)
    content = {"shapes": [{"n": n} for n in range(500)]}
    await editor.save(content, base=0)
    accepts = editor._token | {"Accept-Encoding": f"{encoding}, *;q=0.1"}
    async with editor.http.stream("GET", editor.path, headers=accepts) as answer:
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
    tag = f'"1-{encoding}"'
    assert (answer.headers["content-encoding"], answer.headers["etag"]) == (encoding, tag)
    assert json.loads(decompress(raw)) == content
    assert len(raw) < len(decompress(raw)) / 4
    plain = await editor.read(accept_encoding=f"{encoding};q=0, identity")
    assert ("content-encoding" not in plain.headers, plain.headers["etag"], plain.json()) == (True, '"1"', content)
    head = await editor.http.head(editor.path, headers=accepts)
    assert (head.headers["etag"], head.content) == (tag, b"")
    assert (await editor.read(if_none_match=tag)).status_code == 304
    assert (await editor.save({}, if_match=tag)).status_code == 200


async def test_patches_change_a_part(editor: Editor) -> None:
    added = await editor.save([{"op": "add", "path": "/b", "value": []}], method="PATCH", kind=JSON_PATCH, base=0)
    assert added.json() == {"revision": 1}
    merged = await editor.save({"a": None}, method="PATCH", kind="application/merge-patch+json", if_match='"1"')
    assert merged.json() == {"revision": 2}
    assert (await editor.read()).json() == {"b": []}
    refused = await editor.save([{"op": "remove", "path": "/c"}], method="PATCH", kind=JSON_PATCH, base=2)
    assert (refused.status_code, list(refused.json()["fields"])) == (422, ["patch/0"])
    unknown = await editor.save({}, method="PATCH", base=2)
    assert (unknown.status_code, unknown.headers["accept-patch"]) == (
        415, f"{RECORDS}, {JSON_PATCH}, application/merge-patch+json",
    )  # fmt: skip
    assert (await editor.read()).headers["canvas-revision"] == "2"


async def test_records_are_patched_without_a_base_and_without_conflicts(editor: Editor) -> None:
    async def send(seq: int, **patch: Any) -> httpx.Response:
        return await editor.save({"client": "tab", "seq": seq, **patch}, method="PATCH", kind=RECORDS)

    first = await send(1, put=[{"id": "a", "x": 1}], set={"gone": {"x": 1}})
    assert (first.status_code, first.json()) == (200, {"revision": 1, "rejected": ["gone"]})
    assert first.headers["canvas-revision"] == "1"
    assert (await send(1, put=[{"id": "a", "x": 1}])).json() == first.json()
    assert (await send(2, set={"a": {"x": 2}})).json() == {"revision": 2, "rejected": []}
    assert (await editor.read()).json() == {"a": 1, "elements": [{"id": "a", "x": 2}]}
    assert (await send(1, set={"a": {"x": 1}})).json() == first.json()
    assert (await send(4, set={"a": {"x": 2}})).json() == {"revision": 3, "rejected": []}
    passed = await send(3, set={"a": {"x": 1}})
    assert (passed.status_code, passed.json()["code"]) == (422, "SEQ_PASSED")
    assert passed.json()["fields"] == {"seq": "must be above 4"}
    refused = await send(5, set={"a": {"$x": 1}})
    assert (refused.status_code, list(refused.json()["fields"])) == (422, ["set.0"])
    late = await editor.save({}, if_match='"0"')
    assert late.status_code == 412


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "/b/c"),
        (b'{"a": NaN}', "/a"),
        (b'{"a": 1e400}', "/a"),
        (b'{"a": "\\ud800"}', "/a"),
        (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
        (b'{"a": 1', "byte 7"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b"", "is empty: send the canvas"),
    ],
    ids=["key twice", "NaN", "1e400", "surrogate", "BOM", "cut", "no UTF-8", "empty"],
)
async def test_json_that_would_not_come_back_is_refused_with_its_place(editor: Editor, body: bytes, said: str) -> None:
    answer = await editor.save(body, base=0)
    assert (answer.status_code, said in answer.json()["detail"]) == (400, True), answer.json()
    assert (await editor.read()).json() == {"a": 1}


async def test_negative_zero_comes_back_by_every_way(
    editor: Editor, ada: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = b"[0,-0,-0.0]"
    assert (await editor.save(b'{"put":' + zeros + b',"elements":[{"id":"s","x":0}]}', base=0)).status_code == 200
    patch = b'[{"op":"add","path":"/patch","value":' + zeros + b"}]"
    assert (await editor.save(patch, method="PATCH", kind=JSON_PATCH, base=1)).status_code == 200
    merge = b'{"merge":' + zeros + b"}"
    assert (await editor.save(merge, method="PATCH", kind="application/merge-patch+json", base=2)).status_code == 200
    records = b'{"client":"tab","seq":1,"put":[{"id":"p","x":-0}],"set":{"s":{"x":-0}}}'
    assert (await editor.save(records, method="PATCH", kind=RECORDS)).status_code == 200
    kept = (
        b'"put":[0,-0.0,-0.0]',
        b'"patch":[0,-0.0,-0.0]',
        b'"merge":[0,-0.0,-0.0]',
        b'{"id":"s","x":-0.0}',
        b'"p","x":-0.0',
    )
    now = (await editor.read()).content
    assert all(each in now for each in kept), now
    monkeypatch.setattr(bases, "LIMIT", 10)
    assert (await editor.save(now, base=4)).status_code == 200
    assert (await editor.read()).content == now  # of a large canvas
    change = (
        "mutation($id: ID!, $v: JSON) { updateProject(id: $id, input: {canvasData: {a: -0, b: $v}}) { canvasData } }"
    )
    sent = f'{{"query":"{change}","variables":{{"id":"{editor.path.split("/")[3]}","v":-0}}}}'
    answer = await ada.http.post("/graphql", content=sent, headers=editor._token | {"Content-Type": "application/json"})
    assert b'{"a":-0.0,"b":-0.0}' in answer.content, answer.content


@pytest.mark.slow
async def test_numbers_and_strokes_come_back_as_they_went(editor: Editor) -> None:
    exact = b'{"n":9007199254740993,"f":0.1,"big":1.5e300,"text":"\\u00fc\xc3\xbc"}'
    assert (await editor.save(exact, base=0)).status_code == 200
    assert (await editor.read()).content == '{"n":9007199254740993,"f":0.1,"big":1.5e300,"text":"üü"}'.encode()
    strokes = {"strokes": [[[x * 0.37, x * 0.73] for x in range(200)] for _ in range(450)]}
    assert (await editor.save(strokes, base=1)).json() == {"revision": 2}
    assert (await editor.read()).json() == strokes


async def test_it_is_its_owners_only(editor: Editor, ada: Client, app: Any) -> None:
    eve = await Client(app).join("eve@example.com")
    theirs = Editor(eve, editor.path.split("/")[3])
    assert (await theirs.read()).status_code == 404
    assert (await theirs.save({}, if_match="*")).status_code == 404
    patch = await theirs.save([], method="PATCH", kind=JSON_PATCH, if_match="*")
    assert patch.status_code == 404
    assert (await eve.http.get(editor.path)).status_code == 401
    await eve.http.aclose()


def strokes(count: int) -> list[Any]:
    """Freehand strokes of 200 points, 38 bytes each."""
    return [
        {"id": f"s{n}", "type": "freedraw", "x": n + 0.5, "points": [[n + at / 7, -at / 3] for at in range(200)]}
        for n in range(count)
    ]


@pytest.mark.soak  # the same with lower limits is in tests/projects/test_bases.py
@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ([{"id": f"s{n}", "x": n + 0.5, "points": [[n, n + 0.25]] * 3, "text": "x" * 340} for n in range(40_000)], 17),
        (strokes(450), 3),
        (strokes(2600), 17),
        (
            [{"id": f"s{n}", "x": 1, "points": [[100 + n % 900, 100 + at] for at in range(200)]} for n in range(8700)],
            17,
        ),
    ],
    ids=["text", "450 strokes", "strokes", "strokes of integers"],
)
async def test_17_megabytes_are_saved_patched_reloaded_and_restored(
    editor: Editor, shapes: list[Any], size: int
) -> None:
    content = {"elements": shapes}
    body = json.dumps(content, separators=(",", ":")).encode()
    assert size * 1_000_000 < len(body) < 20_000_000
    assert (await editor.save(body, base=0)).json() == {"revision": 1}
    path = editor.path.replace("canvas", "versions")
    kept = (await editor.http.post(path, json={"name": "all"}, headers=editor._token)).json()
    patch = {"client": "tab", "seq": 1, "set": {"s7": {"x": 1}, "gone": {"x": 1}}, "remove": ["s9"]}
    saved = await editor.save(patch, method="PATCH", kind=RECORDS)
    assert saved.json() == {"revision": 2, "rejected": ["gone"]}
    operations = [{"op": "replace", "path": "/elements/8/x", "value": 2}]
    assert (await editor.save(operations, method="PATCH", kind=JSON_PATCH, base=2)).json() == {"revision": 3}
    now = (await editor.read()).json()["elements"]
    assert [len(now), now[7], now[8]] == [len(shapes) - 1, shapes[7] | {"x": 1}, shapes[8] | {"x": 2}]
    back = await editor.http.post(f"{path}/{kept['id']}/restore", headers=editor._token | {"If-Match": "*"})
    assert back.status_code == 200
    assert (await editor.read()).json() == content


async def test_a_file_is_imported_and_exported_byte_for_byte(editor: Editor) -> None:
    tldr = (
        b'{\n  "tldrawFileFormatVersion": 1,\n  "schema": {"sequences": {"com.tldraw.store": 4, "$ref": 1.0}},\n'
        b'  "records": [{"id": "shape:a", "n": 9007199254740993, "x": 1e3, "y": 0.10, "t": "\\u00fc\xc3\xbc"}]\n}\n'
    )
    path = f"{editor.path}/file"
    headers = editor._token | {"Content-Type": "application/octet-stream"}
    sent = await editor.http.put(path, content=tldr, params={"base": 0}, headers=headers)
    assert sent.json() == {"revision": 1}
    assert (await editor.http.get(path, headers=editor._token)).content == tldr
    assert (await editor.read()).json() == json.loads(tldr)
    versions = editor.path.replace("canvas", "versions")
    kept = (await editor.http.post(versions, json={"name": "v"}, headers=editor._token)).json()
    change = [{"op": "replace", "path": "/records/0/x", "value": 2}]
    assert (await editor.save(change, method="PATCH", kind=JSON_PATCH, base=1)).json() == {"revision": 2}
    patch = {"client": "tab", "seq": 1, "put": [{"id": "a"}]}
    assert (await editor.save(patch, method="PATCH", kind=RECORDS)).json()["revision"] == 3
    expected = json.loads(tldr) | {"elements": [{"id": "a"}]}
    expected["records"][0]["x"] = 2
    assert (await editor.http.get(path, headers=editor._token)).json() == expected
    back = await editor.http.post(f"{versions}/{kept['id']}/restore", headers=editor._token)
    assert (back.status_code, (await editor.read()).json()) == (200, json.loads(tldr))
    assert (await editor.http.get(path, headers=editor._token)).content == tldr
    refused = await editor.save({"a": {"b.c": 1}}, if_match="*")
    assert (refused.status_code, list(refused.json()["fields"])) == (422, ["canvasData.a"])


async def test_an_imported_file_is_a_value_again_after_its_first_patch(editor: Editor, ada: Client) -> None:
    path = f"{editor.path}/file"
    file = b'{"elements": [ {"id":"a"} ]}'
    await editor.http.put(path, content=file, params={"base": 0}, headers=editor._token)
    patch = {"client": "tab", "seq": 1, "set": {"a": {"x": 1}, "b": {"x": 1}}}
    saved = await editor.save(patch, method="PATCH", kind=RECORDS)
    assert saved.json() == {"revision": 2, "rejected": ["b"]}
    assert (await editor.http.get(path, headers=editor._token)).content == b'{"elements":[{"id":"a","x":1}]}'
