"""A peer of the tests: the scripts' own protocol, a real process, no model.

``FAKE_PEER`` says how it behaves, in words.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time

from common import LABELS, PORT, Commands, images, loads

WORDS = os.environ.get("FAKE_PEER", "").split()
BY_IMAGE = dict(zip(images(), LABELS, strict=True))


async def serve() -> None:
    served = 0

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            label = BY_IMAGE[await reader.readexactly(length)]
            served += 1
            if "dies" in WORDS and served > 20:
                os.kill(os.getpid(), signal.SIGKILL)
            if "lies" in WORDS and served > 20:
                label += 1
            body = b'{"label": %d}' % label
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    async with await asyncio.start_server(client, "127.0.0.1", PORT) as server:
        await server.serve_forever()


async def obey(order: dict) -> loads.Load:
    async def call(number: int) -> int:
        await asyncio.sleep(0.001)
        return LABELS[number]

    kind = order.pop("load")
    if kind == "stream":
        load = loads.Load(seconds=0.5)
        for number in range(order["tasks"]):
            load.check(LABELS[number % len(LABELS)], LABELS[number % len(LABELS)], 0.0)
        return load
    return await {"closed": loads.closed_loop, "open": loads.open_loop}[kind](call, LABELS, **order)


def main() -> None:
    commands = Commands()
    print("what libraries print is no reply")
    if "fails" in WORDS:
        sys.exit("the fake peer has no such model")
    if "silent" in WORDS:
        time.sleep(60)
    if "helper" in WORDS:  # in a session of its own, its environment emptied
        subprocess.Popen(["/bin/sleep", "60"], start_new_session=True, env={})
    if "stubborn" in WORDS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    commands.reply(versions={"fake": "1.0"})
    if "own" in WORDS:
        for order in commands:
            commands.reply(load=asyncio.run(obey(order)).as_message())
    else:
        if "stubborn" not in WORDS:
            commands.stop_at_end()
        asyncio.run(serve())


if __name__ == "__main__":
    main()
