"""Boards in memory behind TCP ports and ptys."""

import asyncio
import os
import tty
from contextlib import asynccontextmanager

__all__ = ("Wire", "over_pty", "over_serialx", "over_tcp")


class Wire:
    """What a board in memory writes to, and where the bytes for it come from."""

    def __init__(self, send, hang_up):
        self.write = send
        self.abort = hang_up


@asynccontextmanager
async def over_tcp(peer):
    """The board behind a TCP port."""

    async def serve(reader, writer):
        peer.attach(Wire(writer.write, writer.transport.abort))
        try:
            while data := await reader.read(100):
                peer.data_received(data)
        except ConnectionError:
            pass
        finally:
            peer.connection_lost(None)
            writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def over_pty(peer):
    """The board behind a pty; its other end stays open, as a USB adapter does."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    loop = asyncio.get_running_loop()
    loop.add_reader(master, lambda: peer.data_received(os.read(master, 4096)))
    peer.attach(Wire(lambda data: os.write(master, data), lambda: None))
    try:
        yield os.ttyname(slave)
    finally:
        loop.remove_reader(master)
        os.close(master)
        os.close(slave)


@asynccontextmanager
async def over_serialx(peer):
    """The same pty, opened by the other library."""
    async with over_pty(peer) as port:
        yield f"serialx://{port}"
