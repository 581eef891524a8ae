"""Plain loops without dispatcher or event loop: what the torch driver is measured against.

``naive_loop`` is what one writes first: one image at a time, the model as it is. ``best_loop``
has everything that makes torch fast on a CPU: batches, the best form of the model, malloc's
thresholds raised, and one thread or several. Both do the whole work of a driver, pre- and
postprocessing included, and give the outputs in order.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from asyncinfer.registry import load_model
from asyncinfer_drivers._shared.steps import Steps
from asyncinfer_drivers._torch import aot, malloc
from asyncinfer_drivers._torch.batch import to_tensor
from asyncinfer_drivers._torch.load import load
from asyncinfer_drivers._torch.optimize import Search, plans_of
from asyncinfer_drivers._torch.outputs import rows
from asyncinfer_drivers._torch.sizes import LONGEST_CALL
from asyncinfer_drivers._torch.threads import bind
from asyncinfer_drivers._torch.variants import Forward
from asyncinfer_drivers.models.small_net import build as build_small_net
from asyncinfer_drivers.models.small_net import images

__all__ = (
    "BATCHES",
    "BestLoop",
    "Rate",
    "Settings",
    "best_loop",
    "check_same",
    "inputs_of",
    "loop_rates",
    "naive_loop",
    "prepared_loop",
    "tune",
)

#: batch sizes that ``tune`` tries
BATCHES = (1, 4, 16, 32, 64, 128, 256)
#: forms of the model that ``tune`` tries
FORMS = ("none", "freeze+onednn", "channels_last+freeze")
#: seconds ``tune`` gives each turn of a setting, and to find the form of the model
_EACH, _SEARCH = 0.4, 8.0
#: settings that ``tune`` compares in turns, and turns of each
_LEADERS, _ROUNDS = 4, 5
#: turns each loop takes in ``loop_rates``
_TURNS = 4
#: the batch size that the form of the model for batches is sought with
_TUNED_FOR = 8


class Rate(NamedTuple):
    """What a loop did."""

    images_per_second: float
    #: the same by the processor time of all threads, whatever else the machine does
    images_per_cpu_second: float
    #: of the first pass over the inputs, in their order
    outputs: list[Any]
    #: of ``best_loop``: when a batch was done in its time, and how many images that were
    marks: Sequence[tuple[float, int]] = ()


@dataclass(frozen=True)
class Settings:
    """How ``best_loop`` runs."""

    #: images a call
    batch: int = 32
    #: as a driver's ``optimize``
    optimize: str = "auto"
    #: threads that run the model at the same time
    workers: int = 1
    #: intra-op threads of each
    threads: int = 1
    #: ``"raised"`` or ``"as it is"``
    malloc: str = "raised"


class _Job(NamedTuple):
    module: nn.Module
    steps: Steps

    def one(self, item: Any) -> Any:
        """One image, as one writes it first."""
        tensor = to_tensor(self.steps.preprocess(item) if self.steps.preprocess else item)
        row = rows(self.module(tensor.unsqueeze(0)), 1)[0]
        return self.steps.postprocess(row) if self.steps.postprocess else row

    def many(self, items: Sequence[Any], forward: Forward) -> list[Any]:
        """A batch."""
        preprocess, postprocess = self.steps.preprocess, self.steps.postprocess
        if self.steps.collate:
            inputs = self.steps.collate(items)
        else:
            inputs = torch.stack([to_tensor(preprocess(i) if preprocess else i) for i in items])
        output = forward(inputs)
        if self.steps.uncollate:
            return list(self.steps.uncollate(output))
        outputs = rows(output, len(items))
        return [postprocess(row) for row in outputs] if postprocess else outputs


def inputs_of(model_name: str, count: int) -> list[Any]:
    """``count`` inputs of a built-in model, or of ``"small_net"``: its own, again and again."""
    if model_name == "small_net":
        return images(count)
    own = list(load_model(model_name).inputs().items)
    return [own[index % len(own)] for index in range(count)]


def naive_loop(
    model: Any,
    inputs: Sequence[Any],
    *,
    seconds: float | None = None,
    threads: int | None = None,
) -> Rate:
    """One image at a time in ``inference_mode``: once over the inputs, or for ``seconds``.

    ``threads`` are torch's intra-op threads, as many as torch wants by default.
    """
    job = _job(model)
    with ThreadPoolExecutor(1) as thread:  # so that the caller's number of threads stays
        return thread.submit(_one_by_one, job, inputs, seconds, threads).result()


@torch.inference_mode()
def _one_by_one(
    job: _Job, inputs: Sequence[Any], seconds: float | None, threads: int | None
) -> Rate:
    if threads is not None:
        bind(threads)
    job.one(inputs[0])
    outputs: list[Any] = []
    done, elapsed = 0, 1e-9
    started, cpu = time.perf_counter(), time.process_time()
    for done, item in enumerate(itertools.cycle(inputs), 1):
        output = job.one(item)
        if done <= len(inputs):
            outputs.append(output)
        elapsed = time.perf_counter() - started
        if done >= len(inputs) if seconds is None else elapsed >= seconds:
            break
    return Rate(done / elapsed, done / (time.process_time() - cpu), outputs)


def best_loop(
    model: Any, inputs: Sequence[Any], settings: Settings | None = None, *, seconds: float = 0.0
) -> Rate:
    """Batches with ``settings`` (found by ``tune`` if ``None``); again until ``seconds``."""
    if settings is None:
        settings = tune(model, inputs)
    return prepared_loop(model, inputs, settings).run(seconds)


def prepared_loop(model: Any, inputs: Sequence[Any], settings: Settings) -> BestLoop:
    """The same, to be run more than once."""
    job = _job(model)
    _, forward = _prepared(job, inputs[0], settings.batch, settings.optimize)
    return BestLoop(job, forward, inputs, settings)


def tune(model: Any, inputs: Sequence[Any], *, workers: Sequence[int] = (1, 2)) -> Settings:
    """The fastest settings: each form with each batch size on one worker, then more workers.

    A form that is best at one batch size may not be at another, so that all are tried at all, once;
    then the best of those in turns, as a host's speed changes from one moment to the next.
    """
    job = _job(model)
    forms = dict(_prepared(job, inputs[0], _TUNED_FOR, form) for form in FORMS)

    def run(settings: Settings) -> Rate:
        some = list(itertools.islice(itertools.cycle(inputs), 2 * settings.batch))
        return BestLoop(job, forms[settings.optimize], some, settings).run(_EACH)

    def best(several: Iterable[Settings]) -> Settings:
        rates = {settings: list[float]() for settings in several}
        for _ in range(_ROUNDS):
            for settings, found in rates.items():
                found.append(run(settings).images_per_second)
        return max(rates, key=lambda settings: statistics.median(rates[settings]))

    one = dict[Settings, float]()
    for form in forms:
        top = 0.0
        for batch in BATCHES:
            settings = Settings(batch, form)
            one[settings] = run(settings).images_per_cpu_second
            top = max(top, one[settings])
            if one[settings] < top / 2 or batch / one[settings] > LONGEST_CALL:
                break
    leaders = sorted(one, key=lambda settings: one[settings])[-_LEADERS:]
    leader = best(replace(settings, workers=max(workers)) for settings in leaders)
    return best(replace(leader, workers=number) for number in workers)


def loop_rates(model_name: str, *, count: int, seconds: float) -> dict[str, Any]:
    """Images/s of both loops over ``count`` inputs of a built-in model or ``"small_net"``.

    The loops take turns for ``seconds`` each in all. Raises ``ValueError`` if their outputs differ.
    """
    model: Any = build_small_net() if model_name == "small_net" else model_name
    inputs = inputs_of(model_name, count)
    settings = tune(model, inputs)
    loop = prepared_loop(model, inputs, settings)
    naive, best = list[Rate](), list[Rate]()
    for _ in range(_TURNS):
        for threads in (None, 1):  # more than one may be worse: it gets the better of both
            naive.append(naive_loop(model, inputs, seconds=seconds / _TURNS / 2, threads=threads))
        best.append(loop.run(seconds / _TURNS))
    for rate in naive:
        check_same(rate.outputs, best[0].outputs)
    return {
        "naive": max(rate.images_per_second for rate in naive),
        "best": max(rate.images_per_second for rate in best),
        "best_settings": asdict(settings),
    }


def check_same(naive: list[Any], best: list[Any]) -> None:
    """Raise ``ValueError`` if two loops' outputs for the same inputs differ."""
    for number, (one, other) in enumerate(zip(naive, best, strict=False)):
        if isinstance(one, torch.Tensor):
            same = torch.allclose(one, other, rtol=1e-3, atol=1e-4)
        else:
            same = one == other
        if not same:
            raise ValueError(f"image {number}: the naive loop gave {one!r}, the best one {other!r}")


