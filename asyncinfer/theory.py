"""What a set of unequal devices can reach, in closed form.

Devices are given by their service times ``T_1 .. T_n`` in seconds per task. The functions are
pure and need neither a dispatcher nor a device; ``docs/theory.md`` derives them and runs them.
Those that start with ``paper_`` are the formulas of the literature, kept beside the right ones.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

__all__ = (
    "expected_latency",
    "greedy_makespan",
    "lockstep_makespan",
    "optimum_makespan",
    "optimum_shares",
    "paper_makespan",
    "paper_speedup",
    "response_time",
    "speedup",
    "static_makespan",
    "total_rate",
    "window_needed",
    "windowed_makespan",
    "windowed_rate",
)


def total_rate(service_times: Sequence[float]) -> float:
    """Tasks per second with every device always busy: ``R = sum(1/T_i)``."""
    return math.fsum(1 / t for t in _checked(service_times))


def speedup(service_times: Sequence[float], base: float | None = None) -> float:
    """How many devices of service time ``base`` all of them are worth: ``R * base``.

    The default base is the fastest device, ``min(T_i)``: the only one worth comparing with.
    """
    times = _checked(service_times)
    return total_rate(times) * (min(times) if base is None else base)


def optimum_shares(service_times: Sequence[float], tasks: int) -> list[int]:
    """Tasks each device gets in the shortest schedule: the first ``tasks`` completions.

    With every device always busy, device ``i`` completes at ``T_i, 2*T_i, 3*T_i ..``; the shares
    count the ``tasks`` earliest of all these, the earlier device first where two coincide.
    At ``m/R`` seconds between ``m - n`` and ``m`` of them have happened, so only the last few are
    stepped through: ``O(n log n)``, however many tasks.
    """
    times = _checked(service_times)
    _check_tasks(tasks)
    bulk = tasks / total_rate(times)
    shares = [max(0, math.floor(bulk / t) - 1) for t in times]
    following = [((k + 1) * t, i) for i, (k, t) in enumerate(zip(shares, times, strict=True))]
    heapq.heapify(following)
    for _ in range(tasks - sum(shares)):
        _, i = following[0]
        shares[i] += 1
        heapq.heapreplace(following, ((shares[i] + 1) * times[i], i))
    return shares


def optimum_makespan(service_times: Sequence[float], tasks: int) -> float:
    """Least seconds in which ``m`` tasks can be done: ``min M with sum(floor(M/T_i)) >= m``.

    It is the time of the ``m``-th completion of ``optimum_shares``, hence exact.
    """
    shares = optimum_shares(service_times, tasks)
    return max(k * t for k, t in zip(shares, service_times, strict=True))


def greedy_makespan(service_times: Sequence[float], tasks: int) -> float:
    """Seconds of the plain pull without a window: an idle device takes the first waiting task.

    Device ``i`` starts at ``0, T_i, 2*T_i ..``. The ``m`` earliest starts of all devices happen,
    each runs to its end: with ``k_i`` the shares of the first ``m - n`` completions, the result is
    ``max((k_i + 1) * T_i)``. Up to ``T_max - T_min`` worse than the optimum: the last tasks.
    """
    times = _checked(service_times)
    _check_tasks(tasks)
    if tasks <= len(times):
        return max(times[:tasks], default=0.0)
    shares = optimum_shares(times, tasks - len(times))
    return max((k + 1) * t for k, t in zip(shares, times, strict=True))


def static_makespan(service_times: Sequence[float], tasks: int) -> float:
    """Seconds of an equal split fixed beforehand: ``max(m_i * T_i)``, each ``m_i`` near ``m/n``."""
    times = _checked(service_times)
    _check_tasks(tasks)
    each, more = divmod(tasks, len(times))
    return max((each + (i < more)) * t for i, t in enumerate(times))


def lockstep_makespan(service_times: Sequence[float], tasks: int) -> float:
    """Seconds of rounds in which every device runs one task and all wait for the slowest.

    ``floor(m/n) * T_max``, plus the slowest of the first ``m mod n`` devices in the last round.
    """
    times = _checked(service_times)
    _check_tasks(tasks)
    rounds, rest = divmod(tasks, len(times))
    return rounds * max(times) + max(times[:rest], default=0.0)


def window_needed(service_times: Sequence[float]) -> int:
    """Window that lets every device take part in an ordered stream: ``sum(ceil(T_max/T_k))``.

    While the slowest device runs one task, the others complete up to this many less one.
    """
    times = _checked(service_times)
    slowest = max(times)
    return sum(_ceil(slowest / t) for t in times)


def windowed_rate(service_times: Sequence[float], window: int, *, hold: bool = False) -> float:
    """Best rate of an ordered stream with a window of ``W`` tasks: ``max_j min(R_j, C_j/T_j)``.

    Devices are sorted, ``R_j`` is the total rate of the ``j`` fastest. ``C_j = 2W - 1`` if results
    may be held, and ``min(2W - 1, W + j - 1)`` if they complete in order.

    A task of ``T_j`` seconds with index ``i`` starts with the head at ``h > i - W``. Until it ends
    only tasks below ``i + W`` may start, so all that run meanwhile, itself included, are among
    ``h .. i + W - 1``: at most ``2W - 1``. In order, those above ``i`` end after it: there are
    ``W`` up to ``i``, and one that is still running on each of the ``j - 1`` other devices. So a
    schedule that keeps device ``j`` busy is limited to ``C_j/T_j``; one that leaves it (and all
    slower ones) out, to ``R_(j-1)``.
    """
    times = sorted(_checked(service_times))
    rates = accumulate(1 / t for t in times)
    limits = (_capacity(window, j, hold) / t for j, t in enumerate(times))
    return max(min(rate, limit) for rate, limit in zip(rates, limits, strict=True))


def windowed_makespan(service_times: Sequence[float], tasks: int, window: int) -> float:
    """Seconds to expect at best for ``m`` tasks that complete in order in a window of ``W``.

    ``min_j max(optimum of the j fastest, (m - C_j) * T_j / C_j)``: the first tasks are free of the
    limit that ``windowed_rate`` explains. The optimum itself where the window is ``window_needed``.
    """
    times = sorted(_checked(service_times))
    limits = [_capacity(window, j, hold=False) for j in range(len(times))]
    held = [max(0, tasks - c) * t / c for c, t in zip(limits, times, strict=True)]

    def seconds(j: int) -> float:
        return max(optimum_makespan(times[: j + 1], tasks), held[j])

    # only a j with less in ``held`` than every greater j can be best; along these ``held`` rises
    # with j and the optimum falls, so the best one is where the two meet
    worth: list[int] = []
    for j in reversed(range(len(times))):
        if not worth or held[j] < held[worth[-1]]:
            worth.append(j)
    worth.reverse()
    turn = bisect_left(worth, True, key=lambda j: held[j] >= seconds(j))
    return min(seconds(j) for j in worth[max(0, turn - 1) : turn + 1])


def expected_latency(service_times: Sequence[float]) -> float:
    """Mean seconds a task spends on a device when all are busy: ``n/R``.

    Device ``i`` runs a share ``(1/T_i)/R`` of the tasks, each ``T_i`` long: the harmonic mean of
    the service times, not their average.
    """
    return len(service_times) / total_rate(service_times)


def response_time(
    service_times: Sequence[float],
    arrival_rate: float,
    *,
    arrival_scv: float = 1.0,
    noise_scv: float = 0.0,
) -> float:
    """Mean seconds from arrival to result of a stream that arrives at ``arrival_rate`` tasks/s.

    Queue G/G/c, by the Allen-Cunneen approximation: ``n/R + C(n, a)/(R - rate) * (ca2 + cs2)/2``,
    ``C`` Erlang's waiting probability for ``a = rate*n/R`` (exact for M/M/c, and for M/G/1 by
    Pollaczek-Khinchine). ``ca2`` is the squared variation of the gaps between arrivals (1 =
    Poisson, 0 = a steady camera), ``cs2`` that of the service: what the unequal devices bring,
    ``(1 + noise_scv) * sum(T_i)*R/n^2 - 1``. Unequal servers are taken as ``n`` of the mean rate,
    which is good from about half load upwards. Infinite when ``arrival_rate >= R``.
    """
    times = _checked(service_times)
    rate, servers = total_rate(times), len(times)
    if arrival_rate < 0:
        raise ValueError(f"the arrival rate must not be negative, not {arrival_rate}")
    if arrival_rate >= rate:
        return math.inf
    service_scv = (1 + noise_scv) * math.fsum(times) * rate / servers**2 - 1
    waiting = _erlang_c(servers, arrival_rate * servers / rate) / (rate - arrival_rate)
    return servers / rate + waiting * (arrival_scv + service_scv) / 2


def paper_makespan(service_times: Sequence[float], tasks: int) -> float:
    """The literature's makespan of the plain pull, ``max_i ceil(m/n) * T_i``.

    That is the time of an equal split. A pull gives fast devices more tasks: see
    ``greedy_makespan`` for its true time.
    """
    times = _checked(service_times)
    return -(-tasks // len(times)) * max(times)


def paper_speedup(service_times: Sequence[float]) -> float:
    """The literature's speed-up, ``R * T_max``: against the slowest device alone."""
    return speedup(service_times, max(service_times))


def _capacity(window: int, faster: int, hold: bool) -> int:
    """Most tasks in one service time of a device that has ``faster`` ones beside it."""
    if window < 1:
        raise ValueError(f"the window must be at least 1, not {window}")
    return 2 * window - 1 if hold else min(2 * window - 1, window + faster)


def _erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival waits, from Erlang's B by its recursion over the servers."""
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = load * blocked / (k + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def _ceil(ratio: float) -> int:
    """The ceiling; a ratio like 0.3/0.1 = 2.9999999999999996 is taken for the whole number."""
    near = round(ratio)
    return near if math.isclose(ratio, near, rel_tol=1e-9) else math.ceil(ratio)


def _checked(service_times: Sequence[float]) -> Sequence[float]:
    if not service_times:
        raise ValueError("no service times given")
    for t in service_times:
        if not (t > 0 and math.isfinite(t)):
            raise ValueError(f"a service time must be a positive number of seconds, not {t}")
    return service_times


def _check_tasks(tasks: int) -> None:
    if tasks < 0:
        raise ValueError(f"the number of tasks must not be negative, not {tasks}")
