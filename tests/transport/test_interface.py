"""Which interface leads out: as the kernel's routes say."""

from __future__ import annotations

import socket

import pytest

from edgeferry.transport.interface import find_interface


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8"])
def test_what_is_on_this_machine_is_reached_over_its_loopback(host: str) -> None:
    assert find_interface(host) == "lo"


@pytest.mark.parametrize("host", ["", "example.org", "no address", "1.2.3", "::g"])
def test_everything_else_goes_where_the_default_route_leads(host: str) -> None:
    names = {name for _, name in socket.if_nameindex()}
    assert find_interface(host) in names | {""}
    assert find_interface(host) == find_interface("")
