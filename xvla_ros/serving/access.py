# SPDX-License-Identifier: Apache-2.0
"""Where something of ours listens, and who may ask: this machine alone, or who has a token or a certificate."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from xvla_ros.errors import SetupError


@dataclass(frozen=True)
class Access:
    """Where the server listens, and who may ask.

    Attributes:
        host: address; ``0.0.0.0`` for every one.
        port: 0 takes a free one.
        token: that clients must have; empty for none.
        certificate, key: files of the server's certificate, for TLS.
        client_ca: file of the authority that signs clients' certificates, for TLS.
        insecure: accept requests from everyone who can reach the port.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    insecure: bool = False

    def require_safe(self) -> None:
        """Refuse to listen to strangers unasked.

        Raises:
            SetupError: the address is not this machine's own, and nothing says who may ask.
        """
        if self.client_ca is not None and self.certificate is None:
            raise SetupError(
                "a certificate authority for clients without TLS: give the server a certificate too (--tls-cert, "
                "--tls-key)"
            )
        if self.token or self.client_ca is not None or self.insecure or is_loopback(self.host):
            return
        raise SetupError(
            f"host is {self.host}, which other machines can reach; expected 127.0.0.1, or a token (--token-file), or "
            "client certificates (--tls-client-ca); --insecure accepts requests from everyone who can reach the port"
        )

    def tls(self) -> ssl.SSLContext | None:
        """Return how connections are encrypted, None where they are not.

        Raises:
            SetupError: a file that cannot be used.
        """
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise SetupError(f"TLS: {self.certificate}, {self.key or 'no key'}: {error}") from error
        return context


def is_loopback(host: str) -> bool:
    """Say whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(file: Path) -> str:
    """Return the token in the first line of a file.

    Raises:
        SetupError: there is none, or it could be guessed.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"token file {file}: {error}") from error
    token = lines[0].strip() if lines else ""
    if len(token) < 16:
        raise SetupError(
            f"token file {file} holds a token of {len(token)} characters; expected 16 or more: openssl rand -hex 32"
        )
    return token
