"""The IoT Edge 1.6 deployment manifest: runtime, our module or two of them, routes, and what the module shall run.

Applying it is left to the operator (`az iot edge set-modules`, REST, the portal); changing the model later is
`publish/deploy.py`. Pure: settings in, a JSON document out.

Rules:
- `createOptions` is a JSON text; over 512 characters it goes on in `createOptions01`, `createOptions02`, ...
- One module loads and serves; with `inferencer` set, `module` only loads and hands over by DLModelOutput ->
  AIMessageInput, and both bind the same host folder.
- The API is published on the device's loopback unless said otherwise, and takes requests from the named networks only.
- No secret of ours is in it; a SAS that the operator gives is, as in any twin.

Source: docs/formats/iothub.md section 7; the shape is `deployment_schema.json` beside this file.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeferry.errors import ConfigInvalid
from edgeferry.model.digest import Digest
from edgeferry.names import require_file_name, require_model_name, require_version
from edgeferry.twin.contract import ClassicDesired, ModelDesired, make_classic_patch, make_desired_patch
from edgeferry.twin.routes import parse_route

STORAGE = "/iotedge/storage"
"""Where every module of the guide sees the shared folder."""
STORE_AND_FORWARD_S = 7200
OPTIONS_PART_CHARS = 512
API_PORT = 8080
EDGE_NETWORKS = ("127.0.0.0/8", "172.16.0.0/12")
"""Loopback and the private range out of which Docker takes its bridges, among them `azure-iot-edge`."""

_IMAGE = re.compile(
    r"[a-z0-9][a-z0-9._-]*(?::\d{1,5})?(?:/[a-z0-9][a-z0-9._-]*)*(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")  # a key of twins: no dots
_HOST_FOLDER = re.compile(r"(?:/[^/:\x00-\x1f\"\\]+)+")
_RUNTIME = re.compile(r"\d+\.\d+(?:\.\d+)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_MICROSOFT = "mcr.microsoft.com/azureiotedge"


@dataclass(frozen=True, slots=True)
class DeploymentSettings:
    """What the operator chooses.

    Attributes:
        image: of the device module, with tag or digest.
        module: its name. inferencer: name of a second module of the same image that serves what the first one loads.
        notify: other modules that take DLModelOutput on their input AIMessageInput.
        storage: host folder, bound to /iotedge/storage; it must belong to the image's user (10001).
        port: on the host; 0 publishes none. publish_on: address of the host. networks: who may ask, as CIDR.
        root: `sha256:<hex>` of the root.json that the device trusts; "" for classic updates only.
        runtime: version of edgeAgent and edgeHub. env: further variables of our module.
    """

    image: str
    module: str = "edgeferry"
    inferencer: str = ""
    notify: tuple[str, ...] = ()
    storage: str = "/srv/edgeferry"
    port: int = API_PORT
    publish_on: str = "127.0.0.1"
    networks: tuple[str, ...] = EDGE_NETWORKS
    root: str = ""
    runtime: str = "1.6"
    env: Mapping[str, str] = field(default_factory=dict)


def make_classic_properties(download_url: str, file_name: str = "", content_md5: str = "") -> dict[str, Any]:
    """Desired properties of the guide's three fields; the file name is taken from the URL where none is given.

    Raises:
        ConfigInvalid: no http(s) URL.
        NameInvalid: no plain file name.
    """
    if not re.match(r"https?://[^/\s]+/", download_url):
        raise ConfigInvalid("expected an http or https URL of the ZIP, found another text")
    name = require_file_name(file_name or download_url.partition("?")[0].rpartition("/")[2])
    patch = make_classic_patch(ClassicDesired(name, download_url, content_md5))
    return {key: value for key, value in patch.items() if value is not None}


def make_signed_properties(*, repo: str, model: str, version: str, digest: str, sas: str = "") -> dict[str, Any]:
    """Desired properties of our own section, for one model.

    Raises:
        ConfigInvalid: one of the four is missing, or the repository is no http(s) URL.
        NameInvalid, ManifestInvalid: a name, version or digest that is none.
    """
    given = {"--repo": repo, "--model": model, "--version": version, "--digest": digest}
    missing = [option for option, value in given.items() if not value]
    if missing:
        raise ConfigInvalid(f"expected --repo, --model, --version and --digest together, missing {', '.join(missing)}")
    if not re.match(r"https?://[^/\s]+", repo):
        raise ConfigInvalid("expected an http or https URL of the published repository, found another text")
    entry = ModelDesired(require_model_name(model), require_version(version), Digest.from_str(digest))
    return make_desired_patch(repo=repo, sas=sas or None, models=(entry,))


def make_deployment(
    settings: DeploymentSettings, desired: Mapping[str, Any] | None = None, *, envelope: bool = False
) -> dict[str, Any]:
    """Makes the manifest.

    Args:
        settings: see there.
        desired: desired properties of the module that loads; None leaves them to `edgeferry deploy`.
        envelope: wrap it as `{"content": ...}`, as `az iot edge deployment create` and REST take it.

    Raises:
        ConfigInvalid: a setting that no manifest can hold; the message names it.
    """
    _check_settings(settings)
    if settings.root and "FileName" in (desired or {}):
        raise ConfigInvalid(
            "expected no pinned root with a classic update: a device that pins one takes signed ones only"
        )
    modules = _make_modules(settings)
    content = {
        "$edgeAgent": {"properties.desired": _make_agent(settings, modules)},
        "$edgeHub": {"properties.desired": _make_hub(settings)},
        **{name: {"properties.desired": {}} for name in modules},
    }
    content[settings.module] = {"properties.desired": dict(desired or {})}
    document = check_deployment({"modulesContent": content})
    return {"content": document} if envelope else document


# --- the runtime ------------------------------------------------------------------------------------------------------
def _make_agent(settings: DeploymentSettings, modules: Mapping[str, Any]) -> dict[str, Any]:
    doors = {f"{port}/tcp": [{"HostPort": str(port)}] for port in (443, 5671, 8883)}
    hub_options = _split_options({"HostConfig": {"PortBindings": doors}})
    return {
        "schemaVersion": "1.1",
        "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25"}},
        "systemModules": {
            "edgeAgent": {
                "type": "docker",
                "settings": {"image": f"{_MICROSOFT}-agent:{settings.runtime}", "createOptions": "{}"},
            },
            "edgeHub": {
                "type": "docker",
                "status": "running",
                "restartPolicy": "always",
                "startupOrder": 0,
                "settings": {"image": f"{_MICROSOFT}-hub:{settings.runtime}", **hub_options},
            },
        },
        "modules": dict(modules),
    }


def _make_hub(settings: DeploymentSettings) -> dict[str, Any]:
    output = f"/messages/modules/{settings.module}/outputs/DLModelOutput"
    consumers = [*([settings.inferencer] if settings.inferencer else []), *settings.notify]
    routes = {"upstream": f"FROM {output} INTO $upstream"}
    for name in consumers:
        routes[f"to_{name}"] = f'FROM {output} INTO BrokeredEndpoint("/modules/{name}/inputs/AIMessageInput")'
    if settings.inferencer:  # it too tells what it switched to
        routes["upstream_inferencer"] = f"FROM /messages/modules/{settings.inferencer}/outputs/* INTO $upstream"
    return {
        "schemaVersion": "1.1",
        "routes": routes,
        "storeAndForwardConfiguration": {"timeToLiveSecs": STORE_AND_FORWARD_S},
    }


# --- our modules ------------------------------------------------------------------------------------------------------
def _make_modules(settings: DeploymentSettings) -> dict[str, Any]:
    if not settings.inferencer:
        return {settings.module: _make_module(settings, "both", 1)}
    return {
        settings.module: _make_module(settings, "loader", 1),
        settings.inferencer: _make_module(settings, "inferencer", 2),
    }


def _make_module(settings: DeploymentSettings, role: str, startup_order: int) -> dict[str, Any]:
    return {
        "version": "1.0",
        "type": "docker",
        "status": "running",
        "restartPolicy": "always",
        "imagePullPolicy": "on-create",
        "startupOrder": startup_order,
        "env": {name: {"value": value} for name, value in settings.env.items()},
        "settings": {"image": settings.image, **_split_options(_make_options(settings, role))},
    }


def _make_options(settings: DeploymentSettings, role: str) -> dict[str, Any]:
    """The body of Docker's container create; the module needs no capability of the kernel at all."""
    serves = role != "loader"
    host: dict[str, Any] = {
        "Binds": [f"{settings.storage}:{STORAGE}"],
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
    }
    options: dict[str, Any] = {"Cmd": _make_command(settings, role), "HostConfig": host}
    if serves and settings.port:
        door = f"{API_PORT}/tcp"
        options["ExposedPorts"] = {door: {}}
        host["PortBindings"] = {door: [{"HostIp": settings.publish_on, "HostPort": str(settings.port)}]}
    return options


