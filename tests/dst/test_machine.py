"""The same world, driven by Hypothesis step by step, which finds and shrinks in its own way."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest
from dst.generate import Generator
from dst.hosts import hosted
from dst.planted import planted
from dst.running import Run
from dst.schedule import Schedule
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

chances = st.integers(0, 999).map(Random)
pauses = st.sampled_from([0.0, 0.001, 0.03, 0.2, 1.0, 10.0])


class Dispatching(RuleBasedStateMachine):
    """A dispatcher in use while things go wrong; each rule lets some time pass after its step."""

    def __init__(self) -> None:
        super().__init__()
        self.run: Run | None = None

    @initialize(
        chance=chances, devices=st.integers(1, 3), stateful=st.sampled_from([False, False, True])
    )
    def open(self, chance, devices, stateful):
        self.make = Generator(chance)
        plans = tuple(self.make.device(f"d{i}") for i in range(devices))
        settings = replace(self.make.settings(), stateful=stateful)
        self.run = Run(hosted(Schedule(settings, plans), chance))
        self.run.go(self.begin())

    async def begin(self):
        self.run.world.begin()
        await asyncio.sleep(0)

    async def pass_by(self, step, pause):
        world = self.run.world
        if step is not None and not world.prepare(step):
            world.do(step)
        await asyncio.sleep(pause)

    def then(self, chance, kind, pause):
        self.make.chance = chance
        self.run.go(self.pass_by(getattr(self.make, kind)(), pause))

    @rule(chance=chances, kind=st.sampled_from(["stream", "calls"]), pause=pauses)
    def submit(self, chance, kind, pause):
        self.then(chance, kind, pause)

    faults = (
        "call_fault",
        "open_fault",
        "close_fault",
        "reset_fault",
        "bad_input",
        "outage",
        "flap",
        "slow",
        "broken",
    )

    @rule(chance=chances, kind=st.sampled_from(faults), pause=pauses)
    def fail(self, chance, kind, pause):
        self.then(chance, kind, pause)

    @rule(chance=chances, kind=st.sampled_from(["add", "remove"]), pause=pauses)
    def plug(self, chance, kind, pause):
        self.then(chance, kind, pause)

    @rule(chance=chances, pause=pauses)
    def leap(self, chance, pause):
        self.then(chance, "leap", pause)

    @precondition(lambda self: self.run.world.streams + self.run.world.callers > 2)
    @rule(chance=chances, pause=pauses)
    def end(self, chance, pause):
        self.then(chance, "end", pause)

    @rule(pause=pauses)
    def wait(self, pause):
        self.run.go(self.pass_by(None, pause))

    @invariant()
    def every_promise_holds(self):
        if self.run is not None:
            assert self.run.broken + self.run.world.ledger.wrongs == []

    def teardown(self):
        if self.run is None:
            return
        self.run.go(self.run.world.finish())
        assert self.run.end().broken == []


few = settings(
    max_examples=200,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_every_promise_holds_step_by_step():
    run_state_machine_as_test(Dispatching, settings=few)


@pytest.mark.parametrize("bug", ["order forgotten", "window one too large", "timer left"])
def test_a_planted_bug_is_found_step_by_step(bug):
    quick = settings(few, print_blob=False, database=None, phases=["generate"])
    with planted(bug), pytest.raises(AssertionError):
        run_state_machine_as_test(Dispatching, settings=quick)
