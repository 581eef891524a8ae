"""``asyncinfer serve``: the devices behind the Open Inference Protocol."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from asyncinfer import config as configuration
from asyncinfer.cli.arguments import AllowCode, Config, Devices, Json, Model
from asyncinfer.cli.output import emit, note
from asyncinfer.cli.tools import optional, read_config, run_async

__all__ = ("serve",)


def serve(
    config: Config = None,
    allow_code: AllowCode = False,
    model: Model = None,
    devices: Devices = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8080,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8081,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Clients must send the token in this file, or in ASYNCINFER_TOKEN.",
            show_default=False,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM file of the certificate.", show_default=False)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="PEM file of its key.", show_default=False)
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this host without token or TLS.")
    ] = False,
    drain_timeout: Annotated[
        float, typer.Option(min=0.0, help="Seconds to finish accepted work when told to end.")
    ] = 30.0,
    ports_file: Annotated[
        Path | None,
        typer.Option(help="Write ports and pid to this JSON file once ready.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve models to clients of the Open Inference Protocol, over HTTP and gRPC.

    Each distinct model of the devices is served under its name. SIGTERM and Ctrl-C drain: accepted
    work is finished, new work refused. The exit status is 1 if that took longer than it may.

    asyncinfer serve --model digits --devices cpu
    """
    # devices start processes while gRPC runs, which then says so on standard error each time
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    server = optional("asyncinfer.serve.run", "asyncinfer serve")
    settings = read_config(config, allow_code=allow_code)
    security = server.Security.of(token_file, tls_cert, tls_key)
    security.check_host(host, insecure=insecure)
    limits = server.limits_of(settings)
    chosen = configuration.select(devices or [], settings)
    models = server.models_of(settings, chosen, model, limits)
    for device in chosen:
        if device.note:
            note(f"{device.name}: {device.note}")
    address = server.Address(host, http_port, grpc_port, security)
    facts = run_async(
        server.run(
            models,
            address,
            limits,
            drain_timeout=drain_timeout,
            ports_file=ports_file,
            name=server.name_of(settings),
        )
    )
    if as_json:
        emit(facts)
    if not facts["drained"]:
        raise typer.Exit(1)
