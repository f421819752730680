"""One route of a deployment manifest: `FROM <source> [WHERE <condition>] INTO <sink>`, parsed and written back.

Delivery is the hub's; a condition is kept as text, and who cannot evaluate it must refuse it.

Rules:
- Sources: `/*`, `/messages/*`, `/messages/modules/*`, `/messages/modules/{m}/*`, `/messages/modules/{m}/outputs/*`,
  `/messages/modules/{m}/outputs/{o}`. Sinks: `$upstream`, `BrokeredEndpoint("/modules/{m}/inputs/{i}")`.
- The three words compare without case, names with case. `parse_route(str(route)) == route`.

Source: docs/formats/iothub.md section 7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeferry.errors import ConfigInvalid

ROUTE_MAX_CHARS = 4096
UPSTREAM = "$upstream"
_ROUTE = re.compile(r"\s*FROM\s+(\S+)(?:\s+WHERE\s+(.+?))?\s+INTO\s+(\S.*?)\s*", re.IGNORECASE | re.DOTALL)
_NAME = r"[A-Za-z0-9_.:%$!~()@=+',-]{1,128}"
_SOURCE = re.compile(rf"/(?:messages/)?\*|/messages/modules/(?:\*|{_NAME}/(?:\*|outputs/(?:\*|{_NAME})))")
_SINK = re.compile(rf"BrokeredEndpoint\(\s*[\"']/modules/({_NAME})/inputs/({_NAME})[\"']\s*\)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Route:
    """Where messages come from and go to.

    Attributes:
        source: the path after FROM, as written.
        sink: (module, input), or None for `$upstream`.
        condition: the text after WHERE, or None.
    """

    source: str
    sink: tuple[str, str] | None
    condition: str | None = None

    def __str__(self) -> str:
        where = f" WHERE {self.condition}" if self.condition else ""
        into = UPSTREAM if self.sink is None else f'BrokeredEndpoint("/modules/{self.sink[0]}/inputs/{self.sink[1]}")'
        return f"FROM {self.source}{where} INTO {into}"

    def takes(self, module_id: str | None, output: str | None) -> bool:
        """Whether a message of this module (None: the device itself) and output (None: plain telemetry) goes here."""
        if self.source in ("/*", "/messages/*"):
            return True
        if module_id is None:
            return False
        if self.source == "/messages/modules/*":
            return True
        wanted_module, _, tail = self.source.removeprefix("/messages/modules/").partition("/")
        if wanted_module != module_id:
            return False
        return tail == "*" or (output is not None and tail in ("outputs/*", f"outputs/{output}"))


def parse_route(text: str) -> Route:
    """Reads one route.

    Raises:
        ConfigInvalid: it does not follow the grammar; the message says which part.
    """
    match = _ROUTE.fullmatch(text) if len(text) <= ROUTE_MAX_CHARS else None
    if match is None:
        raise ConfigInvalid(f"expected a route 'FROM <source> [WHERE <condition>] INTO <sink>', found {text!r:.120}")
    source, condition, sink = match.groups()
    if not _SOURCE.fullmatch(source):
        raise ConfigInvalid(f"expected a source like '/messages/modules/X/outputs/Y', found {source!r:.120}")
    if sink.lower() == UPSTREAM:
        return Route(source, None, condition)
    endpoint = _SINK.fullmatch(sink)
    if endpoint is None:
        raise ConfigInvalid(f'expected $upstream or BrokeredEndpoint("/modules/Z/inputs/I"), found {sink!r:.120}')
    return Route(source, (endpoint[1], endpoint[2]), condition)
