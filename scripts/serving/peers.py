"""The servers that are measured beside edgeferry: in which environment, started how, asked how.

Rules:
- All answer with the same pipeline (`pipeline.py`); each gets the picture in the form that it takes best.
- Each may answer two pictures at once, as the limit and edgeferry do: two inferences share caches and cost more each.
- A peer whose environment cannot be made, or that does not start, is told as missing, with the reason.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .load import Target

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_CONFIG = """name: "served"
backend: "python"
input [{ name: "picture" data_type: TYPE_UINT8 dims: [-1] }]
output [{ name: "found" data_type: TYPE_STRING dims: [1] }]
instance_group [{ kind: KIND_CPU count: 2 }]
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer runs: its environment, a folder of its own, its port."""

    environment: Path
    folder: Path
    port: int

    @property
    def packages(self) -> Path:
        """Where its environment has its packages."""
        return next(self.environment.glob("lib/python3.*/site-packages"))


@dataclass(frozen=True, slots=True)
class Peer:
    """A server: its name, its environment, whether it can change a model while it runs; `start` writes what it needs
    and returns its command and variables, `ask` makes the request of a picture."""

    name: str
    environment: str
    start: Callable[[Place], tuple[Sequence[str | Path], dict[str, str]]]
    ask: Callable[[str, bytes], Target]
    switches: bool = False
    is_guide: bool = False


def ask_raw(url: str, picture: bytes) -> Target:
    """The picture as the body."""
    return Target(f"{url}/score", picture)


def _ask_form(url: str, picture: bytes) -> Target:
    head = (
        b'--EDGE\r\nContent-Disposition: form-data; name="image"; filename="p.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    return Target(f"{url}/score", head + picture + b"\r\n--EDGE--\r\n", "multipart/form-data; boundary=EDGE")


def _ask_base64(url: str, picture: bytes) -> Target:
    data = [base64.b64encode(picture).decode()]
    tensor = {"name": "picture", "shape": [1, 1], "datatype": "BYTES", "data": data}
    tensor["parameters"] = {"content_type": "base64"}
    return Target(f"{url}/v2/models/served/infer", json.dumps({"inputs": [tensor]}).encode(), "application/json")


def _ask_binary(url: str, picture: bytes) -> Target:
    size = len(picture)
    tensor = {"name": "picture", "shape": [size], "datatype": "UINT8", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = (("Inference-Header-Content-Length", str(len(head))),)
    return Target(f"{url}/v2/models/served/infer", head + picture, "application/octet-stream", headers)


def _start_flask(place: Place) -> tuple[Sequence[str | Path], dict[str, str]]:
    return [place.environment / "bin" / "python", HERE / "peer_flask.py"], {"PER_REQUEST": "1"}


def _start_gunicorn(place: Place) -> tuple[Sequence[str | Path], dict[str, str]]:
    options = ["-w", "1", "--threads", "4", "-b", f"127.0.0.1:{place.port}", "peer_flask:app"]
    return [place.environment / "bin" / "gunicorn", *options], {}


def _start_uvicorn(module: str) -> Callable[[Place], tuple[Sequence[str | Path], dict[str, str]]]:
    def start(place: Place) -> tuple[Sequence[str | Path], dict[str, str]]:
        options = ["--port", str(place.port), "--log-level", "warning", "--no-access-log", f"{module}:app"]
        return [place.environment / "bin" / "uvicorn", *options], {}

    return start


def _start_litserve(place: Place) -> tuple[Sequence[str | Path], dict[str, str]]:
    return [place.environment / "bin" / "python", HERE / "peer_litserve.py"], {}


def _start_bentoml(place: Place) -> tuple[Sequence[str | Path], dict[str, str]]:
    options = ["serve", "peer_bentoml:Served", "-p", str(place.port), "--host", "127.0.0.1"]
    variables = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(place.folder)}
    return [place.environment / "bin" / "bentoml", *options], variables


def _start_mlserver(place: Place) -> tuple[Sequence[str | Path], dict[str, str]]:
    ports = {"http_port": place.port, "grpc_port": place.port + 1, "metrics_port": place.port + 2}
    settings = {"host": "127.0.0.1", **ports, "parallel_workers": 2, "debug": False}
    model = {"name": "served", "implementation": "peer_mlserver.Served", "parameters": {"version": "1"}}
    (place.folder / "served").mkdir()
    (place.folder / "settings.json").write_text(json.dumps(settings))
    (place.folder / "served" / "model-settings.json").write_text(json.dumps(model))
    return [place.environment / "bin" / "mlserver", "start", place.folder], {}


def _start_triton(place: Place) -> tuple[Sequence[str | Path], dict[str, str]]:
    server = place.packages / "pytriton" / "tritonserver"
    version = place.packages.parent.name.removeprefix("python")
    backend, model = place.folder / "backends" / "python", place.folder / "models" / "served" / "1"
    shutil.copytree(server / "backends" / "python", backend)
    shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    model.mkdir(parents=True)
    shutil.copy(HERE / "peer_triton.py", model / "model.py")
    (model.parent / "config.pbtxt").write_text(_CONFIG)
    libraries = [place.packages / "nvidia_pytriton.libs", server / "external_libs"]
    variables = {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PEER_PATH": os.pathsep.join(map(str, [HERE, ROOT / "src", place.packages])),
        "PYTHONPATH": str(place.packages),
    }
    options = [
        f"--model-repository={model.parents[1]}",
        f"--backend-directory={backend.parent}",
        *("--http-address=127.0.0.1", f"--http-port={place.port}", "--allow-grpc=false", "--allow-metrics=false"),
        *("--model-control-mode=explicit", "--load-model=served", "--disable-auto-complete-config"),
    ]
    return [server / "bin" / "tritonserver", *options], variables


RAW = Peer("bare ASGI, uvicorn", "serve-web", _start_uvicorn("peer_raw"), ask_raw)
PEERS = (
    Peer("guide style: Flask, a session per request", "serve-web", _start_flask, ask_raw, is_guide=True),
    Peer("Flask, gunicorn, loaded once", "serve-web", _start_gunicorn, ask_raw),
    Peer("FastAPI, uvicorn", "serve-web", _start_uvicorn("peer_fastapi"), ask_raw),
    RAW,
    Peer("MLServer", "serve-mlserver", _start_mlserver, _ask_base64, switches=True),
    Peer("Triton, Python back end", "serve-triton", _start_triton, _ask_binary, switches=True),
    Peer("LitServe", "serve-litserve", _start_litserve, _ask_form),
    Peer("BentoML", "serve-bentoml", _start_bentoml, ask_raw),
)
