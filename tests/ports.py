"""Ports for the servers of tests."""

from __future__ import annotations

import random

import pytest

from ohlora.services import port_is_free


def free_ports(count: int) -> list[int]:
    """Ports below those that the system hands out by itself.

    A server may take its port seconds or minutes after the choice; by then the system could have given one of
    its own to somebody's connection.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(10_000, 16_000), 1000):
        if port_is_free(port):
            ports.append(port)
        if len(ports) == count:
            return ports
    pytest.fail("no free ports")


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
