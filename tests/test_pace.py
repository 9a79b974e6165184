"""Refusals: the first at once, the others in line, and nobody stands behind one who has left."""

import asyncio
from time import monotonic

from handlers.pace import Pace


def test_the_first_refusal_goes_out_at_once_and_a_storm_of_them_stands_in_line() -> None:
    async def storm() -> None:
        pace, gone_out = Pace(per_second=100), []

        async def refuse(number: int) -> None:
            await pace.turn()
            gone_out.append(number)

        started = monotonic()
        await refuse(0)
        assert gone_out == [0]
        await asyncio.gather(*(refuse(number) for number in range(1, 21)))
        assert gone_out == list(range(21))
        assert monotonic() - started >= 0.19

    asyncio.run(asyncio.wait_for(storm(), 20))


def test_a_refusal_that_nobody_waits_for_any_more_takes_no_turn() -> None:
    async def storm() -> None:
        pace = Pace(per_second=2)
        await pace.turn()
        cancelled = [asyncio.ensure_future(pace.turn()) for _ in range(100)]
        left = [asyncio.ensure_future(pace.turn(lambda: True)) for _ in range(100)]
        newcomer = asyncio.ensure_future(pace.turn())
        await asyncio.sleep(0)
        for each in cancelled:
            each.cancel()
        await newcomer  # with turns for all of them it would be 100 s
        assert all(each.done() for each in (*cancelled, *left))

    asyncio.run(asyncio.wait_for(storm(), 20))
