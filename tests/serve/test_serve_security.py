"""Tokens, TLS, and where it is safe to listen."""

import shutil
import ssl
import subprocess

import grpc
import httpx
import pytest
from serve_models import simulated
from tritonclient.grpc import service_pb2, service_pb2_grpc

from asyncinfer.errors import ConfigError
from asyncinfer.serve.errors import Unauthenticated
from asyncinfer.serve.run import Address, serving
from asyncinfer.serve.security import TOKEN_VARIABLE, Security

TOKEN = "t" * 16


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A certificate for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2"
    subprocess.run(
        [
            *command.split(),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


async def test_both_transports_over_tls(pair):
    certificate, key = pair
    security = Security(token=TOKEN, certificate=certificate, key=key)
    address = Address(http_port=0, grpc_port=0, security=security)
    bearer = f"Bearer {TOKEN}"
    async with serving([simulated()], address) as server:
        verify = ssl.create_default_context(cafile=certificate)
        url = f"https://127.0.0.1:{server.http_port}/v2"
        async with httpx.AsyncClient(verify=verify, trust_env=False) as http:
            answer = await http.get(url, headers={"Authorization": bearer})
            assert answer.json()["name"] == "asyncinfer"
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        target = f"127.0.0.1:{server.grpc_port}"
        async with grpc.aio.secure_channel(target, trusted) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            request = service_pb2.ServerMetadataRequest()
            answer = await stub.ServerMetadata(request, metadata=(("authorization", bearer),))
            assert answer.name == "asyncinfer"


@pytest.mark.parametrize(
    ("header", "right"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer  {TOKEN} ", True),
        (f"Bearer {TOKEN}t", False),
        (f"Basic {TOKEN}", False),
        ("Bearer é", False),
        ("Bearer", False),
        ("", False),
        (None, False),
    ],
)
def test_the_token(header, right):
    security = Security(token=TOKEN)
    if right:
        security.check(header)
    else:
        with pytest.raises(Unauthenticated):
            security.check(header)


def test_where_the_token_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "e" * 20)
    assert Security.of(None, None, None).token == "e" * 20
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert Security.of(file, None, None).token == TOKEN
    for short in ("", "t" * 15, "t t" * 9):
        file.write_text(short)
        with pytest.raises(ConfigError, match="16 or more"):
            Security.of(file, None, None)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.3.0.1"])
def test_this_host_alone_is_safe(host):
    Security().check_host(host, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.5", "pi.local"])  # noqa: S104
def test_beyond_this_host_takes_token_and_tls(host, pair):
    certificate, key = pair
    half = [Security(token=TOKEN), Security(certificate=certificate, key=key)]
    for security in half:
        with pytest.raises(ConfigError, match="--insecure"):
            security.check_host(host, insecure=False)
        security.check_host(host, insecure=True)
    Security(token=TOKEN, certificate=certificate, key=key).check_host(host, insecure=False)