def _job(model: Any) -> _Job:
    loaded = load(model, torch.device("cpu"))
    return _Job(loaded.module, loaded.steps)


def _prepared(job: _Job, item: Any, batch: int, optimize: str) -> tuple[str, Forward]:
    """The name of the model's fastest form, and the form."""
    tensor = to_tensor(job.steps.preprocess(item) if job.steps.preprocess else item)
    search = Search("bare loop", job.module, tensor, batch, _SEARCH, aot.Cache.of_user(batch, 1))
    with ThreadPoolExecutor(1, initializer=bind, initargs=(1,)) as thread:
        choice = thread.submit(search.run, plans_of(optimize)).result()
    return str(choice), choice.forward


class BestLoop:
    """Workers that take the next batch until there is none."""

    def __init__(
        self, job: _Job, forward: Forward, inputs: Sequence[Any], settings: Settings
    ) -> None:
        self._job = job
        self._forward = forward
        self._settings = settings
        size = settings.batch
        self._batches = [inputs[at : at + size] for at in range(0, len(inputs), size)]
        self._outputs: list[list[Any]] = [[] for _ in self._batches]
        self._started = self._cpu = self._end = 0.0
        self._marks: list[tuple[float, int]] = []
        #: calls of each worker before those that count
        self._warm_up = 3

    @torch.inference_mode()
    def answer(self, batch: Sequence[Any]) -> list[Any]:
        """The outputs of one batch, in the thread that calls this."""
        return self._job.many(batch, self._forward)

    def run(self, seconds: float) -> Rate:
        """All batches, and again until ``seconds``."""
        self._numbers, self._marks = itertools.count(), []
        held = self._settings.malloc == "raised" and malloc.hold()
        workers, threads = self._settings.workers, self._settings.threads
        try:
            with ThreadPoolExecutor(workers, initializer=bind, initargs=(threads,)) as crew:
                barrier = threading.Barrier(workers, action=lambda: self._start(seconds))
                done = [crew.submit(self._work, barrier) for _ in range(workers)]
                images = sum(future.result() for future in done)
            elapsed, cpu = time.perf_counter() - self._started, time.process_time() - self._cpu
        finally:
            if held:
                malloc.release()
        self._warm_up = 1
        outputs = list(itertools.chain(*self._outputs))
        marks = [mark for mark in self._marks if mark[0] <= self._end]
        return Rate(images / elapsed, images / cpu, outputs, marks)

    def _start(self, seconds: float) -> None:
        self._started, self._cpu = time.perf_counter(), time.process_time()
        self._end = self._started + seconds

    @torch.inference_mode()
    def _work(self, barrier: threading.Barrier) -> int:
        """In a worker: the number of images it did."""
        heaps = malloc.keep_heaps() if self._settings.malloc == "raised" else []
        try:
            return self._work_on(barrier)
        finally:
            malloc.free(heaps)

    def _work_on(self, barrier: threading.Barrier) -> int:
        try:
            for _ in range(self._warm_up):
                self._job.many(self._batches[0], self._forward)
        except BaseException:
            barrier.abort()
            raise
        barrier.wait()
        images, count = 0, len(self._batches)
        while (number := next(self._numbers)) < count or time.perf_counter() < self._end:
            done = self._job.many(self._batches[number % count], self._forward)
            images += len(done)
            self._marks.append((time.perf_counter(), len(done)))
            if number < count:
                self._outputs[number] = done
        return images
