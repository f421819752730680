"""The operator's commands wired: files, stores, keys, clock and HTTP put together for `publish/` and `trust/`.

Words on the command line are `cli/operator_commands.py`'s.

Rules:
- The clock is read here and passed down.
- Which place is opened by which signature is decided here: our hub's files by the hub's key, an Azure container by the
  account's key, anything else by what the operator gives.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgeferry.app.model_files import MODEL_MAX_BYTES, read_model_files
from edgeferry.errors import ConfigInvalid, HubRefused, LinkError, ObjectMissing
from edgeferry.model.digest import Digest
from edgeferry.model.inspect import Inspection, inspect_model
from edgeferry.names import require_model_name
from edgeferry.publish.deploy import (
    Order,
    Outcome,
    deploy,
    make_classic_deploy_patch,
    make_classic_order,
    make_deploy_patch,
    make_renewal_patch,
    parse_device,
    set_query,
)
from edgeferry.publish.forecast import (
    PUBLIC_CHAIN_BYTES,
    PUBLIC_HEAD_BYTES,
    FleetForecast,
    Server,
    Ways,
    forecast_fleet,
    is_tls,
    list_holdings,
    read_shelf,
    survey,
)
from edgeferry.publish.hub_service import HubService
from edgeferry.publish.publisher import Progress, Request, Say, publish, tell_nobody
from edgeferry.publish.report import PublishReport
from edgeferry.storage.blob_sas import make_container_sas
from edgeferry.storage.blob_store import is_azure_url, open_blob_store, parse_azure_url
from edgeferry.storage.files import read_bounded
from edgeferry.transport.http import HttpClient, HttpSettings, open_http, require_ok
from edgeferry.trust.draft import Draft, Listed, ObjectReader, open_draft, read_draft
from edgeferry.trust.keys import KeyFolder
from edgeferry.trust.signer import Desk, init_repository, refresh, rotate_key
from edgeferry.wire.file_signatures import FILES_PREFIX, SERVICE_POLICY, make_file_query
from edgeferry.wire.iothub_auth import ConnectionString, parse_connection_string

PICTURE_MAX_BYTES = 32 << 20
SECRET_MAX_BYTES = 8 << 10
FIRST_ROOT = "metadata/1.root.json"
Environ = Mapping[str, str]
Check = Callable[[FleetForecast], None]
"""Is told the forecast of a deployment; raises to stop it."""


@dataclass(frozen=True, slots=True)
class PublishFiles:
    """What `publish` was given on the command line."""

    model_file: Path
    name: str
    version: str
    labels: Path | None = None
    spec: Path | None = None
    golden: Path | None = None
    bases: tuple[str, ...] = ()
    patch_budget: int | None = None
    hub: str = field(default="", repr=False)
    """Connection string of the hub that is asked what devices run; empty: nobody is asked."""
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A published repository and the keys to it."""

    url: str
    keys_folder: Path
    environ: Environ = field(repr=False)

    def open_desk(self) -> Desk:
        """Where its metadata is signed, now."""
        return Desk(open_blob_store(self.url, self.environ), KeyFolder(self.keys_folder), _get_now())


@dataclass(frozen=True, slots=True)
class DeployTerms:
    """What `deploy` was given: `repo` as devices see it, `site` as the operator reads it (empty: the same)."""

    devices: tuple[str, ...]
    hub: str = field(repr=False)
    environ: Environ = field(repr=False)
    model: str = ""
    version: str = ""
    repo: str = ""
    site: str = ""
    sas: str = field(default="", repr=False)
    sas_life_s: int = 90 * 86400
    classic: bool = False
    again: bool = False
    ca_file: Path | None = None


def make_repository(place: Place) -> bytes:
    """`repo init`: makes keys and an empty repository; returns the root."""
    return init_repository(place.open_desk())


def refresh_repository(place: Place) -> Draft:
    """`repo refresh`: signs timestamp and snapshot anew."""
    return refresh(place.open_desk())


def read_repository(place: Place) -> Draft:
    """`repo key` without `--rotate`: the metadata as it is."""
    desk = place.open_desk()
    return open_draft(desk.store, desk.keys)


def rotate_repository_key(place: Place, role: str) -> Draft:
    """`repo key ROLE --rotate`: puts a new key in the role's place."""
    return rotate_key(place.open_desk(), role)


def publish_files(
    files: PublishFiles,
    place: Place,
    *,
    say: Say,
    making: Progress = tell_nobody,
    progress: Progress = tell_nobody,
) -> PublishReport:
    """`publish`: reads what the operator named and publishes it."""
    return publish_request(read_request(files, say), place, say=say, making=making, progress=progress)


def publish_request(
    request: Request,
    place: Place,
    *,
    say: Say,
    making: Progress = tell_nobody,
    progress: Progress = tell_nobody,
) -> PublishReport:
    """`publish`, of what was read."""
    return publish(request, place.open_desk(), say=say, making=making, progress=progress)


