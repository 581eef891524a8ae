"""Our claims about simulated cases, and whether the figures bear them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from asyncinfer.bench.record import Check
from asyncinfer.bench.simulated.lab import Case

__all__ = ("hold_check", "makespan_checks", "noise_check", "worst")

#: where the best in order is so many times the optimum, it is what we are compared with
BOUND = 1.01


def worst(
    claim: str,
    values: Mapping[str, float],
    limit: float,
    *,
    least: bool = False,
    form: str = ".4f",
    why: str = "",
) -> Check:
    """Whether all values by case are at most ``limit`` (``least``: at least); the worst is shown.

    Without a value there is nothing that could be met.
    """
    if not values:
        return Check(claim, "no such case was run", True, why)
    case = (min if least else max)(values, key=lambda name: values[name])
    value = values[case]
    met = value >= limit if least else value <= limit
    count = f"worst of {len(values)}" if len(values) > 1 else "in"
    return Check(claim, f"{value:{form}} ({count}: {case})", met, why)


def makespan_checks(cases: Iterable[Case]) -> list[Check]:
    """How near to the optimum we are without noise, by what the window allows."""
    wide: dict[str, float] = {}
    narrow: dict[str, float] = {}
    bound: dict[str, float] = {}
    against: dict[str, float] = {}
    for case in _steady(cases):
        plan = case.plan
        label = _label(case)
        if plan.window >= plan.window_needed:
            wide[label] = case.ratio
        elif plan.window >= 100 and plan.windowed_optimum <= BOUND * plan.optimum:
            narrow[label] = case.ratio
        elif plan.window >= 100:
            bound[label] = case.observed.makespan / plan.windowed_optimum
            against[label] = case.ratio
    checks = [
        worst(
            "makespan / optimum <= 1.01 where the window lets every device take part", wide, 1.01
        ),
        worst("makespan / optimum <= 1.02 for other windows from 100 up", narrow, 1.02),
    ]
    if bound:
        claim = "makespan / windowed optimum <= 1.02 where nothing in order reaches the optimum"
        why = (
            f"theory.windowed_makespan is the reference where it is over {BOUND} times the "
            f"optimum; against the optimum at most {max(against.values()):.4f}"
        )
        checks.append(worst(claim, bound, 1.02, why=why))
    return checks


def hold_check(cases: Sequence[Case]) -> Check:
    """Whether hardly anything is held where the plain pull holds a lot."""
    plain = {_key(case) for case in _steady(cases, "greedy") if case.hold > 0.10}
    ours = {_label(case): case.hold for case in _steady(cases) if _key(case) in plain}
    claim = "mean hold < 1 % of the slowest service time where the plain pull shows over 10 %"
    return worst(claim, ours, 0.01, form=".3%")


def noise_check(cases: Iterable[Case]) -> Check:
    """Whether noise of 0.3 costs little."""
    ours = {
        f"{_label(case)}, seed {case.plan.seed}": case.ratio
        for case in cases
        if case.virtual
        and case.plan.policy == "eft"
        and case.plan.noise == 0.3
        and case.plan.tasks >= 1000
    }
    return worst("makespan / optimum <= 1.10 at noise 0.3 from 1000 tasks", ours, 1.10)


def _steady(cases: Iterable[Case], policy: str = "eft") -> Iterable[Case]:
    """Cases without noise, drift or a live source."""
    for case in cases:
        plan = case.plan
        calm = not (plan.noise or plan.throttle or plan.arrivals)
        if calm and case.virtual and plan.policy == policy:
            yield case


def _label(case: Case) -> str:
    return f"{case.name}, {case.plan.tasks} tasks, window {case.plan.window:g}"


def _key(case: Case) -> tuple[str, int, float]:
    return case.name, case.plan.tasks, case.plan.window
