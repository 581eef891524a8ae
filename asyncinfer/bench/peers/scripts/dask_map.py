"""Dask (distributed): one worker process a core, driven by its own process, as its users do."""

import asyncio
import time

from common import BATCH, FOLDER, LABELS, WORKERS, Commands, images, loads, model, predict, versions
from distributed import Client, LocalCluster


def one(image: bytes) -> int:
    """The label of one image."""
    return predict([image])[0]


def load_model() -> None:
    """Once in each worker."""
    model()


async def stream(client: Client, tasks: int) -> loads.Load:
    """One ordered stream, in chunks of a batch, gathered in order."""
    load, data, started = loads.Load(), images(), time.perf_counter()
    chunks = [
        [data[n % len(data)] for n in range(start, min(start + BATCH, tasks))]
        for start in range(0, tasks, BATCH)
    ]
    gathered = await client.gather(client.map(predict, chunks, pure=False))
    for number, label in enumerate(label for labels in gathered for label in labels):
        load.check(label, LABELS[number % len(data)], 0.0)
    load.seconds = time.perf_counter() - started
    return load


async def obey(client: Client, order: dict) -> loads.Load:
    """Run one load."""
    data = images()

    async def call(number: int) -> int:
        return await client.submit(one, data[number], pure=False)

    kind = order.pop("load")
    if kind == "stream":
        return await stream(client, **order)
    run = {"closed": loads.closed_loop, "open": loads.open_loop}[kind]
    return await run(call, LABELS, **order)


async def main() -> None:
    """Start, obey, stop."""
    commands = Commands()
    async with (
        LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=str(FOLDER / "dask"),
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.run(load_model)
        commands.reply(versions=versions("distributed", "torch"))
        lines = iter(commands)
        while (order := await asyncio.to_thread(next, lines, None)) is not None:
            commands.reply(load=(await obey(client, order)).as_message())


if __name__ == "__main__":
    asyncio.run(main())
