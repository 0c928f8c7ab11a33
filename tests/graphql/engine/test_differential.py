"""Any query on any data has graphql-core's response: data, error paths, and calls of resolvers."""

from pathlib import Path
from typing import Any

import graphql
import pytest
from tests.graphql.engine.differential import RESOLVED, SYNTHETIC, Lab, Writer, ask_core, ask_ours, nulled

import ximler.graphql
from ximler.app import schema

ORDINARY = 250
SOAK = 5_000


@pytest.fixture(scope="module")
def labs() -> dict[str, Lab]:
    files = sorted(Path(ximler.graphql.__file__).parent.glob("*.graphql"))
    resolved = [tuple(coordinate.split(".")) for coordinate in schema().bound]
    return {"synthetic": Lab([SYNTHETIC], RESOLVED), "real": Lab(list(files), resolved)}  # type: ignore[arg-type]  # pairs


async def compare(lab: Lab, seed: int) -> str:
    """Ask both, ours twice: the interpreter answers a plan's first execution, compiled code the second."""
    query, variables = Writer(lab.schema.core, seed).write()
    if graphql.validate(lab.schema.core, graphql.parse(query)):
        return "invalid"
    lab.seed, lab.wildness, lab.late = seed, [0, 5, 30, 100][seed % 4], seed % 3 == 0
    theirs = await ask_core(lab, query, variables)
    outcome = "strict"
    for _ in range(2):
        ours = await ask_ours(lab, query, variables)
        shown = f"seed {seed}: {query} {variables}\n{theirs}\n{ours}"
        assert repr(ours.data) == repr(theirs.data), shown  # in the same order, and 1 is not True
        bubbled = any(len(nulled(theirs.data, path)) < len(path) for path in theirs.errors)
        if bubbled:
            # Of several errors that make the same thing null the first counts, and which that is depends on
            # how long resolvers take; so does whether its siblings were asked for more.
            assert {nulled(ours.data, path) for path in ours.errors} == {
                nulled(ours.data, path) for path in theirs.errors
            }, shown
            outcome = "nulled"
        else:
            assert ours.errors == theirs.errors, shown
            assert set(ours.calls) == set(theirs.calls), shown
        if not lab.late and not bubbled:
            assert ours.calls <= theirs.calls, shown  # once for each parent, or fewer
    return outcome


async def run(labs: dict[str, Lab], count: int, start: int) -> None:
    outcomes: dict[Any, int] = dict.fromkeys(["invalid", "strict", "nulled"], 0)
    seed = start
    while outcomes["strict"] + outcomes["nulled"] < count:
        outcomes[await compare(labs["real" if seed % 5 == 0 else "synthetic"], seed)] += 1
        seed += 1
    assert outcomes["strict"] > count // 2, outcomes
    assert outcomes["nulled"] > count // 100, outcomes


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited:RuntimeWarning"
)  # graphql-core's, of calls that it cancelled
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_random_operations_are_answered_as_graphql_core_answers_them(labs: dict[str, Lab]) -> None:
    await run(labs, ORDINARY, 0)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_thousands_of_random_operations(labs: dict[str, Lab]) -> None:
    await run(labs, SOAK, 100_000)
