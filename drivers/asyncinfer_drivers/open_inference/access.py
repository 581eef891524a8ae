"""Where a server is, and what it takes to be let in."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from asyncinfer.errors import ConfigError

__all__ = ("PROTOCOLS", "Access", "Address")

PROTOCOLS = ("grpc", "http")

_SCHEMES = {
    "grpc": ("grpc", False),
    "grpcs": ("grpc", True),
    "http": ("http", False),
    "https": ("http", True),
}


@dataclass(frozen=True)
class Address:
    """What a URL says."""

    protocol: str
    tls: bool
    #: host:port
    target: str
    #: what comes before ``/v2``, over HTTP
    path: str = ""

    @property
    def host(self) -> str:
        """The target without its port."""
        return self.target.rpartition(":")[0]

    @classmethod
    def parse(cls, url: str, protocol: str | None, tls: bool) -> Address:
        """Of ``host:port`` or a URL; ``protocol`` and ``tls`` as far as the URL leaves them open.

        Raises ``ConfigError`` if the two contradict each other.
        """
        if protocol not in (None, *PROTOCOLS):
            raise ConfigError(f"protocol must be 'grpc' or 'http', not {protocol!r}")
        if not isinstance(url, str):
            raise ConfigError(f"url must be host:port or a URL, not {url!r}")
        scheme, separator, rest = url.partition("://")
        if not separator:
            scheme, rest = (protocol or "grpc") + ("s" if tls else ""), url
        if scheme not in _SCHEMES:
            raise ConfigError(f"url {url!r}: write host:port, or one of {', '.join(_SCHEMES)}://")
        spoken, secure = _SCHEMES[scheme]
        if protocol not in (None, spoken):
            raise ConfigError(f"url {url!r} is not for protocol {protocol!r}")
        if tls and not secure:
            raise ConfigError(f"url {url!r} is without TLS: write {scheme}s:// to use certificates")
        split = urlsplit(f"//{rest}")
        try:
            port = split.port or {"http": 443 if secure else 80}.get(spoken)
        except ValueError:
            port = None
        if not split.hostname or not port or split.username or (split.path and spoken == "grpc"):
            raise ConfigError(f"url {url!r}: write host:port")
        host = f"[{split.hostname}]" if ":" in split.hostname else split.hostname
        return cls(spoken, secure, f"{host}:{port}", split.path.rstrip("/"))


@dataclass(frozen=True, kw_only=True)
class Access:
    """What it takes to be let in; files and the environment are read again at each ``open``.

    With certificates, ``host:port`` means TLS.
    """

    #: file of the certificates to trust; ``None``: the system's
    ca: str | None = None
    #: file of this client's own certificate
    cert: str | None = None
    #: file of the private key that belongs to ``cert``
    key: str | None = None
    #: environment variable that holds a bearer token
    token_env: str | None = None
    #: file that holds a bearer token
    token_file: str | None = None
    #: go with every request (gRPC: metadata)
    headers: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.token_env and self.token_file:
            raise ConfigError("give token_env or token_file, not both")
        if bool(self.cert) != bool(self.key):
            raise ConfigError("cert and key are given together: a certificate and its private key")

    @property
    def tls(self) -> bool:
        """Whether certificates are given."""
        return bool(self.ca or self.cert)

    def all_headers(self) -> dict[str, str]:
        """Headers of every request, the token's included."""
        headers = {key.lower(): str(value) for key, value in (self.headers or {}).items()}
        if token := self._token():
            headers["authorization"] = f"Bearer {token}"
        return headers

    def _token(self) -> str | None:
        if self.token_env:
            token, where = os.environ.get(self.token_env, ""), f"variable {self.token_env}"
        elif self.token_file:
            token, where = read(self.token_file, "token_file").decode(), f"file {self.token_file}"
        else:
            return None
        if not (token := token.strip()):
            raise ConfigError(f"no token in {where}")
        if not token.isascii() or not token.isprintable():
            raise ConfigError(f"the token in {where} is not one line of plain text")
        return token

    def certificates(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The contents of ``ca``, ``key`` and ``cert``."""
        return (
            read(self.ca, "ca") if self.ca else None,
            read(self.key, "key") if self.key else None,
            read(self.cert, "cert") if self.cert else None,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """The same for HTTP; ``ConfigError`` if the files are not what they should be."""
        self.certificates()
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert:
                context.load_cert_chain(self.cert, self.key)
        except ssl.SSLError as error:
            raise ConfigError(f"ca, cert or key is no PEM file of its kind: {error}") from error
        return context


def read(path: str, option: str) -> bytes:
    """The contents of a small file; ``ConfigError`` names the option."""
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{option}: cannot read {path}: {error.strerror or error}") from error
