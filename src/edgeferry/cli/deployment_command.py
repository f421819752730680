"""`edgeferry deployment`: writes the IoT Edge deployment manifest.

What this file leaves to others: the manifest itself (`publish/deployment.py`).

Rules:
- The manifest goes to standard output, or to `--out`; it is JSON either way, so `--json` changes what `--out` prints.
- Either the classic fields or our own, or neither: then `edgeferry deploy` says later what the module shall run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgeferry.cli.exit_codes import ends_with_exit_code
from edgeferry.errors import ConfigInvalid
from edgeferry.publish.deployment import (
    API_PORT,
    EDGE_NETWORKS,
    DeploymentSettings,
    make_classic_properties,
    make_deployment,
    make_signed_properties,
)
from edgeferry.storage.files import write_atomically

_DEFAULTS = DeploymentSettings(image="")


@click.command("deployment")
@click.option("--image", required=True, help="The device module's image, with tag or digest.")
@click.option("--module", default=_DEFAULTS.module, show_default=True, help="Name of the module.")
@click.option("--inferencer", default="", help="Name of a second module that serves what the first one loads.")
@click.option("--notify", multiple=True, help="Another module that takes DLModelOutput on its AIMessageInput.")
@click.option("--storage", default=_DEFAULTS.storage, show_default=True, help="Host folder shared by the modules.")
@click.option("--port", type=int, default=API_PORT, show_default=True, help="Port on the host; 0 publishes none.")
@click.option("--publish-on", default=_DEFAULTS.publish_on, show_default=True, help="Address of the host.")
@click.option("--allow-networks", default=",".join(EDGE_NETWORKS), show_default=True, help="Who may ask: CIDR,...")
@click.option("--env", multiple=True, help="NAME=VALUE for our module, such as EDGEFERRY_TOKEN.")
@click.option("--runtime", default=_DEFAULTS.runtime, show_default=True, help="Version of edgeAgent and edgeHub.")
@click.option("--root", default="", help="sha256:... of the root.json that the device shall trust.")
@click.option("--classic", default="", help="URL of the ZIP: the guide's three fields.")
@click.option("--file-name", default="", help="FileName, where it is not the last part of the URL.")
@click.option("--md5", default="", help="ContentMD5 of the ZIP, base64.")
@click.option("--repo", default="", help="URL of the published repository.")
@click.option("--model", default="", help="The model to run.")
@click.option("--version", default="", help="Its version.")
@click.option("--digest", default="", help="sha256:... of its manifest, as publish printed it.")
@click.option("--sas", default="", help="SAS query for the repository.")
@click.option("--envelope", is_flag=True, help='Wrap it as {"content": ...}.')
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write it here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@ends_with_exit_code
def deployment(out: Path | None, as_json: bool, envelope: bool, **options: Any) -> None:
    """Writes the IoT Edge 1.6 deployment manifest for the device module."""
    settings = _make_settings(options)
    document = make_deployment(settings, _make_desired(options), envelope=envelope)
    text = json.dumps(document, indent=2) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    write_atomically(out, text.encode())
    modules = [settings.module, *([settings.inferencer] if settings.inferencer else [])]
    click.echo(json.dumps({"file": str(out), "modules": modules}) if as_json else f"{out} deploys {', '.join(modules)}")


def _make_settings(options: dict[str, Any]) -> DeploymentSettings:
    taken = ("image", "module", "inferencer", "notify", "storage", "port", "publish_on", "root", "runtime")
    networks = tuple(word.strip() for word in options["allow_networks"].split(",") if word.strip())
    pairs = [word.partition("=") for word in options["env"]]
    if not all(name and sign for name, sign, _ in pairs):
        raise ConfigInvalid("expected --env NAME=VALUE")
    env = {name: value for name, _, value in pairs}
    return DeploymentSettings(**{name: options[name] for name in taken}, networks=networks, env=env)


def _make_desired(options: dict[str, Any]) -> dict[str, Any] | None:
    classic = {name: options[name] for name in ("classic", "file_name", "md5")}
    signed = {name: options[name] for name in ("repo", "model", "version", "digest", "sas")}
    if any(classic.values()) and any(signed.values()):
        raise ConfigInvalid("expected either --classic with --file-name and --md5, or --repo with --model, found both")
    if any(signed.values()):
        return make_signed_properties(**signed)
    if not any(classic.values()):
        return None
    if not classic["classic"]:
        raise ConfigInvalid("expected --classic URL with --file-name and --md5, found no URL")
    return make_classic_properties(classic["classic"], classic["file_name"], classic["md5"])
