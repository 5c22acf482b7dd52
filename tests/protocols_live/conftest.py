"""One live server for all tests of a process: its models take a while to compile."""

from collections.abc import Iterator

import pytest

from tests.protocols_live.flavours import FLAVOURS, Caller, Flavour
from tests.protocols_live.live import LiveServer


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer.running(tmp_path_factory.mktemp("live")) as server:
        yield server


@pytest.fixture(params=FLAVOURS, ids=lambda flavour: flavour.name)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return request.param


@pytest.fixture(params=[each for each in FLAVOURS if not each.is_grpc], ids=lambda flavour: flavour.name)
def http_flavour(request: pytest.FixtureRequest) -> Flavour:
    return request.param


@pytest.fixture(params=[each for each in FLAVOURS if each.is_grpc], ids=lambda flavour: flavour.name)
def grpc_flavour(request: pytest.FixtureRequest) -> Flavour:
    return request.param


@pytest.fixture
def caller(live: LiveServer, flavour: Flavour) -> Iterator[Caller]:
    """A client of each flavour in turn, at the door that is open to everybody."""
    with Caller(flavour, live.public) as caller:
        yield caller
