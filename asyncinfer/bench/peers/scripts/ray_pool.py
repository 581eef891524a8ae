"""Ray's ActorPool: one actor a core, driven by its own process, as its users do."""

import time
from collections.abc import Callable

import ray
from common import BATCH, FOLDER, LABELS, WORKERS, Commands, images, loads, model, predict, versions
from ray.util import ActorPool


@ray.remote(num_cpus=1)
class Classifier:
    """Computes on one core."""

    def __init__(self) -> None:
        model()

    def one(self, number: int, image: bytes) -> tuple[int, int]:
        return number, predict([image])[0]

    def many(self, batch: list[bytes]) -> list[int]:
        return predict(batch)


def drive(pool: ActorPool, load: loads.Load, due: Callable[[int, float], float | None]) -> None:
    """Submit images when they are due; ``due`` tells when the next one is, if it is known."""
    data, started, begun = images(), time.perf_counter(), list[float]()
    while True:
        now = time.perf_counter() - started
        at = due(len(begun), load.finished + load.errors)
        while at is not None and at <= now:
            number = len(begun)
            image = data[number % len(data)]
            pool.submit(lambda actor, v: actor.one.remote(*v), (number, image))
            begun.append(at or now)
            load.lags.append(now - begun[-1])
            at = due(len(begun), load.finished + load.errors)
        if not pool.has_next():
            if at is None:
                break
            time.sleep(max(0.0, at - now))
            continue
        try:
            patience = None if at is None else max(0.0, at - (time.perf_counter() - started))
            number, label = pool.get_next_unordered(timeout=patience)
        except TimeoutError:
            continue
        latency = loads.from_intended(begun[number], time.perf_counter() - started)
        load.check(label, LABELS[number % len(data)], latency)
    load.seconds = time.perf_counter() - started


def closed(pool: ActorPool, in_flight: int, seconds: float) -> loads.Load:
    """``in_flight`` images under way for so long."""
    load, started = loads.Load(), time.perf_counter()

    def due(begun: int, ended: int) -> float | None:
        over = time.perf_counter() - started >= seconds
        return None if over or begun - ended >= in_flight else 0.0

    drive(pool, load, due)
    return load


def opened(pool: ActorPool, arrivals: list[float]) -> loads.Load:
    """Images at their times."""
    load = loads.Load()
    drive(pool, load, lambda begun, _: arrivals[begun] if begun < len(arrivals) else None)
    return load


def stream(pool: ActorPool, tasks: int) -> loads.Load:
    """One ordered stream, in chunks of a batch: ``ActorPool.map`` has no batching of its own."""
    load, data, started = loads.Load(), images(), time.perf_counter()
    chunks = [
        [data[n % len(data)] for n in range(start, min(start + BATCH, tasks))]
        for start in range(0, tasks, BATCH)
    ]
    number = 0
    for labels in pool.map(lambda actor, chunk: actor.many.remote(chunk), chunks):
        for label in labels:
            load.check(label, LABELS[number % len(data)], 0.0)
            number += 1
    load.seconds = time.perf_counter() - started
    return load


def main() -> None:
    """Start, obey, stop."""
    commands = Commands()
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        object_store_memory=200_000_000,
        _temp_dir=str(FOLDER / "ray"),
        logging_level="warning",
    )
    actors = [Classifier.remote() for _ in range(WORKERS)]
    ray.get([actor.many.remote(images()[:1]) for actor in actors])
    pool = ActorPool(actors)
    commands.reply(versions=versions("ray", "torch"))
    for order in commands:
        kind = order.pop("load")
        run = {"closed": closed, "open": opened, "stream": stream}[kind]
        commands.reply(load=run(pool, **order).as_message())
    ray.shutdown()


if __name__ == "__main__":
    main()
