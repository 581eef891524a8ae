"""From a seed to a schedule.

Each schedule uses some kinds of steps and not others: what only shows where another kind of fault
is absent would otherwise be drowned.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from dst.hosts import hosted
from dst.schedule import (
    Add,
    BadInput,
    Broken,
    CallFault,
    Calls,
    Cancel,
    Claim,
    Close,
    CloseFault,
    DevicePlan,
    Drain,
    Flap,
    Leap,
    Leave,
    OpenFault,
    Outage,
    Remove,
    ResetFault,
    Schedule,
    Settings,
    Slow,
    Step,
    Stream,
)

__all__ = ("CALL_FAULTS", "CLOSE_FAULTS", "OPEN_FAULTS", "Generator", "schedule_of")

CALL_FAULTS = (
    "crash", "crash", "hang", "hang", "wedge", "slow", "slow", "stubborn", "stubborn late",
    "protocol", "connection", "end of file", "model", "input", "one model", "one input",
    "too few", "too many", "nothing", "cancels itself", "base",
)  # fmt: skip
OPEN_FAULTS = ("lost", "lost", "os error", "hang", "slow", "stubborn", "stubborn late")
RESET_FAULTS = ("lost", "raises", "hang", "slow", "stubborn")
CLOSE_FAULTS = ("hang", "slow", "raises", "stubborn", "wedge")
BAD_INPUTS = ("model", "input", "one model", "one input", "poison")
ENDS = ("all", "all", "all", "break", "aclose", "cancel", "drop", "body")
SECONDS = (0.0, 0.0005, 0.01, 0.1, 0.5, 2.0, 7.0, 40.0)


def schedule_of(seed: int) -> Schedule:
    """The schedule of a seed, always the same. Some devices remember, some are set up wrongly."""
    generator = Generator(Random(seed))
    schedule = hosted(generator.schedule(), Random(f"{seed}/hosts"))
    generator.chance = Random(f"{seed}, calls")
    if generator.chance.random() < 0.2:
        schedule = generator.calling(schedule)
    generator.chance = Random(f"{seed}, stateful")
    if generator.chance.random() < 0.15:
        return generator.remembering(schedule)
    return generator.refusing(schedule) if generator.chance.random() < 0.1 else schedule


class Generator:
    """Draws schedules, or parts of them, from a source of chance."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.horizon = chance.choice((0.0, 0.02, 0.3, 2.0, 20.0))
        self.grid = [self.horizon * chance.random() for _ in range(4)]
        self.names: list[str] = []
        self.streams = 0

    def schedule(self) -> Schedule:
        """One schedule."""
        chance = self.chance
        devices = tuple(self.device(f"d{i}") for i in range(chance.choice((1, 1, 2, 2, 3, 4))))
        kinds = (self.add, self.remove, self.call_fault, self.call_fault, self.open_fault)
        kinds += (self.close_fault, self.bad_input, self.outage, self.flap, self.slow, self.leap)
        steps: list[Step] = [self.stream() for _ in range(chance.choice((0, 1, 1, 1, 2, 3)))]
        calls = chance.choice((0, 0, 1, 2, 4) if steps else (1, 2, 4))
        steps += [self.calls() for _ in range(calls)]
        for kind in kinds:
            if chance.random() < 0.3:
                steps += [kind() for _ in range(chance.choice((1, 1, 2, 4, 8)))]
        if chance.random() < 0.2:
            steps += [self.broken() for _ in range(chance.choice((1, 1, 2)))]
        if chance.random() < 0.35:
            steps += [self.end() for _ in range(chance.choice((1, 1, 1, 2, 3)))]
        return Schedule(self.settings(), devices, tuple(steps))

    def calling(self, schedule: Schedule) -> Schedule:
        """The same with many calls of ``infer``, which nothing keeps from taking the short way."""
        chance, choose = self.chance, self.chance.choice
        settings = replace(
            schedule.settings,
            policy=choose(("eft", "eft", "greedy")),
            window=choose((8, 100)),
            queue_size=choose((5, 100)),
            queue=None,
            total=None,
            hedged=False,
        )
        quick = {"service_time": 0.0, "batch_cost": 0.0, "estimate": choose((None, 0.0, 0.0001))}
        devices = tuple(
            replace(device, max_wait=0.0, **(quick if chance.random() < 0.4 else {}))
            for device in schedule.devices
        )
        steps = [step for step in schedule.steps if chance.random() < 0.5 or not _is_stream(step)]
        steps += [self.calls() for _ in range(choose((4, 8, 16)))]
        if chance.random() < 0.8:  # one that claims a share or a priority takes the common way
            steps = [replace(s, claim=Claim()) if isinstance(s, Calls) else s for s in steps]
        return schedule.but(settings=settings, devices=devices, steps=tuple(steps))

    def remembering(self, schedule: Schedule) -> Schedule:
        """The same with devices that remember, which also fail when they are reset."""
        faults = [self.reset_fault() for _ in range(self.chance.choice((0, 0, 1, 3)))]
        settings = replace(schedule.settings, stateful=True)
        return schedule.but(settings=settings, steps=(*schedule.steps, *faults))

    def refusing(self, schedule: Schedule) -> Schedule:
        """The same with some calls that a device is not set up for."""
        calls = range(self.chance.choice((1, 3, 30)))
        faults = [CallFault(0.0, self.name(), call, "config", 0.5) for call in calls]
        return schedule.but(steps=(*faults, *schedule.steps))

    def settings(self) -> Settings:
        """Small windows, small queues, and some time limits."""
        choose = self.chance.choice
        hedged = choose((True, False, False))  # it looks at overdue calls every millisecond
        return Settings(
            policy=choose(("eft", "eft", "eft", "eft", "greedy", "static", "sync", "serial")),
            window=choose((1, 2, 3, 8, 100)),
            queue_size=choose((1, 2, 5, 100)),
            retries=choose((0, 1, 2, 3)),
            open=choose((5.0, 0.5, None)),
            queue=choose((None, None, None, 0.05, 3.0)),
            run=choose(("auto", 5.0, 0.5, 0.05)),
            total=choose((None, None, None, 0.2, 10.0)),
            close=choose((3.0, 0.2)),
            drain=choose((1000.0, 1000.0, 1.0, None)),
            hedged=hedged,
            heal_after=choose((0.0, 1.0, 1.0 if hedged else 50.0)),
        )

    def device(self, name: str) -> DevicePlan:
        """One device."""
        choose = self.chance.choice
        self.names.append(name)
        service_time = choose((0.0, 0.00002, 0.001, 0.01, 0.1, 0.7))
        return DevicePlan(
            name,
            service_time=service_time,
            noise=choose((0.0, 0.0, 0.3)),
            batch_cost=choose((0.0, 0.0, 0.05)),
            max_batch=choose((1, 1, 2, 4)),
            concurrency=choose((1, 1, 1, 2, 3)),
            max_wait=choose((0.0, 0.0, 0.0, 0.02)),
            latency_target=choose((None, None, None, 0.05)),
            estimate=choose((None, service_time, service_time, 0.0001, 5.0)),
            open_seconds=choose((0.0, 0.0, 0.2)),
            close_seconds=choose((0.0, 0.0, 0.1)),
        )

    # ---- work

    def stream(self) -> Stream:
        """A stream."""
        chance, choose = self.chance, self.chance.choice
        self.streams += 1
        tasks = choose((0, 1, 3, 10, 10, 20, 30))
        source = choose(("list", "generator", "generator", "async", "async", "stubborn"))
        at = self.moment()
        return Stream(
            at,
            claim=claim(f"{at} s{self.streams}"),
            tasks=tasks,
            ordered=chance.random() < 0.6,
            source=source,
            source_pause=choose((0.0, 0.0, 0.01, 0.1)),
            stall_before=choose((-1, -1, chance.randrange(tasks + 1))),
            stall=choose(SECONDS),
            source_fails=source != "list" and chance.random() < 0.2,
            read=choose(("results", "errors", "raises")),
            end=choose(ENDS),
            after=chance.randrange(tasks + 1),
            patience=self.seconds(),
            consumer_pause=choose((0.0, 0.0, 0.0, 0.01, 0.3)),
        )

    def calls(self) -> Calls:
        """Some callers."""
        patience = self.chance.choice((None, None, self.seconds()))
        at, count = self.moment(), self.chance.choice((1, 1, 2, 6))
        return Calls(at, count=count, patience=patience, claim=claim(f"{at} {count} {patience}"))

    # ---- devices come, go and fail

    def add(self) -> Add:
        """One more device."""
        at, device = self.moment(), self.device(f"d{len(self.names)}")
        return Add(at, device=device, patience=patience(at, device.name))

    def remove(self) -> Remove:
        """One of the devices goes."""
        at, device, drain = self.moment(), self.name(), self.chance.random() < 0.5
        return Remove(at, device, drain, patience(at, device))

    def call_fault(self) -> CallFault:
        """A call fails."""
        chance = self.chance
        kind = chance.choice(CALL_FAULTS)
        amount = chance.choice((2.0, 10.0, 100.0)) if kind == "slow" else chance.choice(SECONDS)
        part = chance.choice((0.0, 0.5, 1.0))
        return CallFault(0.0, self.name(), chance.randrange(10), kind, part, amount)

    def open_fault(self) -> OpenFault:
        """An opening fails."""
        chance = self.chance
        amount = chance.choice(SECONDS)
        return OpenFault(0.0, self.name(), chance.randrange(4), chance.choice(OPEN_FAULTS), amount)

    def close_fault(self) -> CloseFault:
        """A closing fails."""
        kind, amount = self.chance.choice(CLOSE_FAULTS), self.chance.choice(SECONDS)
        return CloseFault(0.0, self.name(), self.chance.randrange(3), kind, amount)

    def reset_fault(self) -> ResetFault:
        """A device is not reset as it should be."""
        kind, amount = self.chance.choice(RESET_FAULTS), self.chance.choice(SECONDS)
        return ResetFault(0.0, self.name(), self.chance.randrange(4), kind, amount)

    def bad_input(self) -> BadInput:
        """A bad input."""
        chance = self.chance
        stream = chance.randrange(max(1, self.streams))
        return BadInput(0.0, stream, chance.randrange(12), chance.choice(BAD_INPUTS))

    def outage(self) -> Outage:
        """A device is unplugged."""
        return Outage(self.moment(), self.name(), self.chance.choice(SECONDS))

    def flap(self) -> Flap:
        """A device flaps."""
        return Flap(self.moment(), self.name(), self.chance.choice(SECONDS))

    def broken(self) -> Broken:
        """A device fails some of its tasks, or all of them."""
        choose = self.chance.choice
        broken = Broken(
            0.0,
            self.name(),
            share=choose((0.1, 0.2, 0.5, 1.0, 1.0)),
            after=choose((0, 0, 3, 10)),
            calls=choose((1_000_000, 1_000_000, 5, 20)),
            raises=choose((True, False)),
            at_once=choose((True, False)),
        )
        return replace(broken, refuses=Random(repr(broken)).random() < 1 / 3)

    def slow(self) -> Slow:
        """A device changes its pace."""
        return Slow(self.moment(), self.name(), self.chance.choice((0.1, 1.0, 3.0, 10.0, 100.0)))

    def leap(self) -> Leap:
        """The clock leaps."""
        return Leap(self.moment(), self.chance.choice((0.001, 0.1, 1.0, 5.0, 100.0)))

    def end(self) -> Step:
        """The dispatcher is closed, in one way or another."""
        chance, at = self.chance, self.moment()
        kind = chance.choice((Drain, Close, Leave, Leave, Cancel))
        if kind is Drain:
            return Drain(at, timeout=chance.choice((None, 0.0, 0.1, 5.0)))
        return Leave(at, error=chance.random() < 0.5) if kind is Leave else kind(at)

    # ---- small things

    def name(self) -> str:
        """Of one of the devices so far."""
        return self.chance.choice(self.names or ["d0"])

    def moment(self) -> float:
        """A time; often the same one as another step's."""
        chance = self.chance
        if chance.random() < 0.5:
            return chance.choice((0.0, *self.grid))
        return chance.random() * self.horizon

    def seconds(self) -> float:
        """For how long something lasts, compared with the schedule's own length."""
        return self.chance.choice((0.0, 0.001, 0.05, self.horizon * self.chance.random()))


def claim(seed: str) -> Claim:
    """A share, a priority and a client; no other step is drawn anew by it."""
    choose = Random(f"claim {seed}").choice
    return Claim(
        share=choose((1.0, 1.0, 1.0, 0.01, 0.5, 3.0, 100.0)),
        priority=choose((0, 0, 0, 1, 2, 3, 4, 5)),
        client=choose(("", "", "a", "b", "a/1", "a/2", "c/1/x")),
    )


def _is_stream(step: Step) -> bool:
    return isinstance(step, Stream)


def patience(at: float, device: str) -> float | None:
    """When the caller of ``add`` or ``remove`` is cancelled; no other step is drawn anew by it."""
    return Random(f"{at} {device}").choice((None, None, 0.0, 0.001, 0.05, 0.3, 2.0))
