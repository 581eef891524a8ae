"""Shares and priorities: who waits gets a part in proportion, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import inside
import pytest
from fakes import Noting, now, simulated
from hypothesis import given
from hypothesis import strategies as st

from asyncinfer import Dispatcher
from asyncinfer._core.tasks.spans import Row, Span
from asyncinfer._core.tasks.turns import Claim, Leaf, Turns
from asyncinfer.errors import ConfigError

UNLIKE = [[0.01], [0.01, 0.03], [0.01, 0.01, 0.05], [0.005, 0.02, 0.04]]


async def endless(d, got, key, **claim):
    async with d.stream(range(10**9), **claim) as ys:
        async for _ in ys:
            got[key] += 1


async def beside_each_other(claims, times=(0.01,), seconds=20.0, window=200, **options):
    """How many results each of some endless streams has after a while."""
    got = Counter()
    async with Dispatcher(simulated(times, **options), window=window) as d:
        readers = [
            asyncio.create_task(endless(d, got, key, **claim)) for key, claim in claims.items()
        ]
        await asyncio.sleep(seconds)
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
    return got


@pytest.mark.parametrize("times", UNLIKE)
@pytest.mark.parametrize("max_batch", [1, 16])
def test_streams_get_their_shares(virtual, times, max_batch):
    claims = {3: {"share": 3.0}, 1: {"share": 1.0}}
    got = virtual(beside_each_other(claims, times, max_batch=max_batch))
    assert got.total() > 1000
    assert got[3] / got[1] == pytest.approx(3, rel=0.05)


def test_many_shares_at_once(virtual):
    claims = {share: {"share": share} for share in (0.5, 1.0, 2.0, 4.5)}
    got = virtual(beside_each_other(claims, [0.005, 0.02], seconds=40.0))
    for share in claims:
        assert got[share] == pytest.approx(got.total() * share / 8, rel=0.05)


def test_each_priority_gets_four_times_the_next(virtual):
    claims = {priority: {"priority": priority} for priority in range(1, 6)}
    got = virtual(beside_each_other(claims, [0.001], seconds=12.0))
    for priority in range(1, 5):
        assert got[priority] / got[priority + 1] == pytest.approx(4, rel=0.1)


def test_many_urgent_streams_leave_something_to_one_of_no_hurry(virtual):
    claims = {str(n): {"priority": 1, "share": 1000.0} for n in range(10)}
    claims["last"] = {"priority": 5, "share": 0.001}
    got = virtual(beside_each_other(claims, [0.001], seconds=10.0))
    assert got["last"] == pytest.approx(got.total() / 257, rel=0.1)


def test_the_streams_of_one_client_have_one_share_together(virtual):
    claims = {n: {"client": "greedy"} for n in range(5)} | {"other": {"client": "modest"}}
    got = virtual(beside_each_other(claims))
    assert got["other"] == pytest.approx(got.total() / 2, rel=0.05)
    assert got[0] == pytest.approx(got[4], rel=0.1)


def test_the_parts_of_a_client_take_turns_within_its_share(virtual):
    claims = {("a", n): {"client": ("a", n)} for n in range(4)}
    claims |= {("b", n): {"client": ("b", n), "share": 2.0} for n in range(2)}
    got = virtual(beside_each_other(claims))
    for whole, part in claims:
        expected = got.total() * (1 / 12 if whole == "a" else 1 / 3)
        assert got[whole, part] == pytest.approx(expected, rel=0.05)


def test_a_stream_that_had_nothing_to_do_saves_up_no_turns(virtual):
    async def run():
        got = Counter()
        async with Dispatcher(simulated([0.01]), window=50) as d:

            async def late():
                yield 0
                await asyncio.sleep(50.0)
                for _ in range(10**6):
                    yield 0

            async def read(key, source):
                async with d.stream(source) as ys:
                    async for _ in ys:
                        got[key] += 1

            readers = [
                asyncio.create_task(read("late", late())),
                asyncio.create_task(read("steady", [0] * 10**5)),
            ]
            await asyncio.sleep(50.0)
            before = Counter(got)
            await asyncio.sleep(2.0)
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)
        return got - before

    got = virtual(run())
    assert got["late"] == pytest.approx(got["steady"], rel=0.1)


# ---- calls


async def one_beside_many(times, max_batch, many, **one):
    """Seconds that one call takes while another client has 1,000 rows waiting; and of a batch."""
    async with Dispatcher(simulated(times, max_batch=max_batch)) as d:
        if many == "calls":
            rows = [asyncio.create_task(d.infer(0, client="many")) for _ in range(1000)]
        else:

            async def read():
                async with d.stream([0] * 1000, client="many") as ys:
                    return [y async for y in ys]

            rows = [asyncio.create_task(read())]
        await asyncio.sleep(5.5 * max_batch * times[0])
        longest = 0.0
        for _ in range(10):
            begun = now()
            await d.infer(1, client="one", **one)
            longest = max(longest, now() - begun)
        for row in rows:
            row.cancel()
        await asyncio.wait(rows)
        assert not inside.flows(d) - {Claim()}
    return longest / (max_batch * times[0])


@pytest.mark.parametrize("many", ["calls", "stream"])
@pytest.mark.parametrize("times", [[0.01], [0.01, 0.01], [0.01, 0.03]])
@pytest.mark.parametrize("max_batch", [1, 8, 32])
def test_a_single_row_waits_for_two_batches_at_most(virtual, many, times, max_batch):
    assert virtual(one_beside_many(times, max_batch, many)) <= 2 * max(times) / times[0] + 1e-6


def test_a_call_that_waits_for_room_does_not_hold_up_others(virtual):
    async def run():
        async with Dispatcher(simulated([0.01]), window=2, queue_size=2) as d:
            rows = [asyncio.create_task(d.infer(0, client="many")) for _ in range(1000)]
            await asyncio.sleep(0.055)
            begun = now()
            await d.infer(1, client="one")
            took = now() - begun
            for row in rows:
                row.cancel()
            await asyncio.wait(rows)
        return took

    assert virtual(run()) <= 0.02 + 1e-6


@pytest.mark.parametrize("times", [[0.01], [0.01, 0.03]])
@pytest.mark.parametrize("max_batch", [1, 16])
def test_calls_beside_twenty_streams_have_their_share(virtual, times, max_batch):
    async def run():
        got = Counter()
        async with Dispatcher(simulated(times, max_batch=max_batch), window=200) as d:

            async def call():
                while True:
                    await d.infer(0)
                    got["calls"] += 1

            tasks = [asyncio.create_task(endless(d, got, n)) for n in range(20)]
            tasks += [asyncio.create_task(call()) for _ in range(64)]
            await asyncio.sleep(40.0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return got

    got = virtual(run())
    assert got["calls"] > 0.9 * got.total() / 21
    assert min(got[n] for n in range(20)) > 0.9 * got.total() / 21


def test_calls_of_many_clients_share_batches(virtual):
    async def run():
        driver = Noting("a", 0.01, max_batch=32)
        async with Dispatcher([driver]) as d:
            claims = [{"client": n, "priority": n % 5 + 1, "share": 1.0 + n} for n in range(64)]
            assert await asyncio.gather(
                *(d.infer(n, **claim) for n, claim in enumerate(claims))
            ) == list(range(64))
        return driver.batches

    batches = virtual(run())
    assert len(batches) <= 4
    assert batches[-1][0] % 5 > batches[0][-1] % 5 or len(batches) < 3


def test_urgent_calls_come_first_and_others_in_their_turn(virtual):
    async def run():
        driver = Noting("a", 0.01)
        async with Dispatcher([driver]) as d:
            first = asyncio.create_task(d.infer("first"))
            await asyncio.sleep(0.005)
            calls = [d.infer((p, n), priority=p) for n in range(16) for p in (5, 3, 0, 1)]
            await asyncio.gather(first, *calls)
        return [batch[0] for batch in driver.batches[1:]]

    order = virtual(run())
    urgent = [at for at, (priority, _) in enumerate(order) if priority == 1]
    usual = [n for priority, n in order if priority in (0, 3)]
    assert max(urgent) <= 16
    assert usual == sorted(usual)  # both are the same class
    assert [n for priority, n in order if priority == 5] == list(range(16))


def test_a_flow_that_empties_leaves_nothing(virtual):
    async def run():
        async with Dispatcher(simulated([0.01, 0.02], max_batch=4)) as d:
            dice = random.Random(42)
            calls = []
            for n in range(3000):
                claim = {"share": dice.choice([0.01, 1.0, 7.0]), "priority": dice.randrange(6)}
                client = dice.choice([None, n, (n % 9, n)])
                calls.append(asyncio.create_task(d.infer(n, client=client, **claim)))
                if dice.random() < 0.2:
                    await asyncio.sleep(0.01)
                if dice.random() < 0.3:
                    dice.choice(calls).cancel()
            await asyncio.wait(calls)
            for n in range(50):
                async with d.stream(range(3), client=("s", n), priority=n % 6) as ys:
                    await anext(ys)
            return inside.flows(d), inside.turns(d)

    flows, turns = virtual(run())
    assert flows <= {Claim()}
    assert turns == len(flows)


@pytest.mark.parametrize(
    ("claim", "text"),
    [
        ({"share": 0}, "share must be a number from 0.001 to 1000, not 0"),
        ({"share": float("nan")}, "share must be a number"),
        ({"share": True}, "share must be a number"),
        ({"share": "1"}, "share must be a number"),
        ({"priority": 6}, r"priority must be 1 \(most urgent\) to 5, or 0, not 6"),
        ({"priority": -1}, "priority must be 1"),
        ({"priority": 1.0}, "priority must be 1"),
        ({"priority": True}, "priority must be 1"),
        ({"client": []}, "client must be hashable"),
        ({"client": ("a", {})}, "client must be hashable"),
        ({"client": ("a",) * 17}, "client must have at most 16 parts, not 17"),
    ],
)
async def test_claims_that_make_no_sense(claim, text):
    async with Dispatcher(simulated([0.0])) as d:
        with pytest.raises(ConfigError, match=text):
            await d.infer(0, **claim)
        with pytest.raises(ConfigError, match=text):
            d.stream([0], **claim)
        with pytest.raises(ConfigError, match=text):
            d.results([0], **claim)


# ---- the order itself


class Heap(Leaf):
    """Numbered tasks that are taken and not run."""

    __slots__ = ("row",)

    def __init__(self, number, tasks, *, calls=False):
        nowhere: Any = None
        self.row = Row([Span(nowhere, 0, [None] * tasks, 0.0)])
        super().__init__(number, self.row, calls=calls)

    def take(self, count, offset=0):
        return self.row.take(count, offset)


CLAIMS = st.builds(
    Claim,
    st.sampled_from([0.125, 0.5, 1.0, 2.0, 8.0]),  # so that nothing is rounded
    st.sampled_from([1, 3, 3, 5]),
    st.sampled_from([(), (), ("a",), ("a", 1), ("a", 2), ("b", 1)]),
)


@given(st.lists(st.tuples(CLAIMS, st.integers(0, 30)), min_size=1, max_size=8))
def test_the_numbering_is_the_order_in_which_tasks_are_served(claims):
    def made():
        turns, leaves = Turns(), [Heap(n, tasks) for n, (_, tasks) in enumerate(claims)]
        for leaf, (claim, _) in zip(leaves, claims, strict=True):
            turns.join(leaf, claim)
        return turns, leaves

    total = sum(tasks for _, tasks in claims)
    numbered, one_by_one = made()[0], made()[0]
    served = Counter()
    for offset in range(total):
        expected, at = one_by_one.locate(0)
        found, number = numbered.locate(offset)
        assert at == 0
        assert (found.lane, number) == (expected.lane, served[expected.lane])
        served[expected.lane] += 1
        expected.take(1)
        one_by_one.served(expected, 1)
