"""Who may ask: tokens, TLS, and the rule for listening beyond this host."""

from __future__ import annotations

import hmac
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from asyncinfer.errors import ConfigError
from asyncinfer.serve.errors import Unauthenticated

__all__ = ("TOKEN_VARIABLE", "Security")

#: environment variable with the token, where no file is named
TOKEN_VARIABLE = "ASYNCINFER_TOKEN"  # noqa: S105  # its name, not the token

_LEAST = 16


@dataclass(frozen=True, kw_only=True)
class Security:
    """What clients have to bring, and what the server shows them."""

    #: clients send it as ``Authorization: Bearer TOKEN``; empty for none
    token: str = ""
    #: PEM files
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def of(cls, token_file: Path | None, certificate: Path | None, key: Path | None) -> Security:
        """Read the token, from the file or the environment; ``ConfigError`` for what is amiss."""
        if (certificate is None) != (key is None):
            raise ConfigError("TLS needs both files: give --tls-cert and --tls-key")
        for path in (certificate, key):
            if path is not None and not path.is_file():
                raise ConfigError(f"no such file: {path}")
        return cls(token=_token(token_file), certificate=certificate, key=key)

    def check_host(self, host: str, *, insecure: bool) -> None:
        """Raise ``ConfigError`` if listening there is not safe and was not insisted on."""
        if insecure or is_loopback(host) or (self.token and self.certificate):
            return
        raise ConfigError(
            f"host {host} can be reached from elsewhere: give --token-file, --tls-cert and "
            "--tls-key, or --insecure where others see to that"
        )

    def check(self, authorization: str | None) -> None:
        """Raise ``Unauthenticated`` unless the header has the token."""
        if not self.token:
            return
        kind, _, token = (authorization or "").partition(" ")
        given = token.strip().encode("utf-8", "surrogateescape")
        if kind.lower() != "bearer" or not hmac.compare_digest(given, self.token.encode()):
            raise Unauthenticated("a valid token is needed: send 'Authorization: Bearer TOKEN'")


def is_loopback(host: str) -> bool:
    """Whether only this host can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(file: Path | None) -> str:
    if file is None:
        token, source = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
        if not token:
            return ""
    else:
        try:
            token, source = file.read_text(encoding="utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the token in {file}: {error}") from error
    if len(token) < _LEAST or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"the token in {source} must be {_LEAST} or more characters, no spaces")
    return token
