"""A faulty little API server and a client of it, for every test of the operator's I/O."""

import pytest

from builders.fake_api import FakeApi
from lepton_operator.pods.api import Api


@pytest.fixture
async def fake():
    async with FakeApi() as server:
        yield server


@pytest.fixture
async def api(fake):
    client = Api(fake.configuration, qps=10_000, burst=10_000)
    yield client
    await client.close()
