"""TLS contexts of the client: what its first message costs."""

from __future__ import annotations

import ssl

import pytest

from edgeferry.transport.tls import make_tls_context

PADDED_BYTES = 517
"""A record's head and the 512 bytes to which OpenSSL pads."""


def test_the_first_message_is_not_padded() -> None:
    sent = ssl.MemoryBIO()
    tls = make_tls_context(None, system_too=False).wrap_bio(ssl.MemoryBIO(), sent, server_hostname="hub.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    assert 0 < len(sent.read()) < PADDED_BYTES
