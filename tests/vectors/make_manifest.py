"""Writes the vectors of docs/formats/manifest.md: `python tests/vectors/make_manifest.py`. What is committed counts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "manifest"
DIGEST = "sha256:" + "0123456789abcdef" * 4
Json = dict[str, Any]


def make_minimal() -> Json:
    """The least that a manifest may say."""
    stage = {
        "file": "model.onnx",
        "task": "classification",
        "input": {"width": 32, "height": 32, "layout": "nchw", "dtype": "float32"},
        "answer": {"family": "classification"},
    }
    source = {"kind": "full", "codec": "none", "blob": DIGEST, "size": 10}
    entry = {"path": "model.onnx", "sha256": DIGEST, "md5": "wPJ4M5M4BVAkuk6fdJYODg==", "size": 10, "sources": [source]}
    return {"schema": 1, "model": "gauge", "version": "1.0.0", "spec": {"stages": [stage]}, "files": [entry]}


def make_full() -> Json:
    """Everything that a manifest may say."""
    plain = make_minimal()
    patch = {
        "kind": "patch",
        "codec": "efd1",
        "blob": DIGEST,
        "size": 3,
        "memory": 5,
        "base": DIGEST,
        "chunks": DIGEST,
    }
    plain["files"][0]["sources"].append(patch)
    labels = {"path": "labels.txt", "sha256": DIGEST, "md5": "wPJ4M5M4BVAkuk6fdJYODg==", "size": 4}
    plain["files"].append(labels)
    plain["spec"]["stages"][0]["labels"] = {"file": "labels.txt", "offset": 1}
    plain["spec"]["stages"][0]["thresholds"] = {"score": 0.25}
    truth = [{"label": "low", "box": [0.1, 0.2, 0.3, 0.4]}, {"label": "high"}]
    plain["golden"] = [
        {"input": DIGEST, "size": 9, "truth": truth, "tolerance": {"iou": 0.4, "share": 1.0}},
        {"input": DIGEST, "size": 8, "truth": []},
    ]
    return plain | {"slim": {"of": DIGEST}, "min_runtime": "0.1.0", "created": 1_795_000_000}


def set_path(*path: str | int, value: Any) -> Callable[[Json], None]:
    """A change of one field; None removes it."""

    def change(plain: Json) -> None:
        target: Any = plain
        for step in path[:-1]:
            target = target[step]
        if value is None:
            del target[path[-1]]
        else:
            target[path[-1]] = value

    return change


BAD: dict[str, Callable[[Json], None]] = {
    "newer-schema": set_path("schema", value=2),
    "no-files": set_path("files", value=[]),
    "no-stages": set_path("spec", "stages", value=[]),
    "unknown-field": set_path("scripts", value=["install.sh"]),
    "model-name-with-a-path": set_path("model", value="../gauge"),
    "version-with-dots": set_path("version", value="1..0"),
    "file-with-a-folder": set_path("files", 0, "path", value="a/model.onnx"),
    "file-called-manifest": set_path("files", 1, "path", value="manifest.json"),
    "two-files-of-one-name": set_path("files", 1, "path", value="model.onnx"),
    "digest-too-short": set_path("files", 0, "sha256", value="sha256:1234"),
    "digest-in-capitals": set_path("files", 0, "sha256", value=DIGEST.upper().replace("SHA256", "sha256")),
    "negative-size": set_path("files", 0, "size", value=-1),
    "memory-without-bound": set_path("files", 0, "sources", 0, "memory", value=1 << 40),
    "patch-without-base": set_path("files", 0, "sources", 1, "base", value=None),
    "full-with-a-base": set_path("files", 0, "sources", 0, "base", value=DIGEST),
    "unknown-kind-of-source": set_path("files", 0, "sources", 0, "kind", value="script"),
    "stage-of-a-missing-file": set_path("spec", "stages", 0, "file", value="other.onnx"),
    "labels-of-a-missing-file": set_path("spec", "stages", 0, "labels", "file", value="other.txt"),
    "tolerance-of-zero": set_path("golden", 0, "tolerance", "share", value=0.0),
    "box-of-three-sides": set_path("golden", 0, "truth", 0, "box", value=[0.1, 0.2, 0.3]),
    "spec-of-no-pixels": set_path("spec", "stages", 0, "input", "width", value=0),
    "text-for-a-number": set_path("created", value="today"),
}


def to_bytes(plain: Json) -> bytes:
    """Canonical JSON."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def main() -> None:
    """Good vectors, and one bad one for each rule."""
    FOLDER.mkdir(exist_ok=True)
    vectors = {"good-minimal": to_bytes(make_minimal()), "good-full": to_bytes(make_full())}
    later = copy.deepcopy(make_full())
    set_path("files", 0, "sources", 1, "codec", value="of-a-later-release")(later)
    vectors["good-codec-of-a-later-release"] = to_bytes(later)
    for name, change in BAD.items():
        plain = copy.deepcopy(make_full())
        change(plain)
        vectors[f"bad-{name}"] = to_bytes(plain)
    vectors |= {"bad-cut": vectors["good-full"][:-1], "bad-no-json": b"manifest", "bad-deep": b"[" * 100_000}
    for name, data in vectors.items():
        (FOLDER / f"{name}.json").write_bytes(data)


if __name__ == "__main__":
    main()
