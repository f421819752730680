"""The deployment manifest: held against our own schema, and for what no schema sees, against the parts that use it."""

from __future__ import annotations

import copy
import importlib.resources
import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.cli.deployment_command import deployment
from edgeferry.cli.device_commands import device_group
from edgeferry.config import read_device_config
from edgeferry.errors import ConfigInvalid, EdgeferryError, ManifestInvalid, NameInvalid
from edgeferry.publish.deployment import (
    DeploymentSettings,
    check_deployment,
    get_create_options,
    make_classic_properties,
    make_deployment,
    make_signed_properties,
)
from edgeferry.serve.access import make_access
from edgeferry.twin.contract import read_desired
from edgeferry.twin.document import check_values
from edgeferry.twin.routes import parse_route

SCHEMA = json.loads((importlib.resources.files("edgeferry.publish") / "deployment_schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
IMAGE = "registry.example:5000/edge/edgeferry:0.1.0"
DIGEST = "sha256:" + "ab" * 32
URL = "https://x.blob.core.windows.net/models/tensorflow001.zip?sv=2026-10-06&sig=c2lnbmF0dXJl%3D"
SETTINGS = DeploymentSettings(image=IMAGE)
LONG = DeploymentSettings(image=IMAGE, storage="/srv/" + "f" * 200)
Json = dict[str, Any]


def _get_agent(document: Json) -> Json:
    return dict(document["modulesContent"]["$edgeAgent"]["properties.desired"])


def _get_options(document: Json, module: str = "edgeferry") -> Json:
    return get_create_options(module, _get_agent(document)["modules"][module]["settings"])


def _get_routes(document: Json) -> Json:
    return dict(document["modulesContent"]["$edgeHub"]["properties.desired"]["routes"])


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("inferencer", ["", "infer"])
@pytest.mark.parametrize("root", ["", DIGEST])
def test_every_manifest_fits_the_schema(inferencer: str, root: str) -> None:
    document = make_deployment(DeploymentSettings(image=IMAGE, inferencer=inferencer, root=root))
    VALIDATOR.validate(document)
    VALIDATOR.validate(make_deployment(SETTINGS, envelope=True)["content"])


def test_the_storage_is_bound_and_the_port_published() -> None:
    host = _get_options(make_deployment(SETTINGS))["HostConfig"]
    assert host["Binds"] == ["/srv/edgeferry:/iotedge/storage"]
    assert host["PortBindings"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]}
    assert host["CapDrop"] == ["ALL"]
    assert "PortBindings" not in _get_options(make_deployment(DeploymentSettings(image=IMAGE, port=0)))["HostConfig"]


def test_options_longer_than_512_characters_go_on_in_parts() -> None:
    settings_of_module = _get_agent(make_deployment(LONG))["modules"]["edgeferry"]["settings"]
    assert set(settings_of_module) == {"image", "createOptions", "createOptions01"}
    assert len(settings_of_module["createOptions"]) == 512
    with pytest.raises(json.JSONDecodeError):
        json.loads(settings_of_module["createOptions"])


@settings(max_examples=30)
@given(st.integers(1, 3_000))
def test_options_of_any_length_come_back_from_their_parts(length: int) -> None:
    folder = "/" + "f" * length
    document = make_deployment(DeploymentSettings(image=IMAGE, storage=folder))
    VALIDATOR.validate(document)
    assert _get_options(document)["HostConfig"]["Binds"] == [f"{folder}:/iotedge/storage"]


def test_messages_go_upstream_and_to_every_consumer() -> None:
    document = make_deployment(DeploymentSettings(image=IMAGE, module="ferry", inferencer="infer", notify=("camera",)))
    routes = {name: parse_route(text) for name, text in _get_routes(document).items()}
    assert {route.sink for route in routes.values()} == {
        None, ("infer", "AIMessageInput"), ("camera", "AIMessageInput"),
    }  # fmt: skip
    assert all(route.takes("ferry", "DLModelOutput") for name, route in routes.items() if name != "upstream_inferencer")
    assert not any(route.takes("camera", "DLModelOutput") for route in routes.values())


def test_two_modules_share_the_storage_and_only_one_serves() -> None:
    document = make_deployment(DeploymentSettings(image=IMAGE, inferencer="infer"), make_classic_properties(URL))
    loader, server = _get_options(document), _get_options(document, "infer")
    assert loader["HostConfig"]["Binds"] == server["HostConfig"]["Binds"]
    assert "ExposedPorts" not in loader and "8080/tcp" in server["ExposedPorts"]
    modules = _get_agent(document)["modules"]
    assert modules["edgeferry"]["startupOrder"] < modules["infer"]["startupOrder"]
    content = document["modulesContent"]
    assert content["infer"] == {"properties.desired": {}}
    assert content["edgeferry"]["properties.desired"]["FileName"] == "tensorflow001.zip"


@pytest.mark.parametrize("inferencer", ["", "infer"])
def test_the_commands_arguments_are_those_of_device_run(inferencer: str) -> None:
    """The container's arguments go through the real command's parser and the real check of who may call."""
    given_settings = DeploymentSettings(image=IMAGE, inferencer=inferencer, root=DIGEST)
    document = make_deployment(given_settings)
    for name in _get_agent(document)["modules"]:
        device, run, *words = _get_options(document, name)["Cmd"]
        assert (device, run) == ("device", "run")
        command = device_group.commands["run"]
        told = command.make_context("run", list(words)).params
        networks = told["allow_networks"]
        overrides = {key: told[key] for key in ("storage", "role", "host", "port", "root")}
        config = read_device_config(None, {}, **overrides)
        assert config.storage == "/iotedge/storage"
        assert config.role == ("inferencer" if name == "infer" else "loader" if inferencer else "both")
        assert config.root == ("" if name == "infer" else DIGEST)
        if networks:
            make_access(allow_networks=networks.split(",")).require_guarded(config.host)
        else:
            assert config.host == "127.0.0.1"


def test_classic_properties_are_what_a_device_reads() -> None:
    document = make_deployment(SETTINGS, make_classic_properties(URL, content_md5="wPJ4M5M4BVAkuk6fdJYODg=="))
    desired = document["modulesContent"]["edgeferry"]["properties.desired"]
    found = read_desired(desired)
    assert not found.problems and found.classic is not None
    assert (found.classic.file_name, found.classic.download_url) == ("tensorflow001.zip", URL)


def test_every_section_keeps_the_limits_of_a_twin() -> None:
    given_settings = DeploymentSettings(image=IMAGE, inferencer="infer", notify=("a-b_c",), env={"A": "1"})
    for section in make_deployment(given_settings, make_classic_properties(URL))["modulesContent"].values():
        check_values(section["properties.desired"])


def test_signed_properties_are_what_a_device_reads() -> None:
    properties = make_signed_properties(
        repo="https://models.example/r", model="detector", version="1.1.0", digest=DIGEST
    )
    found = read_desired(make_deployment(SETTINGS, properties)["modulesContent"]["edgeferry"]["properties.desired"])
    assert not found.problems and found.repo == "https://models.example/r"
    assert [(entry.model, entry.version, str(entry.manifest)) for entry in found.models] == [
        ("detector", "1.1.0", DIGEST)
    ]
    assert "sas" not in properties["edgeferry"]


BAD_SETTINGS: dict[str, Json] = {
    "an image of spaces": {"image": "my image"},
    "an image with a shell in it": {"image": "x; rm -rf /"},
    "no image": {"image": ""},
    "a module with a dot": {"module": "a.b"},
    "a module of the runtime": {"module": "edgeHub"},
    "two modules of one name": {"inferencer": "EdgeFerry"},
    "a consumer that would break the route": {"notify": ('x"/inputs/y',)},
    "a relative folder": {"storage": "srv/models"},
    "a folder with a colon": {"storage": "/srv:/etc"},
    "a folder that climbs": {"storage": "/srv/../etc"},
    "no folder": {"storage": "/"},
    "a port too high": {"port": 65_536},
    "a name to publish on": {"publish_on": "localhost"},
    "no network": {"networks": ()},
    "a network with host bits": {"networks": ("10.0.0.1/8",)},
    "a network of words": {"networks": ("everyone",)},
    "a runtime of words": {"runtime": "latest"},
    "a variable with a blank": {"env": {"A B": "1"}},
    "a root that is no digest": {"root": "root.json"},
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_are_refused_with(name: str) -> None:
    with pytest.raises((ConfigInvalid, ManifestInvalid)):
        make_deployment(DeploymentSettings(**({"image": IMAGE} | BAD_SETTINGS[name])))


def test_a_pinned_root_and_a_classic_update_do_not_go_together() -> None:
    with pytest.raises(ConfigInvalid, match="classic"):
        make_deployment(DeploymentSettings(image=IMAGE, root=DIGEST), make_classic_properties(URL))


@pytest.mark.parametrize(
    ("url", "name", "error"),
    [("ftp://x/y.zip", "", ConfigInvalid), ("https://x", "", ConfigInvalid), ("https://x/", "", NameInvalid),
     (URL, "../x.zip", NameInvalid), ("tensorflow001.zip", "", ConfigInvalid)],
)  # fmt: skip
def test_classic_properties_that_no_device_takes_are_refused(url: str, name: str, error: type[EdgeferryError]) -> None:
    with pytest.raises(error) as caught:
        make_classic_properties(url, name)
    assert "sig=" not in caught.value.message


@pytest.mark.parametrize(
    "changes", [{"digest": ""}, {"version": "1..0"}, {"model": "A"}, {"digest": "md5:1"}, {"repo": "file:///r"}]
)
def test_signed_properties_that_no_device_takes_are_refused(changes: dict[str, str]) -> None:
    given_values = {"repo": "https://r.example/x", "model": "m", "version": "1", "digest": DIGEST} | changes
    with pytest.raises(EdgeferryError):
        make_signed_properties(**given_values)


# --- damaged manifests: schema or check sees each ---------------------------------------------------------------------
def _set(*path: str, value: object) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        place = document["modulesContent"]
        for name in path[:-1]:
            place = place[name]
        if value is None:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


AGENT = ("$edgeAgent", "properties.desired")
OURS = (*AGENT, "modules", "edgeferry")
ROUTES = ("$edgeHub", "properties.desired", "routes")
DAMAGES = {
    "create options as an object": _set(*OURS, "settings", "createOptions", value={"HostConfig": {}}),
    "create options that are no JSON": _set(*OURS, "settings", "createOptions", value="{"),
    "create options that are a list": _set(
        *AGENT, "systemModules", "edgeAgent", "settings", "createOptions", value="[]"
    ),
    "a part too long": _set(*OURS, "settings", "createOptions", value="{" + " " * 600),
    "a part that is missing": _set(*OURS, "settings", "createOptions", value=None),
    "no image": _set(*OURS, "settings", "image", value=None),
    "an unknown field": _set(*OURS, "volumes", value=[]),
    "an unknown restart policy": _set(*OURS, "restartPolicy", value="sometimes"),
    "a variable without its value": _set(*OURS, "env", value={"A": "1"}),
    "a module of no docker": _set(*OURS, "type", value="snap"),
    "no edgeHub": _set("$edgeHub", value=None),
    "no system modules": _set(*AGENT, "systemModules", value=None),
    "an old schema version": _set(*AGENT, "schemaVersion", value="1.0"),
    "a route that goes nowhere": _set(*ROUTES, "upstream", value="FROM /messages/*"),
    "a route into a foreign sink": _set(*ROUTES, "upstream", value="FROM /messages/* INTO $downstream"),
    "a route with priority 10": _set(*ROUTES, "upstream", value={"route": "FROM /* INTO $upstream", "priority": 10}),
    "a time to live in words": _set("$edgeHub", "properties.desired", "storeAndForwardConfiguration", value="2h"),
    "reported properties": _set("edgeferry", "properties.reported", value={}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_manifest_is_refused_with(name: str) -> None:
    document = copy.deepcopy(make_deployment(LONG))
    DAMAGES[name](document)
    if VALIDATOR.is_valid(document):
        with pytest.raises(ConfigInvalid):
            check_deployment(document)


def test_a_route_with_priority_is_taken() -> None:
    document = copy.deepcopy(make_deployment(SETTINGS))
    _set(*ROUTES, "upstream", value={"route": "FROM /* INTO $upstream", "priority": 9, "timeToLiveSecs": 60})(document)
    VALIDATOR.validate(document)
    assert check_deployment(document) is document


# --- the command ------------------------------------------------------------------------------------------------------
def test_the_command_prints_the_manifest() -> None:
    result = CliRunner().invoke(deployment, ["--image", IMAGE, "--classic", URL, "--env", "A=b=c", "--envelope"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)["content"]
    VALIDATOR.validate(document)
    assert _get_agent(document)["modules"]["edgeferry"]["env"] == {"A": {"value": "b=c"}}


def test_the_command_writes_a_file_and_says_so(tmp_path: Any) -> None:
    out = tmp_path / "deployment.json"
    words = ["--repo", "https://r.example", "--model", "m", "--version", "1", "--digest", DIGEST, "--inferencer", "b"]
    result = CliRunner().invoke(deployment, ["--image", IMAGE, *words, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"file": str(out), "modules": ["edgeferry", "b"]}
    VALIDATOR.validate(json.loads(out.read_text()))


@pytest.mark.parametrize(
    "words",
    [
        ["--classic", URL, "--model", "m"], ["--model", "m"], ["--md5", "x"], ["--env", "A"], ["--storage", "x"],
        ["--repo", "https://r.example", "--model", "m", "--version", "1"], ["--file-name", "x.zip"],
    ],
)  # fmt: skip
def test_the_command_refuses_what_does_not_go_together(words: list[str]) -> None:
    result = CliRunner().invoke(deployment, ["--image", IMAGE, *words])
    assert result.exit_code == 2
    assert "error config_invalid" in result.stderr
    assert result.stdout == ""