def read_request(files: PublishFiles, say: Say) -> Request:
    """Reads what the operator named."""
    found = read_model_files(files.model_file, files.labels, files.spec, say=say)
    return Request(
        model=files.name,
        version=files.version,
        model_file=found.model_file,
        model_data=found.model_data,
        labels_file=found.labels_file,
        labels_data=found.labels_data,
        others=found.others,
        spec_text=found.spec_text,
        golden_files=_read_folder(files.golden) if files.golden else None,
        bases=files.bases or None,
        running=_count_running(files, say) if files.hub and not files.bases else None,
        patch_budget=files.patch_budget,
    )


def _count_running(files: PublishFiles, say: Say) -> Mapping[str, int] | None:
    """Devices by the version of this model that they report; a hub that does not answer stops no publishing."""

    async def count() -> dict[str, int]:
        async with _open_hub(files.hub, files.ca_file) as service:
            return await service.count_active(require_model_name(files.name))

    try:
        return asyncio.run(count())
    except (LinkError, HubRefused) as error:
        say(f"the hub does not tell what devices run, patches are made from the last versions: {error.message}")
        return None


def inspect_file(path: Path) -> Inspection:
    """`inspect`: what a model file tells of itself."""
    return inspect_model(path.name, read_bounded(path, MODEL_MAX_BYTES))


async def deploy_version(terms: DeployTerms, *, ways: Ways | None = None, check: Check | None = None) -> Outcome:
    """`deploy`: tells devices to run a version; with `classic` by the guide's three fields.

    With `check` the deployment is forecast first, for links as `ways` says; nobody is told anything when it raises.
    """
    async with _open_service(terms) as service:
        site = await _open_published(service, terms)
        listed = _require_listed(site.draft, terms)
        sas, repo = _sign(terms.repo, service.connection, terms=terms), terms.repo.rstrip("/")
        if terms.classic:
            name = f"{terms.model}-{terms.version}.zip"
            classic = make_classic_order(repo, name, md5=listed.classic_md5, sas=sas)
            return await deploy(
                service, terms.devices, make_patch=functools.partial(make_classic_deploy_patch, classic)
            )
        order = Order(terms.model, terms.version, listed.digest, repo, sas, terms.again)
        if check is not None:
            check(await _forecast(service, terms, order, site=site, ways=ways or Ways()))
        return await deploy(service, terms.devices, make_patch=functools.partial(make_deploy_patch, order))


async def forecast_version(terms: DeployTerms, ways: Ways) -> FleetForecast:
    """`forecast`: what a deployment on these terms would take; without devices, on all that run the model."""
    async with _open_service(terms) as service:
        site = await _open_published(service, terms)
        listed = _require_listed(site.draft, terms)
        sas = _sign(terms.repo, service.connection, terms=terms)
        order = Order(terms.model, terms.version, listed.digest, terms.repo.rstrip("/"), sas)
        return await _forecast(service, terms, order, site=site, ways=ways)


async def _forecast(
    service: HubService, terms: DeployTerms, order: Order, *, site: _Published, ways: Ways
) -> FleetForecast:
    identities = list(map(parse_device, terms.devices)) or await service.list_running(order.model)
    seen = await survey(service, identities)
    listed = _require_listed(site.draft, terms)
    shelf = await asyncio.to_thread(read_shelf, site.reader, site.draft, listed, holdings=list_holdings(seen))
    server = _describe_server(terms.repo, service.connection)
    return forecast_fleet(order, seen, shelf, server=server, ways=ways, now=service.clock())


def _describe_server(repo: str, connection: ConnectionString) -> Server:
    """Bytes of certificates and heads: our hub's are known, all others are taken for a public cloud's."""
    server = Server() if _is_hub_file(repo, connection) else Server(PUBLIC_CHAIN_BYTES, PUBLIC_HEAD_BYTES)
    return server if is_tls(repo) else replace(server, chain_bytes=0)


async def renew_sas(terms: DeployTerms) -> Outcome:
    """`deploy --renew-sas`: changes the SAS in the twins and nothing else."""
    async with _open_service(terms) as service:
        sign = functools.partial(_sign, connection=service.connection, terms=terms)
        return await deploy(service, terms.devices, make_patch=functools.partial(make_renewal_patch, sign))


# --- where and by whose right -----------------------------------------------------------------------------------------
def read_hub_text(given: str) -> str:
    """The hub's service connection string: given as such, or the path of a file that holds it."""
    if "HostName=" in given:
        return given
    return read_bounded(Path(given), SECRET_MAX_BYTES).decode("utf-8", "replace").strip()


def _open_service(terms: DeployTerms) -> AbstractAsyncContextManager[HubService]:
    return _open_hub(terms.hub, terms.ca_file)


