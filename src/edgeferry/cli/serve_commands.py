"""`edgeferry serve` and `edgeferry predict`: models from this disk, without any hub.

What this file leaves to others: opening the models (`app/local_models.py`), the API (`app/serving.py`), exit codes,
rows of answers (`answer_view.py`).

Rules:
- Results go to standard output, everything else to standard error; `--json` makes results one JSON document.
- The token comes from EDGEFERRY_TOKEN, never from an argument: the list of processes shows arguments.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from edgeferry.app.local_models import open_local_versions
from edgeferry.app.logging import configure_logging
from edgeferry.app.serving import ApiAddress, open_slots, serve_models
from edgeferry.cli.answer_view import tabulate_answer
from edgeferry.cli.exit_codes import ends_with_exit_code, get_exit_code, print_error
from edgeferry.errors import ConfigInvalid, EdgeferryError, RequestError
from edgeferry.model.stored import StoredVersion
from edgeferry.serve.access import Access, make_access
from edgeferry.serve.api_settings import ApiSettings
from edgeferry.serve.formats.predict import PredictAnswer, make_predict
from edgeferry.serve.infer import infer
from edgeferry.serve.ports import Drawn
from edgeferry.serve.slots import Slots
from edgeferry.storage.files import make_folder, read_bounded, write_atomically

_PICTURE_MAX_BYTES = 256 << 20
_PREDICT_TIMEOUT_S = 120.0
_EXISTING = click.Path(path_type=Path)


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=_EXISTING)
@click.option("--labels", type=_EXISTING, help="Label file, one label a line, for a single MODEL.")
@click.option("--spec", type=_EXISTING, help="TOML file with what a single MODEL does not tell of itself.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks a free one."
)
@click.option("--allow-networks", default="", metavar="CIDR,...", help="Networks that may call, e.g. 192.168.1.0/24.")
@click.option("--default-model", default="", metavar="NAME", help="The model that answers /score among several.")
@click.option(
    "--queue",
    type=click.IntRange(0, 10_000),
    help="Requests that may wait for a core; 32 if not said, and in overload none.",
)
@click.option("--picture-hosts", default="", metavar="HOST,...", help="Hosts that POST /url may fetch pictures from.")
@click.option(
    "--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"])
)
@click.option("--json", "as_json", is_flag=True, help="Print where it serves as JSON, and log as JSON.")
@ends_with_exit_code
def serve(
    models: tuple[Path, ...],
    *,
    labels: Path | None,
    spec: Path | None,
    allow_networks: str,
    log_level: str,
    **rest: Any,
) -> None:
    """Serves models of this disk over HTTP, without any hub.

    MODEL is an .onnx or .tflite file, a folder or a bundle ZIP.

    Off loopback it starts only with a token in EDGEFERRY_TOKEN or with --allow-networks.
    """
    access = make_access(os.environ.get("EDGEFERRY_TOKEN", ""), allow_networks.split(","))
    options = ServeOptions(access=access, **rest)
    configure_logging(as_json=options.as_json, level=log_level)
    with open_local_versions(models, labels=labels, spec=spec, say=partial(click.echo, err=True)) as versions:
        try:
            asyncio.run(_serve(versions, options))
        except asyncio.CancelledError:
            click.echo("stopped", err=True)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where and for whom `serve` listens, which model answers /score, and how it says so."""

    access: Access
    host: str
    port: int
    default_model: str
    picture_hosts: str
    queue: int | None
    as_json: bool


async def _serve(versions: Sequence[StoredVersion], options: ServeOptions) -> None:
    """Serves until a signal cancels this task: whatever it is doing then, the workers end with it."""
    this_task = asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):
        if this_task is not None:
            asyncio.get_running_loop().add_signal_handler(number, this_task.cancel)
    settings = ApiSettings(access=options.access)
    opened = serve_models(
        versions,
        options.host,
        options.port,
        settings=settings,
        default_model=options.default_model,
        picture_hosts=options.picture_hosts.split(","),
        queue=options.queue,
    )
    async with opened as address:
        click.echo(_describe_json(address, versions) if options.as_json else _describe(address, versions, options))
        sys.stdout.flush()
        await asyncio.Event().wait()


def _describe_json(address: ApiAddress, versions: Sequence[StoredVersion]) -> str:
    models = [{"model": one.model, "version": one.version, "task": one.spec.get_answering().task} for one in versions]
    facts = {"url": address.url, "host": address.host, "port": address.port, "pid": os.getpid(), "models": models}
    return msgspec.json.encode(facts).decode()


