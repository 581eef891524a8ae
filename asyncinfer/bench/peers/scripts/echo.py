"""A server that does nothing but look the label up: how much load the client itself can make."""

import asyncio

from common import LABELS, PORT, Commands, images

REPLIES = {
    image: b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n{"label": %d}'
    % (len(b'{"label": %d}' % label), label)
    for image, label in zip(images(), LABELS, strict=True)
}
SIZE = len(images()[0])


class Echo(asyncio.Protocol):
    """One request at a time, its body at the end."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        _, separator, body = self.received.partition(b"\r\n\r\n")
        if separator and len(body) == SIZE:
            self.received = b""
            self.transport.write(REPLIES[body])


async def main() -> None:
    """Serve until stopped."""
    loop = asyncio.get_running_loop()
    async with await loop.create_server(Echo, "127.0.0.1", PORT) as server:
        await server.serve_forever()


if __name__ == "__main__":
    commands = Commands()
    commands.reply(versions={})
    commands.stop_at_end()
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(main())
    else:
        uvloop.run(main())