def _make_command(settings: DeploymentSettings, role: str) -> list[str]:
    """Arguments of the image's entry point `edgeferry`."""
    words = ["device", "run", "--storage", STORAGE, "--role", role]
    if role != "loader":
        everywhere = "0.0.0.0"  # noqa: S104  # of the container; which networks may ask is said beside it
        words += ["--host", everywhere, "--port", str(API_PORT), "--allow-networks", ",".join(settings.networks)]
    if settings.root and role != "inferencer":
        words += ["--root", settings.root]
    return words


def _split_options(options: Mapping[str, Any]) -> dict[str, str]:
    """`createOptions` and, each full, the parts after it."""
    text = json.dumps(options, separators=(",", ":"))
    parts = [text[start : start + OPTIONS_PART_CHARS] for start in range(0, len(text), OPTIONS_PART_CHARS)]
    return {"createOptions" + (f"{index:02}" if index else ""): part for index, part in enumerate(parts)}


# --- checks -----------------------------------------------------------------------------------------------------------
def check_deployment(document: dict[str, Any]) -> dict[str, Any]:
    """Returns `document` when what a schema cannot see is right: routes parse, create options are JSON.

    Raises:
        ConfigInvalid: the message names the part.
    """
    content = document["modulesContent"]
    agent, hub = content["$edgeAgent"]["properties.desired"], content["$edgeHub"]["properties.desired"]
    for route in hub["routes"].values():
        parse_route(route if isinstance(route, str) else route["route"])
    for name, module in {**agent["systemModules"], **agent["modules"]}.items():
        get_create_options(name, module["settings"])
    return document