@asynccontextmanager
async def _open_hub(text: str, ca_file: Path | None) -> AsyncIterator[HubService]:
    connection = parse_connection_string(text)
    if not connection.shared_access_key_name:
        raise ConfigInvalid("expected the connection string of a service policy, found that of a device")
    ca_pem = read_bounded(ca_file, 1 << 20) if ca_file else None
    async with open_http(HttpSettings(ca_pem=ca_pem)) as http:
        yield HubService(http, connection, time.time)


def _sign(url: str, connection: ConnectionString, *, terms: DeployTerms) -> str:
    """The query that opens what lies at `url`; empty where nothing is known to be needed."""
    if terms.sas:
        return terms.sas.lstrip("?")
    expires_at = int(time.time()) + terms.sas_life_s
    parts = urlsplit(url)
    if _is_hub_file(url, connection):
        folder = unquote(parts.path).removeprefix(FILES_PREFIX.rstrip("/")).strip("/")
        return make_file_query(folder, connection.shared_access_key, expires_at)
    if is_azure_url(url, terms.environ):
        place = parse_azure_url(url, terms.environ)
        if not place.key:
            raise ConfigInvalid("set AZURE_STORAGE_ACCOUNT_KEY to sign, or give a SAS with EDGEFERRY_SAS")
        return make_container_sas(place.account, place.container, key_base64=place.key, expires_at=expires_at)
    return ""


def _is_hub_file(url: str, connection: ConnectionString) -> bool:
    """Whether `url` lies in the hub's own `/files/`. Its port may differ: a relay or a port map may stand between."""
    parts = urlsplit(url)
    is_files = f"{parts.path}/".startswith(FILES_PREFIX)
    hub_host = urlsplit(f"//{connection.host_name}").hostname
    return is_files and parts.hostname == hub_host and connection.shared_access_key_name == SERVICE_POLICY


@dataclass(frozen=True, slots=True)
class _Published:
    """A repository, and its signed metadata."""

    reader: ObjectReader
    draft: Draft


async def _open_published(service: HubService, terms: DeployTerms) -> _Published:
    """The repository as its signed metadata describes it.

    The root is the repository's own here: what is read ends up in a twin, and every device checks it against its pin.
    """
    if terms.site:
        reader: ObjectReader = open_blob_store(terms.site, terms.environ)
    else:
        query = _sign(terms.repo, service.connection, terms=terms)
        reader = HttpReader(service.http, terms.repo.rstrip("/"), query=query, loop=asyncio.get_running_loop())
    return _Published(reader, await asyncio.to_thread(read_unpinned, reader))


def _require_listed(draft: Draft, terms: DeployTerms) -> Listed:
    listed = draft.find_version(terms.model, terms.version)
    if listed is None:
        known = ", ".join(one.version for one in draft.list_versions(terms.model)) or "no version at all"
        raise ObjectMissing(f"expected {terms.model} {terms.version} in the repository, found {known}")
    return listed


def read_unpinned(reader: ObjectReader) -> Draft:
    """The metadata as its own first root vouches for it; raises ConfigInvalid where there is no repository."""
    found = reader.find(FIRST_ROOT, 64 << 10)
    if found is None:
        raise ConfigInvalid("there is no repository at this place: run `edgeferry repo init --to URL` first")
    return read_draft(reader, found[0])


class HttpReader:
    """Reads a repository behind plain HTTP, from a thread, through the loop's client."""

    def __init__(self, http: HttpClient, base: str, *, query: str, loop: asyncio.AbstractEventLoop) -> None:
        self._http, self._base, self._query, self._loop = http, base, query, loop

    def find(self, path: str, max_bytes: int) -> tuple[bytes, str] | None:
        """The object, or None where there is none.

        A store whose objects all may read and nobody list (a public S3 bucket) answers 403 for what is not there. Only
        the next root is asked for without knowing.
        """
        fetching = self._http.fetch(set_query(f"{self._base}/{path}", self._query), max_bytes=max_bytes)
        answer = asyncio.run_coroutine_threadsafe(fetching, self._loop).result()
        is_next_root = path.endswith(".root.json") and path != FIRST_ROOT
        missing = answer.status == 404 or (answer.status == 403 and is_next_root)
        return None if missing else (require_ok(answer).body, "")


# --- files ------------------------------------------------------------------------------------------------------------
def get_root_pin(root: bytes) -> str:
    """How a root is pinned on a device: `sha256:<hex>`."""
    return str(Digest.of(root))


def _read_folder(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        raise ConfigInvalid(f"expected a folder of pictures with .json truths at {folder}")
    return {path.name: read_bounded(path, PICTURE_MAX_BYTES) for path in sorted(folder.iterdir()) if path.is_file()}


def _get_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)
