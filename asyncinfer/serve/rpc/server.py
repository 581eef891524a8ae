"""The gRPC side of the server."""

from __future__ import annotations

from typing import Any

import grpc

from asyncinfer.errors import ConfigError
from asyncinfer.serve.core import Core
from asyncinfer.serve.rpc.methods import handlers
from asyncinfer.serve.security import Security

__all__ = ("RpcServer",)

#: bytes of a message besides its tensors: names, shapes, parameters
_FRAME = 16 * 1024


class RpcServer:
    """Listens when started, ends when stopped."""

    def __init__(self, core: Core, security: Security) -> None:
        limits = core.limits
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", core.gate.hold().limit + _FRAME),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", limits.max_header_bytes),
            ("grpc.absolute_max_metadata_size", limits.max_header_bytes),
            # on, it lets each call send megabytes that nobody has asked for yet
            ("grpc.http2.bdp_probe", 0),
            ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a rival
        ]
        # well above the limit on requests, whose refusal is ours: health checks are answered
        self._server = grpc.aio.server(
            options=options, maximum_concurrent_rpcs=4 * limits.max_requests
        )
        methods, self._end_streams = handlers(core, security)
        self._server.add_generic_rpc_handlers((methods,))
        self._security = security

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port, which is a free one for port 0. Raises ``ConfigError``."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._bind(address)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address} for gRPC: {error}") from error
        await self._server.start()
        return bound

    def _bind(self, address: str) -> int:
        certificate, key = self._security.certificate, self._security.key
        if certificate is None or key is None:
            return self._server.add_insecure_port(address)
        pair = (key.read_bytes(), certificate.read_bytes())
        return self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))

    async def stop(self, grace: float) -> None:
        """Accept no calls, end the streams, and cancel what is left after ``grace`` seconds."""
        self._end_streams()
        await self._server.stop(grace)
