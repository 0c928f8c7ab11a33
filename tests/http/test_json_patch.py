"""npm's `json-patch-test-suite`, which implementations of RFC 6902 share,
by `PATCH /v1/projects/{id}/canvas`.

The documents of all cases are in one canvas, so that one request applies all patches that succeed.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.node import node_with
from tests.serving import Client


def _at(number: int, patch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The patch for the document with a number."""
    return [
        operation
        | {
            name: f"/{number}{place}"
            for name in ("path", "from")
            if isinstance(place := operation.get(name), str) and (place.startswith("/") or not place)
        }
        for operation in patch
    ]


@pytest.mark.slow
async def test_the_cases_of_the_common_suite_hold(ada: Client) -> None:
    _, modules = await asyncio.to_thread(node_with, Path(__file__).with_name("json_patch"))
    suite = modules / "json-patch-test-suite"
    found = [case for name in ("tests", "spec_tests") for case in json.loads((suite / f"{name}.json").read_text())]
    cases = [case for case in found if "patch" in case and not case.get("disabled")]
    project = (await ada.create(canvasData={str(number): case["doc"] for number, case in enumerate(cases)}))[
        "createProject"
    ]["id"]
    path, headers = f"/v1/projects/{project}/canvas", {"Authorization": f"Bearer {ada.token}", "If-Match": "*"}

    async def patch(operations: list[dict[str, Any]]) -> int:
        json_patch = {"Content-Type": "application/json-patch+json"}
        answer = await ada.http.patch(path, content=json.dumps(operations), headers=headers | json_patch)
        return answer.status_code

    failing = [(number, case) for number, case in enumerate(cases) if "error" in case]
    assert [case for number, case in failing if await patch(_at(number, case["patch"])) not in (400, 422)] == []
    succeeding = [(number, case) for number, case in enumerate(cases) if "error" not in case]
    assert await patch([operation for number, case in succeeding for operation in _at(number, case["patch"])]) == 200
    now = (await ada.http.get(path, headers=headers)).json()
    for number, case in enumerate(cases):
        expected = case["doc"] if "error" in case else case.get("expected", case["doc"])
        assert json.dumps(now[str(number)], sort_keys=True) == json.dumps(expected, sort_keys=True), case
    assert len(failing) > 20
    assert len(succeeding) > 60
