"""The hub's own certificate authority and server certificate, made at the first start and kept in its folder; or the
operator's, checked.

TLS contexts are built where sockets are; this file makes, keeps and checks PEM files.

Rules:
- EC P-256. The authority lives 20 years; the server certificate is made anew when it lacks a name or has 90 days left.
- Keys are 0600. The authority's certificate (`ca.pem`) is what devices trust: it is never replaced.
- Certificates are valid from a month ago: clocks of devices are late more often than early.
- Hubs that serve one fleet have one authority: the first one shares it through their database, the others take it.
- The operator's files are never written, and refused at the start when no client could accept them.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgeferry.errors import ConfigInvalid, StorageFailed
from edgeferry.storage.files import TEMP_PREFIX, make_folder, read_bounded, write_atomically

CA_LIFE = timedelta(days=20 * 365)
LEAF_LIFE = timedelta(days=5 * 365)
RENEW_BEFORE = timedelta(days=90)
BACKDATED = timedelta(days=30)
PEM_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where the PEM files lie; `chain` and `key` are the server's, `authority` is for the clients."""

    authority: Path
    chain: Path
    key: Path


@dataclass(frozen=True, slots=True)
class _Pair:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def ensure_certificates(folder: Path, names: Sequence[str], *, now: float) -> CertificateFiles:
    """Makes what is missing below `folder` so that the server certificate covers `names` (host names and addresses).

    Raises:
        ConfigInvalid: a name can stand in no certificate.
        StorageFailed: the folder cannot be used, or a file in it is not what was written there.
    """
    make_folder(folder, mode=0o700)
    _drop_unfinished(folder)
    files = CertificateFiles(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    wanted, today = {_make_name(name) for name in names}, datetime.fromtimestamp(now, UTC)
    authority = _read_pair(files.authority, folder / "ca.key")
    if authority is None and files.authority.exists():
        raise StorageFailed(f"{files.authority} stands without its key: devices trust it, so no other is made")
    authority = authority or _write_authority(folder, today)
    leaf = _read_pair(files.chain, files.key)
    if leaf is None or not _is_good(leaf.certificate, authority.certificate, wanted, today):
        _write_leaf(files, authority, wanted, today)
    return files


def share_authority(folder: Path, shared: tuple[str, str] | None, *, now: float) -> tuple[str, str]:
    """One authority for all hubs of a fleet: takes the `shared` one (certificate and key, PEM) into `folder`; with None
    returns the folder's own, made when missing.

    Raises:
        StorageFailed: the folder has another authority, which devices may trust.
    """
    make_folder(folder, mode=0o700)
    paths = folder / "ca.pem", folder / "ca.key"
    if shared is None and _read_pair(*paths) is None:
        _write_authority(folder, datetime.fromtimestamp(now, UTC))
    if shared is not None and not paths[0].exists():
        write_atomically(paths[1], shared[1].encode("ascii"), mode=0o600)
        write_atomically(paths[0], shared[0].encode("ascii"))
    own = read_bounded(paths[0], PEM_MAX_BYTES).decode("ascii"), read_bounded(paths[1], PEM_MAX_BYTES).decode("ascii")
    if shared is not None and own != shared:
        raise StorageFailed(f"the authority in {folder} is not the fleet's: move that folder away to take the fleet's")
    return own


def require_operator_files(files: CertificateFiles, names: Sequence[str], *, now: float) -> CertificateFiles:
    """The operator's own certificate, chain and key, checked.

    Raises:
        ConfigInvalid: not PEM, not a pair, over, or not for one of `names`; the message says which.
        StorageFailed: a file cannot be read.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.chain, files.key, password="")
        leaf = x509.load_pem_x509_certificates(read_bounded(files.chain, PEM_MAX_BYTES))[0]
        x509.load_pem_x509_certificates(read_bounded(files.authority, PEM_MAX_BYTES))
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigInvalid("expected the operator's certificates as PEM, and the key that belongs to them") from error
    if leaf.not_valid_after_utc <= datetime.fromtimestamp(now, UTC):
        raise ConfigInvalid(f"the certificate in {files.chain} ended on {leaf.not_valid_after_utc:%Y-%m-%d}")
    missing = [name for name in names if not _covers(leaf, _make_name(name))]
    if missing:
        raise ConfigInvalid(
            f"the certificate in {files.chain} is not for {', '.join(missing)}: no client would accept it"
        )
    return files


def _covers(leaf: x509.Certificate, name: x509.GeneralName) -> bool:
    """Whether a certificate names a host or address, a wildcard of the host's own domain included (RFC 6125)."""
    try:
        present = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    if not isinstance(name, x509.DNSName):
        return name in present
    host = name.value.lower()
    known = [one.lower() for one in present.get_values_for_type(x509.DNSName)]
    return host in known or f"*.{host.partition('.')[2]}" in known


def _drop_unfinished(folder: Path) -> None:
    """A kill in the middle of a write leaves a temporary file, which may hold a key."""
    for left in folder.glob(f"{TEMP_PREFIX}*"):
        left.unlink(missing_ok=True)


def _write_authority(folder: Path, today: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edgeferry hub CA {today:%Y-%m-%d}")])
    builder = _start(name, name, key.public_key(), today, CA_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_make_usage(signs_certificates=True), critical=True)
    pair = _Pair(builder.sign(key, hashes.SHA256()), key)
    write_atomically(folder / "ca.key", _key_to_pem(key), mode=0o600)
    write_atomically(folder / "ca.pem", _to_pem(pair.certificate))
    return pair


def _write_leaf(files: CertificateFiles, authority: _Pair, names: set[x509.GeneralName], today: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgeferry hub")])
    builder = _start(subject, authority.certificate.subject, key.public_key(), today, LEAF_LIFE)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_make_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(sorted(names, key=repr)), critical=False)
    certificate = builder.sign(authority.key, hashes.SHA256())
    write_atomically(files.key, _key_to_pem(key), mode=0o600)
    # who trusts the authority has it (RFC 8446 section 4.4.2): sent along, it costs each connection 410 bytes
    write_atomically(files.chain, _to_pem(certificate))


def _start(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, today: datetime, life: timedelta
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(issuer, subject, public_key, x509.random_serial_number())
    builder = builder.not_valid_before(today - BACKDATED).not_valid_after(today + life)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)


def _make_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _make_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise ConfigInvalid(f"expected a host name or address, found {name!r:.120}") from error


def _is_good(
    leaf: x509.Certificate, authority: x509.Certificate, names: set[x509.GeneralName], today: datetime
) -> bool:
    present = set(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    return names <= present and leaf.issuer == authority.subject and leaf.not_valid_after_utc - today > RENEW_BEFORE


def _read_pair(certificate: Path, key: Path) -> _Pair | None:
    """A certificate with its key; None when either is missing, or when they belong to two different writes."""
    if not (certificate.is_file() and key.is_file()):
        return None
    try:
        read = x509.load_pem_x509_certificates(read_bounded(certificate, PEM_MAX_BYTES))[0]
        secret = serialization.load_pem_private_key(read_bounded(key, PEM_MAX_BYTES), None)
    except ValueError as error:
        raise StorageFailed(f"{certificate.name} or {key.name} in {certificate.parent} is not PEM") from error
    if not isinstance(secret, ec.EllipticCurvePrivateKey):
        raise StorageFailed(f"expected an EC key in {key.name}")
    return _Pair(read, secret) if read.public_key() == secret.public_key() else None


def _to_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
