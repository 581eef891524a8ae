"""A bare event loop that looks at the clock as the server does: what the machine alone is late by.

Ends with its standard input; prints one JSON object.
"""

import asyncio
import json
import sys
import time

TICK = 0.01
LATE = 0.01


async def main():
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    looks = late = 0
    ended = asyncio.ensure_future(reader.read())
    while not ended.done():
        started = time.perf_counter()
        await asyncio.sleep(TICK)
        looks += 1
        late += time.perf_counter() - started - TICK > LATE
    print(json.dumps({"looks": looks, "late": late}))


if __name__ == "__main__":
    asyncio.run(main())
