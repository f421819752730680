"""`edgeferry repo`, `publish`, `inspect`: the operator's words on a command line.

What this file leaves to others: everything but words; the wiring is `app/operator.py`'s.

Rules:
- Every command takes `--json`: results on stdout, what is being done on stderr.
- Connection strings come from an option, a file or the environment, and are never printed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from edgeferry.app import operator
from edgeferry.app.operator import PublishFiles
from edgeferry.cli.exit_codes import ends_with_exit_code
from edgeferry.cli.publish_progress import open_publish_progress
from edgeferry.cli.slim_option import ask_for_slim, slim_options, take_slim_options
from edgeferry.errors import ConfigInvalid
from edgeferry.model.inspect import Inspection
from edgeferry.publish.report import PublishReport
from edgeferry.trust.draft import Draft

DEFAULT_KEYS = Path("~/.config/edgeferry/keys")
Command = TypeVar("Command", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILE_OR_FOLDER = click.Path(exists=True, path_type=Path)


def _to_option(command: Command) -> Command:
    return click.option(
        "--to",
        "url",
        required=True,
        envvar="EDGEFERRY_TO",
        help="The published repository: a folder, an Azure container's URL, or s3://bucket/prefix.",
    )(command)


def _keys_option(command: Command) -> Command:
    return click.option(
        "--keys",
        type=click.Path(file_okay=False, path_type=Path),
        default=DEFAULT_KEYS,
        show_default=True,
        envvar="EDGEFERRY_KEYS",
        callback=lambda _context, _parameter, value: value.expanduser(),
        help="Folder of the signing keys; it never lies inside the repository.",
    )(command)


def _json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


# --- repo -------------------------------------------------------------------------------------------------------------
@click.group("repo")
def repo() -> None:
    """Makes a signed repository; looks after its keys."""


@repo.command("init")
@_to_option
@_keys_option
@_json_option
@ends_with_exit_code
def repo_init(url: str, keys: Path, as_json: bool) -> None:
    """Makes signing keys and an empty repository."""
    root = operator.make_repository(operator.Place(url, keys, os.environ))
    facts = {"root": str(keys / "root.json"), "pin": operator.get_root_pin(root), "keys": str(keys)}
    if as_json:
        _print_json(facts)
        return
    click.echo(f"repository made; its keys lie in {keys}: keep a copy offline")
    click.echo(f"pin its root on devices:  edgeferry device init --root {facts['pin']}")
    click.echo(f"                     or:  edgeferry device init --root {facts['root']}")


@repo.command("key")
@click.argument("role", required=False)
@click.option("--rotate", is_flag=True, help="Replace the role's key by a new one.")
@_to_option
@_keys_option
@_json_option
@ends_with_exit_code
def repo_key(role: str | None, rotate: bool, url: str, keys: Path, as_json: bool) -> None:
    """Lists keys and how long their signatures last; ROLE --rotate replaces the key of a role or a model."""
    if rotate and not role:
        raise ConfigInvalid("expected the ROLE whose key shall be replaced")
    draft = (
        operator.rotate_repository_key(operator.Place(url, keys, os.environ), str(role))
        if rotate
        else operator.read_repository(operator.Place(url, keys, os.environ))
    )
    _print_roles([row for row in _list_roles(draft) if role in (None, row["role"])], as_json=as_json)


@repo.command("refresh")
@_to_option
@_keys_option
@_json_option
@ends_with_exit_code
def repo_refresh(url: str, keys: Path, as_json: bool) -> None:
    """Signs timestamp and snapshot anew, and whatever else is past half of its life. Run it from cron."""
    _print_roles(_list_roles(operator.refresh_repository(operator.Place(url, keys, os.environ))), as_json=as_json)


def _list_roles(draft: Draft) -> list[dict[str, Any]]:
    top: dict[str, Any] = {
        "root": draft.root,
        "targets": draft.targets,
        "snapshot": draft.snapshot,
        "timestamp": draft.timestamp,
    }
    rows = []
    for name, metadata in {**top, **draft.roles}.items():
        delegator = draft.root.signed if name in top else draft.targets.signed
        keys = delegator.get_delegated_role(name).keyids
        expires = metadata.signed.expires.isoformat()
        rows.append({"role": name, "version": metadata.signed.version, "expires": expires, "keys": list(keys)})
    return rows


def _print_roles(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        keys = ", ".join(key[:12] for key in row["keys"])
        click.echo(f"{row['role']:<20} version {row['version']:<5} expires {row['expires'][:10]}  key {keys}")


# --- publish ----------------------------------------------------------------------------------------------------------
@click.command("publish")
@click.argument("model_file", metavar="MODEL", type=_FILE_OR_FOLDER)
@click.option("--name", required=True, help="Name of the model.")
@click.option("--version", required=True, help="Its new version.")
@click.option("--labels", type=_FILE, help="Label file, one a line.")
@click.option("--spec", type=_FILE, help="TOML with what the model file does not tell.")
@click.option(
    "--golden",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of pictures with .json truths. Default: those of the version before.",
)
@click.option(
    "--base",
    "bases",
    multiple=True,
    metavar="VERSION",
    help="Make patches from this version; may be given again. Default: what devices run, else the last three.",
)
@click.option(
    "--patch-budget",
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="What this version's patches may take together; 0 makes none. Default: four times the full download.",
)
@click.option(
    "--hub",
    default="",
    envvar="EDGEFERRY_HUB",
    help="Service connection string of the hub that knows what devices run, or a file that holds it.",
)
@click.option("--ca-file", type=_FILE, help="PEM certificates to trust, for a hub of one's own.")
@slim_options
@_to_option
@_keys_option
@_json_option
@ends_with_exit_code
def publish(url: str, keys: Path, as_json: bool, **given: Any) -> None:
    """Publishes a model version: packs, codes, makes patches, signs and uploads it.

    MODEL is an .onnx or .tflite file, or a bundle (ZIP or folder) that holds it and its labels: the files in it are
    published. Several models of a pipeline are named in the bundle's spec.toml.
    """
    place = operator.Place(url, keys, os.environ)
    given["hub"] = operator.read_hub_text(given["hub"]) if given["hub"] else ""
    slim = take_slim_options(given, as_json=as_json)
    request = operator.read_request(PublishFiles(**given), _say)
    if slim is not None:
        request = ask_for_slim(request, place, slim, say=_say)
    with open_publish_progress() as progress:
        report = operator.publish_request(request, place, say=_say, making=progress.making, progress=progress.uploading)
    if as_json:
        _print_json(report)
    else:
        _print_publish_report(report)


def _print_publish_report(report: PublishReport) -> None:
    state = "is published already; nothing to do" if report.unchanged else "published"
    click.echo(f"{report.model} {report.version} {state}: {report.manifest}")
    for file in report.files:
        tried = ", ".join(f"{codec} {size:,}" for codec, size in sorted(file.sizes_by_codec.items()))
        click.echo(f"  {file.path:<24} {file.size:>12,} bytes, travels as {file.coded_size:,} ({tried})")
    for patch in report.patches:
        how = f"{patch.way}, {patch.memory >> 20} MB to apply"
        click.echo(f"  patch from {patch.base:<13} {patch.size:>12,} bytes for {patch.path} ({how})")
    origin = " of the version before" if report.golden_inherited else ""
    click.echo(
        f"  {report.golden} golden pictures{origin}, {report.golden_bytes:,} bytes; manifest {report.manifest_bytes:,}"
    )
    known = f", {report.update_bytes:,} with the version before" if report.update_bytes != report.download_bytes else ""
    click.echo(f"  a device downloads {report.download_bytes:,} bytes{known}")
    for update in report.updates:
        click.echo(f"  a device with {update.base:<10} {update.bytes:>12,} bytes in {update.downloads} downloads")
    click.echo(f"  {report.classic.path} {report.classic.size:,} bytes, ContentMD5 {report.classic.md5}")
    if report.slim:
        click.echo(f"  slim: {report.slim['loss']:.2f} points of {report.slim['metric']} lost; of {report.slim['of']}")
    for note in report.notes:
        click.echo(f"  note: {note}")


# --- inspect ----------------------------------------------------------------------------------------------------------
@click.command("inspect")
@click.argument("model_file", metavar="MODEL", type=_FILE)
@_json_option
@ends_with_exit_code
def inspect(model_file: Path, as_json: bool) -> None:
    """Shows what a model file tells, and what publish must be told."""
    inspection = operator.inspect_file(model_file)
    if as_json:
        _print_json(inspection)
    else:
        _print_inspection(inspection)


def _print_inspection(inspection: Inspection) -> None:
    facts = inspection.facts
    click.echo(
        f"{inspection.file_name}  {facts.format}, version {facts.opset}, {facts.weight_bytes:,} bytes of weights"
    )
    for kind, tensors in (("input", facts.inputs), ("output", facts.outputs)):
        for tensor in tensors:
            shape = "x".join("?" if side is None else str(side) for side in tensor.shape)
            click.echo(f"  {kind:<7} {tensor.name:<32} {tensor.dtype} {shape}")
    click.echo(
        f"  labels  {len(inspection.labels) or 'none'}{' in ' + inspection.labels_source if inspection.labels else ''}"
    )
    for path, value in _flatten(inspection.found):
        click.echo(f"  spec    {path} = {value}")
    for note in inspection.notes:
        click.echo(f"  note    {note}")
    for path, why in inspection.missing.items():
        click.echo(f"  missing {path}: {why}")


def _flatten(table: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(table, dict):
        return [(prefix, table)]
    return [row for key, value in table.items() for row in _flatten(value, f"{prefix}.{key}" if prefix else str(key))]


def _say(text: str) -> None:
    click.echo(text, err=True)


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.encode(value).decode())
