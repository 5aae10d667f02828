"""The operator as a process: it says why it is not ready, stops within two seconds at any moment, and gives up with words where it must."""

import asyncio
import contextlib
import os
import signal
import socket
import sys

import aiohttp
import pytest
import yaml

from builders.fake_api import status


@pytest.fixture
def start(fake, tmp_path):
    """Starts an operator against the fake API server: (process, URL of its probes)."""
    host = {"name": "c", "cluster": {"server": fake.configuration.host}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    kubeconfig = tmp_path / "kubeconfig"
    plain = {"clusters": [host], "users": [{"name": "u", "user": {}}], "contexts": [context], "current-context": "c"}
    kubeconfig.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config"} | plain))
    started = []

    async def run(*arguments, port=0):
        port = port or _free_port()
        command = [sys.executable, "-m", "lepton_operator", f"--kubeconfig={kubeconfig}", "--trainer-image=t", f"--metrics-port={port}"]
        environment = os.environ | {"POD_IP": "127.0.0.1", "POD_NAMESPACE": "lepton", "PYTHONPATH": os.pathsep.join(sys.path)}
        process = await asyncio.create_subprocess_exec(
            *command, *arguments, env=environment, stderr=asyncio.subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        return process, f"http://127.0.0.1:{port}"

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def answer(url):
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url) as response:
                    return response.status, await response.text()
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


async def test_without_the_crd_it_lives_says_so_and_stops_at_once(fake, start):
    fake.answers = [status(404, "NotFound", "404 page not found")]
    process, url = await start("--watch-namespace=team")
    assert (await answer(url + "/healthz"))[0] == 200
    async with asyncio.timeout(10):
        while "CRD" not in (seen := await answer(url + "/readyz"))[1]:
            assert seen[0] == 503
            await asyncio.sleep(0.05)
    began = asyncio.get_running_loop().time()
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 0
    assert asyncio.get_running_loop().time() - began < 2.0


async def test_a_port_that_is_taken_ends_it_with_words(fake, start):
    fake.answers = [status(404, "NotFound", "404 page not found")]
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        process, _ = await start(port=taken.getsockname()[1])
        _, words = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1 and b"the operator cannot run" in words and b"address already in use" in words.lower()
