"""What a program on tritonclient sees of a server: run in an environment of its own, prints one JSON document.

Usage: python triton.py HOST:PORT DETECTOR_INPUT.npy GAUGE_INPUT.npy PICTURE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def read_error(call: Any, *args: Any, **named: Any) -> list[str]:
    try:
        call(*args, **named)
    except InferenceServerException as error:
        return [str(error.status()), error.message()]
    return ["", "no error"]


def make_input(name: str, values: Any, kind: str, *, binary: bool = True) -> Any:
    made = triton.InferInput(name, list(values.shape), kind)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def read_health(client: Any) -> dict[str, Any]:
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "server": client.get_server_metadata(),
        "model_ready": client.is_model_ready("detector"),
        "version_ready": client.is_model_ready("detector", "1.0.0"),
        "unknown_ready": client.is_model_ready("detector", "9"),
        "metadata": client.get_model_metadata("detector"),
        "metadata_of_version": client.get_model_metadata("detector", "1.1.0"),
        "unknown": read_error(client.get_model_metadata, "detector", "9"),
    }


def infer(client: Any, values: Any) -> dict[str, Any]:
    """The same tensors as bytes and as JSON, both ways, and what is wrong with others."""
    wanted = [triton.InferRequestedOutput(name, binary_data=False) for name in ("boxes", "scores")]
    as_bytes = client.infer("detector", [make_input("image", values, "FP32")])
    as_json = client.infer("detector", [make_input("image", values, "FP32", binary=False)], outputs=wanted)
    named = client.infer("detector", [make_input("image", values, "FP32")], model_version="1.1.0", request_id="42")
    short, double = values[:, :, :10], values.astype(np.float64)
    return {
        "scores": as_bytes.as_numpy("scores").tolist(),
        "same": all(np.array_equal(as_bytes.as_numpy(name), as_json.as_numpy(name)) for name in ("boxes", "scores")),
        "types": {one["name"]: one["datatype"] for one in as_bytes.get_response()["outputs"]},
        "answered": [named.get_response()[key] for key in ("model_name", "model_version", "id")],
        "wrong_shape": read_error(client.infer, "detector", [make_input("image", short, "FP32")]),
        "wrong_type": read_error(client.infer, "detector", [make_input("image", double, "FP64")]),
        "wrong_name": read_error(client.infer, "detector", [make_input("picture", values, "FP32")]),
        "unknown": read_error(client.infer, "detector", [make_input("image", values, "FP32")], model_version="9"),
    }


def classify_as_image_client(client: Any, values: Any) -> list[list[str]]:
    """The steps of Triton's image_client: metadata and configuration, one input, the best classes of one output."""
    metadata, config = client.get_model_metadata("gauge"), client.get_model_config("gauge")
    (one,), (output,) = metadata["inputs"], metadata["outputs"]
    assert len(config["input"]) == len(config["output"]) == 1
    assert output["datatype"] == "FP32"
    assert len(one["shape"]) == 3 + (config["max_batch_size"] > 0)
    assert config["input"][0]["format"] in ("FORMAT_NCHW", "FORMAT_NHWC")
    wanted = triton.InferRequestedOutput(output["name"], class_count=3)
    found = client.infer("gauge", [make_input(one["name"], values, one["datatype"])], outputs=[wanted])
    (best,) = found.as_numpy(output["name"])
    return ["".join(chr(each) for each in text).split(":") for text in best]


def ask_with_a_picture(client: Any, picture: bytes) -> Any:
    found = client.infer("detector", [make_input("picture", np.array([picture], dtype=object), "BYTES")])
    return json.loads(found.as_numpy("answer")[0])


def move_versions(client: Any, values: Any) -> dict[str, Any]:
    """Index, load, infer with that version, unload; and what may not be done."""
    seen: dict[str, Any] = {"before": client.get_model_repository_index()}
    client.load_model("detector", config=json.dumps({"version_policy": {"specific": {"versions": ["1.0.0"]}}}))
    seen["loaded"] = client.get_model_repository_index()
    old = client.infer("detector", [make_input("image", values, "FP32")], model_version="1.0.0")
    now = client.infer("detector", [make_input("image", values, "FP32")])
    seen["versions"] = [found.get_response()["model_version"] for found in (old, now)]
    seen["scores"] = old.as_numpy("scores").tolist()
    seen["broken"] = read_error(client.load_model, "detector@2.0.0")
    seen["unknown"] = read_error(client.load_model, "nobody")
    seen["files"] = read_error(client.load_model, "detector", config="{}", files={"file:1/model.onnx": b"x"})
    client.unload_model("detector")
    seen["unloaded"] = client.get_model_repository_index()
    seen["active"] = read_error(client.unload_model, "detector")
    return seen


def main() -> None:
    url, detector, gauge, picture = sys.argv[1:]
    values = np.load(detector)
    with triton.InferenceServerClient(url, network_timeout=60.0, connection_timeout=60.0) as client:
        moved = move_versions(client, values)
        client.load_model("detector@1.0.0")
        seen = {
            "health": read_health(client),
            "infer": infer(client, values),
            "classes": classify_as_image_client(client, np.load(gauge)),
            "picture": ask_with_a_picture(client, Path(picture).read_bytes()),
            "moved": moved,
        }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
