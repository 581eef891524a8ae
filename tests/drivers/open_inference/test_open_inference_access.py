"""TLS, certificates, tokens and headers, over both protocols."""

import shutil
import subprocess

import numpy as np
import pytest
import pytest_asyncio
from oip_server import Fault, Server

from asyncinfer.errors import ConfigError, DeviceError, DeviceLost

OPENSSL = shutil.which("openssl")
#: environment variable
VARIABLE = "PI_TOKEN"
ROW = np.arange(4, dtype=np.float32)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """Two authorities of our own; the first has signed a certificate for this host."""
    if OPENSSL is None:
        pytest.skip("needs openssl, to make certificates")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run([OPENSSL, *arguments], check=True, capture_output=True, cwd=folder)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
                "-subj", f"/CN={name}")  # fmt: skip
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1")
    openssl("req", *key, "-keyout", "host.key", "-out", "host.csr", "-subj", "/CN=host")
    openssl("x509", "-req", "-in", "host.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2",
            "-CAcreateserial", "-extfile", "san", "-out", "host.pem")  # fmt: skip
    names = {"ca": "ca.pem", "cert": "host.pem", "key": "host.key", "other": "other.pem"}
    return {what: folder / name for what, name in names.items()}


@pytest_asyncio.fixture
async def secure(protocol, certificates):
    """A server that asks its clients for a certificate too."""
    server = Server(protocol, tls=certificates)
    await server.start()
    yield server
    await server.stop()


async def test_both_sides_show_certificates(secure, opened, certificates):
    given = {what: str(certificates[what]) for what in ("ca", "cert", "key")}
    async with opened(secure, **given) as driver:
        assert (await driver.infer([ROW]))[0].tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("missing", ["cert", "ca", "tls"])
async def test_a_certificate_that_will_not_do(secure, driver_for, certificates, missing):
    given = {what: str(certificates[what]) for what in ("ca", "cert", "key")}
    if missing == "cert":
        given = {"ca": given["ca"]}
    elif missing == "ca":
        given["ca"] = str(certificates["other"])
    else:
        given = {}
    with pytest.raises(DeviceLost, match="cannot be reached"):
        await driver_for(secure, **given, connect_timeout=5.0).open()


async def test_files_that_are_none(secure, driver_for, tmp_path):
    with pytest.raises(ConfigError, match=r"ca: cannot read .*: No such file"):
        await driver_for(secure, ca=str(tmp_path / "gone.pem")).open()
    with pytest.raises(ConfigError, match="token_file: cannot read"):
        await driver_for(secure, token_file=str(tmp_path / "gone")).open()


async def test_headers_and_a_token_go_with_every_request(server, opened, tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("first\n")
    async with opened(server, token_file=str(file), headers={"X-Site": "lab"}) as driver:
        await driver.infer([ROW])
        file.write_text("second")
        await driver.close()
        await driver.open()
        await driver.infer([ROW])
    monkeypatch.setenv(VARIABLE, "third")
    async with opened(server, token_env=VARIABLE) as driver:
        await driver.infer([ROW])
    seen = [{key.lower(): value for key, value in headers.items()} for headers in server.headers]
    tokens = [headers["authorization"] for headers in seen]
    assert tokens == ["Bearer first", "Bearer second", "Bearer third"]
    assert seen[0]["x-site"] == "lab"


@pytest.mark.parametrize("token", ["", "two\nlines"])
async def test_no_token(server, driver_for, monkeypatch, token):
    monkeypatch.setenv(VARIABLE, token)
    with pytest.raises(ConfigError, match="token in variable PI_TOKEN"):
        await driver_for(server, token_env=VARIABLE).open()


async def test_a_token_that_is_refused(server, driver_for, opened):
    server.always = ("denied", "who are you?")
    with pytest.raises(DeviceError, match=r"denied access: who are you\?"):
        async with opened(server) as driver:
            await driver.infer([ROW])
    server.described = denied
    with pytest.raises(ConfigError, match="denied access: no; check token_env"):
        await driver_for(server).open()


def denied(name):
    raise Fault("denied", "no")
