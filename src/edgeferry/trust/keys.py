"""The operator's key folder: one private key per role, and the root that the operator trusts.

What is signed with them is `signer.py`'s.

Rules:
- It lies outside the published repository. `<role>.pem` holds an Ed25519 key (0600, PKCS #8); or `<role>.uri` holds a
  securesystemslib signer URI (a key service, an HSM). `root.json` is the root as this operator knows it.
- A key is chosen by the public key that the metadata names: a wrong one is found before anything is signed.
- Key files that others can read are refused.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.exceptions import Error as SecuresystemslibError
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from edgeferry.errors import ConfigInvalid, StorageFailed

KEY_MAX_BYTES = 16 << 10
ROOT_MAX_BYTES = 64 << 10
NEXT = ".next"
"""Suffix of a key that is made but not yet in the metadata: a rotation that was cut is simply run again."""


class KeyFolder:
    """Makes and loads signers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make_signer(self, role: str) -> Signer:
        """Makes a key for a new role, or takes the one that lies ready for it."""
        path = self._get_path(role)
        return self._read_pem(path) if path.exists() else self._write_new(path)

    def make_next_signer(self, role: str) -> Signer:
        """Makes the key that shall replace the role's present one; `adopt_next` makes it the present one."""
        path = self._get_path(role + NEXT)
        return self._read_pem(path) if path.exists() else self._write_new(path)

    def adopt_next(self, role: str) -> None:
        """Puts the next key in the place of the present one, which is removed."""
        self._get_path(role + NEXT).replace(self._get_path(role))

    def load_signer(self, role: str, public_key: Key) -> Signer:
        """The signer whose public key the metadata names.

        Raises:
            ConfigInvalid: there is no such key here, or others can read it.
        """
        uri = self.folder / f"{role}.uri"
        if uri.is_file():
            return _open_uri(uri, public_key)
        for name in (role, role + NEXT):
            path = self._get_path(name)
            if path.is_file():
                signer = self._read_pem(path)
                if signer.public_key.keyid == public_key.keyid:
                    return signer
        raise ConfigInvalid(f"no key of role {role!r} with id {public_key.keyid[:8]} in {self.folder}", role=role)

    def has_key(self, role: str) -> bool:
        """Whether this folder can sign for the role, as far as names tell."""
        return self._get_path(role).is_file() or (self.folder / f"{role}.uri").is_file()

    def read_root(self) -> bytes:
        """The root that this operator trusts; raises ConfigInvalid where there is none."""
        path = self.folder / "root.json"
        if not path.is_file():
            raise ConfigInvalid(f"no root.json in {self.folder}: run `edgeferry repo init`, or copy it from who did")
        return path.read_bytes()[:ROOT_MAX_BYTES]

    def write_root(self, data: bytes) -> None:
        """Keeps the root beside the keys."""
        self._make_folder()
        temp = self.folder / "root.json.new"
        temp.write_bytes(data)
        temp.replace(self.folder / "root.json")

    def _get_path(self, role: str) -> Path:
        return self.folder / f"{role}.pem"

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageFailed(f"cannot make the key folder {self.folder}: {error.strerror}") from error

    def _write_new(self, path: Path) -> Signer:
        signer = CryptoSigner.generate_ed25519()
        self._make_folder()
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(signer.private_bytes)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageFailed(f"cannot write the key {path.name}: {error.strerror}") from error
        return signer

    def _read_pem(self, path: Path) -> Signer:
        if path.stat().st_mode & 0o077:
            raise ConfigInvalid(f"others can read the key {path}: run chmod 600 on it")
        try:
            private_key = load_pem_private_key(path.read_bytes()[:KEY_MAX_BYTES], None)
            return CryptoSigner(private_key)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigInvalid(f"expected an unencrypted PKCS #8 key in {path}") from error


def _open_uri(path: Path, public_key: Key) -> Signer:
    uri = path.read_text("utf-8").strip()
    try:
        if not isinstance(public_key, SSlibKey):
            raise ConfigInvalid(f"the key of {path.name} is of a kind that no signer URI serves")
        return Signer.from_priv_key_uri(uri, public_key)
    except (ValueError, OSError, SecuresystemslibError) as error:
        raise ConfigInvalid(f"the signer URI in {path.name} does not open: {type(error).__name__}") from error
