"""Concurrent calls that are performed as one."""

import asyncio

import pytest

from ximler.core.together import Together


async def test_calls_that_wait_are_performed_as_one_and_each_gets_its_own_result() -> None:
    performed: list[list[int]] = []

    async def double(key: str, numbers: list[int]) -> list[int]:
        performed.append(numbers)
        await asyncio.sleep(0)
        if key == "broken":
            raise ValueError(numbers)
        return [2 * number for number in numbers]

    together: Together[int, int] = Together(double, most=3)
    assert await together("a", 1) == 2
    calls = [asyncio.create_task(together("a", number)) for number in range(5)]
    other = asyncio.create_task(together("b", 7))
    await asyncio.sleep(0)
    calls[1].cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [result for number, result in enumerate(results) if number != 1] == [0, 4, 6, 8]
    assert isinstance(results[1], asyncio.CancelledError)
    assert await other == 14
    assert performed == [[1], [0, 1, 2], [7], [3, 4]]
    failed = await asyncio.gather(*(together("broken", number) for number in range(2)), return_exceptions=True)
    assert [type(each) for each in failed] == [ValueError, ValueError]
    with pytest.raises(ValueError, match="5"):
        await together("broken", 5)
