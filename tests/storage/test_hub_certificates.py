"""The hub's own certificates: made once, renewed for a new name or before they end, keys for the owner only."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography import x509

from edgeferry.errors import ConfigInvalid, StorageFailed
from edgeferry.storage.hub_certificates import (
    CertificateFiles,
    ensure_certificates,
    require_operator_files,
    share_authority,
)

NOW = time.time()
YEAR_S = 365 * 86400.0


def read_names(path: Path) -> set[str]:
    leaf = x509.load_pem_x509_certificates(path.read_bytes())[0]
    return {str(name.value) for name in leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value}


def test_certificates_cover_names_and_addresses_and_stay(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path / "tls", ["localhost", "127.0.0.1", "::1"], now=NOW)
    assert read_names(files.chain) == {"localhost", "127.0.0.1", "::1"}
    kept = {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()}
    ensure_certificates(tmp_path / "tls", ["localhost"], now=NOW + YEAR_S)
    assert {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()} == kept
    assert {path.name for path in (tmp_path / "tls").iterdir() if path.stat().st_mode & 0o077} == {
        "ca.pem",
        "server.pem",
    }


@pytest.mark.parametrize(("names", "later_s"), [(["localhost", "hub.example"], 0.0), (["localhost"], 4.8 * YEAR_S)])
def test_a_new_name_or_an_end_in_sight_makes_a_new_leaf_of_the_same_authority(
    tmp_path: Path, names: list[str], later_s: float
) -> None:
    files = ensure_certificates(tmp_path, ["localhost"], now=NOW)
    authority, chain = files.authority.read_bytes(), files.chain.read_bytes()
    ensure_certificates(tmp_path, names, now=NOW + later_s)
    assert files.authority.read_bytes() == authority and files.chain.read_bytes() != chain
    assert read_names(files.chain) == set(names)
    [leaf], [issuer] = (x509.load_pem_x509_certificates(path.read_bytes()) for path in (files.chain, files.authority))
    leaf.verify_directly_issued_by(issuer)


def test_a_lost_authority_key_is_not_replaced_silently(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["localhost"], now=NOW)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(StorageFailed, match="without its key"):
        ensure_certificates(tmp_path, ["localhost"], now=NOW)


def test_half_written_files_and_bad_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid):
        ensure_certificates(tmp_path / "a", ["hübsch"], now=NOW)
    ensure_certificates(tmp_path / "b", ["localhost"], now=NOW)
    (tmp_path / "b" / "server.pem").write_bytes(b"rubbish")
    with pytest.raises(StorageFailed):
        ensure_certificates(tmp_path / "b", ["localhost"], now=NOW)


def test_hubs_of_one_fleet_share_the_authority_of_the_first(tmp_path: Path) -> None:
    shared = share_authority(tmp_path / "one", None, now=NOW)
    assert share_authority(tmp_path / "one", None, now=NOW) == shared
    assert share_authority(tmp_path / "two", shared, now=NOW) == shared
    assert (tmp_path / "two" / "ca.key").stat().st_mode & 0o777 == 0o600
    files = ensure_certificates(tmp_path / "two", ["localhost"], now=NOW)
    assert files.authority.read_bytes() == (tmp_path / "one" / "ca.pem").read_bytes()
    share_authority(tmp_path / "other", None, now=NOW)
    with pytest.raises(StorageFailed, match="not the fleet's"):
        share_authority(tmp_path / "other", shared, now=NOW)


@pytest.mark.parametrize(
    ("names", "asked", "found"),
    [
        (["hub.example"], ["hub.example"], None),
        (["hub.example"], ["HUB.example"], None),
        (["*.example"], ["hub.example"], None),
        (["*.example"], ["a.hub.example"], "not for a.hub.example"),
        (["hub.example"], ["hub.example", "10.0.0.7"], "not for 10.0.0.7"),
        (["10.0.0.7"], ["10.0.0.7"], None),
    ],
)
def test_the_operators_certificate_must_be_for_every_name_of_the_hub(
    tmp_path: Path, names: list[str], asked: list[str], found: str | None
) -> None:
    files = ensure_certificates(tmp_path, names, now=NOW)
    if found is None:
        assert require_operator_files(files, asked, now=NOW) == files
    else:
        with pytest.raises(ConfigInvalid, match=found):
            require_operator_files(files, asked, now=NOW)


def test_an_operators_certificate_that_is_over_or_has_another_key_is_refused(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path / "a", ["localhost"], now=NOW)
    other = ensure_certificates(tmp_path / "b", ["localhost"], now=NOW)
    with pytest.raises(ConfigInvalid, match="ended on"):
        require_operator_files(files, ["localhost"], now=NOW + 10 * 365 * 86400)
    with pytest.raises(ConfigInvalid, match="the key that belongs"):
        require_operator_files(CertificateFiles(files.authority, files.chain, other.key), ["localhost"], now=NOW)
    with pytest.raises(ConfigInvalid, match="PEM"):
        require_operator_files(CertificateFiles(files.authority, files.key, files.chain), ["localhost"], now=NOW)


def test_what_a_kill_left_of_a_key_is_dropped_at_the_next_start(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["localhost"], now=NOW)
    left = tmp_path / ".edgeferry-abcdefgh"
    left.write_text("-----BEGIN PRIVATE KEY-----")
    ensure_certificates(tmp_path, ["localhost"], now=NOW)
    assert not left.exists() and (tmp_path / "ca.key").exists()