def get_create_options(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The create options of a module, put together from their parts as edgeAgent does.

    Raises:
        ConfigInvalid: they are no JSON object, or a part is missing.
    """
    parts = {key: value for key, value in settings.items() if key.startswith("createOptions")}
    wanted = ["createOptions" + (f"{index:02}" if index else "") for index in range(len(parts))]
    if sorted(parts) != wanted:
        raise ConfigInvalid(f"expected createOptions of {name} in parts {wanted!r:.80}, found {sorted(parts)!r:.80}")
    try:
        options = json.loads("".join(parts[key] for key in wanted) or "{}")
    except (TypeError, json.JSONDecodeError) as error:
        raise ConfigInvalid(f"expected createOptions of {name} as a JSON text: {error}") from error
    if not isinstance(options, dict):
        raise ConfigInvalid(f"expected createOptions of {name} as a JSON object, found {type(options).__name__}")
    return options


def _check_settings(settings: DeploymentSettings) -> None:
    names = [settings.module, *([settings.inferencer] if settings.inferencer else []), *settings.notify]
    for name in names:
        _require("a module name", _MODULE, name)
    if len({name.lower() for name in names}) != len(names) or {"edgeagent", "edgehub"} & {n.lower() for n in names}:
        raise ConfigInvalid(f"expected different module names, none of the runtime's, found {names!r:.200}")
    _require("an image reference", _IMAGE, settings.image)
    _require("an absolute host folder without ':'", _HOST_FOLDER, settings.storage)
    _require("a runtime version like 1.6", _RUNTIME, settings.runtime)
    for name in settings.env:
        _require("a variable name", _VARIABLE, name)
    if any(part in (".", "..") for part in settings.storage.split("/")):
        raise ConfigInvalid(f"expected a host folder without '..', found {settings.storage!r:.120}")
    if settings.root:
        Digest.from_str(settings.root)
    _check_doors(settings)


def _check_doors(settings: DeploymentSettings) -> None:
    if not 0 <= settings.port <= 65535:
        raise ConfigInvalid(f"expected a port in 0..65535, found {settings.port}")
    if not settings.networks:
        raise ConfigInvalid("expected at least one network that may ask, found none")
    try:
        ipaddress.ip_address(settings.publish_on)
        for network in settings.networks:
            ipaddress.ip_network(network)
    except ValueError as error:
        raise ConfigInvalid(f"expected an address to publish on, and networks as CIDR: {error}") from error


def _require(what: str, pattern: re.Pattern[str], text: str) -> None:
    if not pattern.fullmatch(text):
        raise ConfigInvalid(f"expected {what}, found {text!r:.120}")
