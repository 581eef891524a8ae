"""What only a look inside the dispatcher shows: that it does not stand still.

The one place that knows of its insides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from asyncinfer import Dispatcher
from asyncinfer._core.engine import Engine
from asyncinfer._core.tasks.spans import Span
from asyncinfer._core.tasks.turns import PLAIN
from dst.ledger import Ledger
from dst.schedule import Settings

#: seconds that it may take to notice a call that hangs, besides 8 times what a copy takes
SLACK, BEARABLE = 0.3, 8.0

__all__ = ("check_at_rest", "check_ended", "described", "engine_of")


def engine_of(dispatcher: Dispatcher[Any, Any]) -> Engine | None:
    """What runs inside, once it was opened."""
    return dispatcher._engine


def check_at_rest(engine: Engine, settings: Settings, ledger: Ledger) -> None:
    """Time is about to pass: whatever could be done was done."""
    check = ledger.check
    devices, lanes, retries = engine.roster.devices, engine.lanes, engine.retries
    held = [device for device in devices if device.up and device.held]
    check(not held or _waits_for(engine), "stall", held, "are held back for nobody")
    up = [device for device in devices if device.up and not device.held]
    free = [device for device in up if device.free]
    waiting = sum(lane.waiting.tasks for lane in lanes)
    idle = up and len(free) == len(up) and not any(device.bursts for device in up)
    if settings.stateful:
        _check_bound(engine, ledger)
    elif idle and settings.policy in ("eft", "greedy"):
        fills = any(device.max_wait for device in up)
        check(fills or not waiting, "stall", waiting, "tasks wait for idle devices")
        calls = _calls(engine)
        check(not calls, "stall", calls, "calls on the short way wait for idle devices")
        left = [task for task in retries.tasks if not task.done]
        suspected = any(device.bursts for device in devices)  # one by one, on leaving devices too
        due = suspected or retries.due_in < math.inf
        check(due or not left, "stall", len(left), "tasks to be retried wait for idle devices")
    if not settings.stateful:  # then no other device could take over
        _check_hung(engine, ledger)
    here = _unfinished(engine) + engine.recorder.reorder_buffer
    missing = engine.lanes.unfinished - here
    check(not missing, "lost", missing, "tasks are nowhere")
    takes = any(not device.aside for device in free)  # those that rest for others take nothing
    for lane in lanes:
        consumer, intake = lane._consumer, lane.intake
        asleep = consumer is not None and not consumer.done()
        check(not (asleep and lane.ready), "stall", "a consumer is not told of results")
        check(not (asleep and lane.exhausted), "stall", "a consumer is not told of the end")
        turns = [turn for turn in intake._turns if not turn.done()]
        check(not (turns and not intake.full()), "stall", "a source is not told of room")
        admits = lane.admitted - lane.delivered < lane.window
        check(not (takes and admits and not intake.empty()), "stall", "a task is not admitted")

    for flow in engine.calls.waiting.flows:
        turns = [turn for turn in flow.intake._turns if not turn.done()]
        check(not (turns and not flow.intake.full()), "stall", "a caller is not told of room")
    _check_turns(engine, ledger)


def _check_turns(engine: Engine, ledger: Ledger) -> None:
    """Only those are known who take turns, or had more than theirs while others wait."""
    flows = [flow for flow in engine.calls.waiting.flows if flow.claim != PLAIN]
    known = len(engine.lanes._turns._resting)
    waiting = engine.lanes.waiting
    left = [flow.claim for flow in flows if flow.idle]
    ledger.check(waiting or not left, "leak", "flows are kept:", *left)
    ledger.check(waiting or not known, "leak", known, "are remembered for nothing")
    tasks = sum(flow.intake.tasks for flow in engine.calls.waiting.flows)
    ledger.check(tasks == engine.calls.waiting.tasks, "lost", "calls are counted wrongly")


def _check_bound(engine: Engine, ledger: Ledger) -> None:
    """No stream waits for its device while that is free, or for one while nobody has it."""
    bound = {lane: each for lane, each in engine._pool._bindings._bound.items() if not lane.closed}
    taken = {each.device for lane, each in bound.items() if not lane.finished and not each.trouble}
    up = [device for device in engine.roster.devices if device.up and device.free]
    spare = [device.name for device in up if device not in taken]
    for lane in engine.lanes:
        if not lane.waiting.tasks:
            continue
        device = bound[lane].device if lane in bound else None
        stands = device in up if device else bool(spare)
        whom = f"for {device.name}" if device else f"beside {spare}"
        ledger.check(not stands, "stall", "stream", lane.number, "waits", whom)


def _check_hung(engine: Engine, ledger: Ledger) -> None:
    """What somebody waits for and seems to hang is copied, if there is a device for that."""
    idle = [d for d in engine.roster.up if not (d.bursts or d.suspect or d.held)]
    known = [0.0, *(d.latency for d in idle if d.latency >= 0)]
    for device in engine.roster.up:
        for burst in device.bursts if idle else ():
            task = next((span for span in burst.spans if not span.done), None)
            if task is None or task.copied or task.causes or not burst.live:
                continue
            if not any(d.quickest < math.inf for d in (device, *idle)):
                continue  # nobody knows how long it should take
            since = max(device.overdue_at(burst), device.since if device.suspect else 0.0)
            lane, late = burst.lane, ledger.now - since - ledger.leapt
            first = not lane.ordered or task.first == lane.head
            bearable = SLACK + BEARABLE * max(known)
            check = ledger.check
            check(not first or late < bearable, "stall", task.first, "hangs and is not copied")


def _waits_for(engine: Engine) -> bool:
    """Whether a device is up, or to come back soon, that is not held back."""
    devices = engine.roster.members
    return any(not device.held and (device.up or device.returning) for device in devices)


def _unfinished(engine: Engine) -> int:
    """Tasks that wait somewhere for their outcome; one that runs twice counts once."""
    places: list[Iterable[Span]] = [engine.retries.tasks]
    for lane in engine.lanes:
        places += [lane.intake, lane.waiting]
    places += [burst.spans for device in engine.roster.devices for burst in device.bursts]
    spans = {span for place in places for span in place if not span.done}
    return sum(span.count for span in spans) + _calls(engine)


def _calls(engine: Engine) -> int:
    """How many calls of ``infer`` wait on the short way, where no spans are made of them."""
    return sum(not call[0].done() for call in engine.short.calls)


def check_ended(engine: Engine, ledger: Ledger) -> None:
    """The dispatcher was left: nothing is counted as unfinished, or kept."""
    left = engine.lanes.unfinished
    ledger.check(left == 0, "lost", left, "tasks are counted as unfinished")
    kept = [device.name for device in engine.roster.devices if device.bursts]
    ledger.check(not kept, "leak", "bursts are kept by", kept)
    ledger.check(not engine._feeders, "leak", "feeders are kept")
    _check_turns(engine, ledger)

    short = engine.short
    ledger.check(not (short.calls or short._spans), "leak", "calls are kept on the short way")


def described(engine: Engine | None) -> str:
    """Where everything is, for whoever looks for a fault."""
    if engine is None:
        return "it was never open"
    devices = [
        f"{device.name} {device.state} with {[_burst(burst) for burst in device.bursts]}"
        for device in engine.roster.devices
    ]
    lanes = [
        f"lane {lane.number}: accepted {lane.accepted} admitted {lane.admitted} "
        f"delivered {lane.delivered} head {lane.head} queued {lane.intake.qsize()} "
        f"waiting {lane.waiting.tasks} early {sorted(lane.early)} ready {len(lane.ready)} "
        f"ended {lane.source_ended}"
        for lane in engine.lanes
    ]
    retries = [(task.lane.number, task.first) for task in engine.retries.tasks]
    return "\n  ".join(["", *devices, *lanes, f"retries {retries}"])


def _burst(burst: Any) -> str:
    spans = [(span.first, span.count, span.done) for span in burst.spans]
    return f"{spans} of lane {burst.lane.number} {'live' if burst.live else 'taken back'}"
