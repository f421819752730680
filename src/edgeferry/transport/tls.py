"""TLS contexts of our own: what the environment says (REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE) does not count.

Rules:
- TLS 1.2 at least, host names checked, always.
- ClientHello goes out as long as it is: OpenSSL pads one of 256 to 511 bytes to 512, for load balancers that broke on
  them in 2013 (RFC 7685), and a thin link pays for it at every connection.
"""

from __future__ import annotations

import ssl

from edgeferry.errors import ConfigInvalid

_OP_TLSEXT_PADDING = 0x10
"""SSL_OP_TLSEXT_PADDING of openssl/ssl.h; Python has no name for it."""


def make_tls_context(ca_pem: bytes | None, *, system_too: bool) -> ssl.SSLContext:
    """A client's context.

    Args:
        ca_pem: certificates to trust, PEM; None: only the system's.
        system_too: trust the system's authorities beside `ca_pem` (downloads); False: `ca_pem` alone (one's own hub).

    Raises:
        ConfigInvalid: `ca_pem` holds no readable certificate.
    """
    try:
        text = ca_pem.decode("ascii") if ca_pem else None
        context = ssl.create_default_context(cadata=text)
    except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigInvalid("expected PEM certificates to trust, found something else") from error
    if text and system_too:
        context.load_default_certs()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options &= ~_OP_TLSEXT_PADDING
    return context