def _describe(address: ApiAddress, versions: Sequence[StoredVersion], options: ServeOptions) -> str:
    lines = [f"serving on {address.url}"]
    lines += [f"  {version}  {version.spec.get_answering().task}" for version in versions]
    alone = len(versions) == 1 or options.default_model
    route = "/score" if alone else f"/v1/models/{versions[0].model}/predict"
    token = '-H "Authorization: Bearer $EDGEFERRY_TOKEN" ' if options.access.token else ""
    if all(version.spec.stages[-1].task == "tensors" for version in versions):
        return "\n".join([*lines, f"try: curl {token}{address.url}/v2/models/{versions[0].model}"])
    return "\n".join([*lines, f"try: curl {token}--data-binary @picture.jpg {address.url}{route}"])


@click.command()
@click.argument("model", type=_EXISTING)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=_EXISTING)
@click.option("--labels", type=_EXISTING, help="Label file, one label a line.")
@click.option("--spec", type=_EXISTING, help="TOML file with what MODEL does not tell of itself.")
@click.option(
    "--draw",
    type=_EXISTING,
    metavar="OUT",
    help="Write the picture with the answer drawn on it here; a folder for several.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, an element per picture.")
@ends_with_exit_code
def predict(
    model: Path, images: tuple[Path, ...], *, labels: Path | None, spec: Path | None, draw: Path | None, as_json: bool
) -> None:
    """Answers pictures with a model and prints what was found.

    MODEL is an .onnx or .tflite file, a folder or a bundle ZIP.
    """
    configure_logging(as_json=as_json, level="warning")
    drawings = _plan_drawings(images, draw)
    with open_local_versions([model], labels=labels, spec=spec) as versions:
        results = asyncio.run(_predict(versions[0], images, drawings))
    _print_answers([(image, result) for image, result in results if not isinstance(result, EdgeferryError)], as_json)
    failed = [(image, result) for image, result in results if isinstance(result, EdgeferryError)]
    for image, error in failed:
        click.echo(f"{image}:", err=True)
        print_error(error)
    if failed:
        sys.exit(get_exit_code(type(failed[0][1])))


Result = tuple[Path, PredictAnswer | EdgeferryError]


async def _predict(version: StoredVersion, images: Sequence[Path], drawings: dict[Path, Path]) -> list[Result]:
    """One worker for all pictures; a picture at fault is a result too, and the others are still answered."""
    results: list[Result] = []
    async with open_slots([version]) as slots:
        for image in images:
            try:
                results.append((image, await _predict_one(slots, image, drawings.get(image))))
            except (RequestError, ConfigInvalid) as error:
                results.append((image, error))
    return results


async def _predict_one(slots: Slots, image: Path, drawing: Path | None) -> PredictAnswer:
    if not image.is_file():
        raise ConfigInvalid(f"expected a picture at {image}, found none")
    picture = await asyncio.to_thread(read_bounded, image, _PICTURE_MAX_BYTES)
    inference = await infer(slots, picture, timeout_s=_PREDICT_TIMEOUT_S, draw=_get_drawn(drawing))
    if drawing is not None:
        await asyncio.to_thread(write_atomically, drawing, inference.reply.drawn)
    return make_predict(inference)


def _get_drawn(drawing: Path | None) -> Drawn:
    if drawing is None:
        return ""
    return "jpeg" if drawing.suffix.lower() in (".jpg", ".jpeg") else "png"


def _plan_drawings(images: Sequence[Path], out: Path | None) -> dict[Path, Path]:
    """Where each picture's drawing goes: into `out` itself for one picture, else into the folder `out`."""
    if out is None:
        return {}
    if len(images) == 1 and not out.is_dir():
        return {images[0]: out}
    drawings = {image: out / f"{image.stem}.png" for image in images}
    if len(set(drawings.values())) != len(images):
        raise ConfigInvalid("expected pictures of different names to draw into one folder")
    if not out.is_dir() and out.exists():
        raise ConfigInvalid(f"expected a folder at {out} for several drawings, found a file")
    make_folder(out)
    return drawings


def _print_answers(answers: Sequence[tuple[Path, PredictAnswer]], as_json: bool) -> None:
    if as_json:
        elements = [{"image": str(image), **msgspec.to_builtins(answer)} for image, answer in answers]
        click.echo(msgspec.json.encode(elements).decode())
        return
    for image, answer in answers:
        click.echo("\n".join(_tabulate(image, answer)))


def _tabulate(image: Path, answer: PredictAnswer) -> list[str]:
    size = f"{answer.picture.width}x{answer.picture.height}"
    head = f"{image}  {size}  {answer.model}@{answer.version}  {answer.timings_ms['total']:.1f} ms"
    return [head, *(tabulate_answer(answer.answer) or ["  nothing found"])]
