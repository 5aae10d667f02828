"""The server as a client meets it: right answers, refusals that say why, models that change under load, and an orderly end."""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import trainer_runs as runs
from lepton_trainer.train import loop, tasks
from lepton_trainer.train.cli import main
from lepton_trainer.train.config import TaskConfig
from lepton_trainer.train.delivery import manifest
from lepton_trainer.train.serving.completions import Completions
from lepton_trainer.train.serving.server import BODY
from lepton_trainer.train.settings.delivery import Delivery, Export
from lepton_trainer.train.storage import open_storage

ROOT = Path(__file__).parents[3]
PATIENCE = 120.0


def eventually(ask: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := ask()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


class Running:
    """A server of its own process on a free port, ready."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-m", "lepton_trainer", "serve", str(directory), "--port", "0"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "trainer_image"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        self.lines: list[str] = []
        address: queue.Queue[str] = queue.Queue()

        def read(stream: Any) -> None:
            for line in stream:
                self.lines.append(line)
                if found := re.match(r"listening on (\S+)", line):
                    address.put(found[1])

        threading.Thread(target=read, args=(self.process.stdout,), daemon=True).start()
        self.url = address.get(timeout=PATIENCE)
        eventually(lambda: self.get("/readyz")[0] == 200)

    def get(self, path: str) -> tuple[int, Any]:
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, body: bytes, kind: str = "application/json", path: str = "/predict") -> tuple[int, Any]:
        return self._ask(urllib.request.Request(self.url + path, data=body, headers={"Content-Type": kind}))

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        status, answer = self.post(json.dumps({"instances": instances}).encode())
        assert status == 200, answer
        predictions: list[dict[str, Any]] = answer["predictions"]
        return predictions

    def _ask(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                status, body = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        return status, json.loads(body) if body[:1] == b"{" else body.decode()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def exported(config: TaskConfig, delivery: Delivery | None = None) -> Path:
    loop.train(config, delivery or Delivery(export=Export()))
    return Path(config.checkpoint.path) / "model"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[TaskConfig, Path]:
    out = tmp_path_factory.mktemp("digits")
    config = runs.digits(out, training={"steps": 60}, optimizer={"learningRate": 0.01})
    return config, exported(config)


@pytest.fixture(scope="module")
def server(digits: tuple[TaskConfig, Path]) -> Iterator[Running]:
    running = Running(digits[1])
    yield running
    running.stop()


def held_out(config: TaskConfig) -> tuple[list[Any], list[int]]:
    data = tasks.build(config).data  # type: ignore[attr-defined]
    return np.asarray(data.test_images).tolist(), np.asarray(data.test_labels).tolist()


def test_the_answers_on_the_held_out_split_are_those_of_the_evaluation(digits: tuple[TaskConfig, Path], server: Running) -> None:
    images, labels = held_out(digits[0])
    answers = [answer for first in range(0, len(images), 100) for answer in server.predict(images[first : first + 100])]
    right = sum(answer["index"] == label for answer, label in zip(answers, labels, strict=True))
    told = server.get("/v1/model")[1]
    assert right / len(labels) == told["metrics"]["accuracy"] == loop.train(digits[0]).figures["accuracy"]
    assert all(answer["label"] == str(answer["index"]) and abs(sum(answer["probabilities"]) - 1.0) < 1e-5 for answer in answers)
    assert told["task"] == "image-classification" and told["instance"].startswith("8 x 8 numbers from 0 to 255")


def test_a_picture_file_is_answered_like_its_pixels(digits: tuple[TaskConfig, Path], server: Running) -> None:
    pixels = held_out(digits[0])[0][0]
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels[0], dtype=np.uint8)).save(stream, "PNG")
    three = server.predict([pixels, pixels[0], {"image": base64.b64encode(stream.getvalue()).decode()}])
    assert three[0]["index"] == three[1]["index"] == three[2]["index"]
    assert three[0]["probabilities"] == pytest.approx(three[2]["probabilities"], abs=1e-5)


ROW = [[0] * 8] * 8
WRONG: list[tuple[str, bytes, int, str]] = [
    ("cut JSON", b'{"x', 400, "not JSON: Unterminated string starting at at line 1, column 2"),
    ("no object", b"[]", 400, 'expected {"instances": [...]}'),
    ("no instances", b"{}", 400, "found a dict without a list of instances"),
    ("none of them", b'{"instances": []}', 400, "found 0 instances"),
    ("too many", json.dumps({"instances": [0] * 1025}).encode(), 400, "found 1025 instances"),
    ("another shape", json.dumps({"instances": [ROW, [[1, 2], [3, 4]]]}).encode(), 400, "instance 1: expected 8 x 8 numbers"),
    ("ragged", b'{"instances": [[[1, 2], [3]]]}', 400, "not all of one length"),
    ("empty image", b'{"instances": [[]]}', 400, "found nested lists of 0"),
    ("NaN", b'{"instances": [[[NaN]]]}', 400, "NaN is no number"),
    ("infinity", json.dumps({"instances": [ROW]}).replace("0", "1e999", 1).encode(), 400, "outside 0 to 255"),
    ("negative", json.dumps({"instances": [ROW]}).replace("0", "-1", 1).encode(), 400, "outside 0 to 255"),
    ("huge", json.dumps({"instances": [ROW]}).replace("0", "9" * 400, 1).encode(), 400, "else than numbers"),
    ("text for numbers", json.dumps({"instances": [[["1"] * 8] * 8]}).encode(), 400, "else than numbers"),
    ("a number", b'{"instances": [3]}', 400, "found 3"),
    ("no base64", b'{"instances": [{"image": "%%%"}]}', 400, "image is not base64"),
    ("no picture", b'{"instances": [{"image": "aGVsbG8="}]}', 400, "image is no whole picture file"),
    ("no UTF-8", b'{"instances": ["\xff"]}', 400, "not UTF-8: invalid start byte"),
    ("too deep", b'{"instances": ' + b"[" * 100_000, 400, "JSON"),
]


@pytest.mark.parametrize(("body", "status", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_request_is_told_what_was_expected_and_harms_nobody(body: bytes, status: int, message: str, server: Running) -> None:
    found, answer = server.post(body)
    assert found == status and message in answer["error"], answer
    assert server.predict([ROW]) and server.process.poll() is None


def test_a_wrong_type_and_50_mib_are_refused_and_harm_nobody(server: Running) -> None:
    assert server.post(b"instances=1", "application/x-www-form-urlencoded")[0] == 415
    assert "expected Content-Type application/json, found text/plain" in server.post(b"{}", "text/plain")[1]["error"]
    host, port = server.url.removeprefix("http://").split(":")
    for length in (f"Content-Length: {50 << 20}", "Transfer-Encoding: chunked"):
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{length}\r\n\r\n"
            connection.sendall(head.encode())
            if "chunked" in length:
                for _ in range(BODY // 65_536 + 2):
                    connection.sendall(b"10000\r\n" + b" " * 65_536 + b"\r\n")
            answer = connection.recv(65_536).decode()
        assert answer.startswith("HTTP/1.1 413") and "send fewer instances at once" in answer
    assert server.predict([ROW]) and server.process.poll() is None


def test_paths_and_methods_that_are_not_there_are_told(server: Running) -> None:
    assert server.get("/predict")[0] == 405 and "There is POST /predict" in server.get("/nothing")[1]["error"]
    assert server.get("/healthz") == (200, {"alive": True})


def test_the_metrics_are_those_of_the_manual_and_count(server: Running) -> None:
    server.predict([ROW, ROW])
    text = server.get("/metrics")[1]
    exposed = {}
    for family in text_string_to_metric_families(text):
        labels = {label for sample in family.samples for label in sample.labels}
        name = family.name + ("_total" if family.type == "counter" else "_info" if family.type == "info" else "")
        exposed[name] = (family.type, labels, family.documentation)
    rows = re.findall(r"^\| `(lepton_serve_\w+)` \| (\w+) \| ([^|]*)\| (.*?) \|$", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert exposed == {name: (kind, set(re.findall(r"`(\w+)`", labels)), about) for name, kind, labels, about in rows}
    assert re.search(r'^lepton_serve_requests_total\{code="200"\} [1-9]', text, re.MULTILINE)
    assert re.search(r"^lepton_serve_ready 1\.0", text, re.MULTILINE)


def test_a_newer_model_takes_over_without_a_failed_request_and_a_sigterm_ends_it_in_order(tmp_path: Path) -> None:
    directory = exported(runs.digits(tmp_path, training={"steps": 2}))
    running = Running(directory)
    statuses: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            statuses.append(running.post(json.dumps({"instances": [ROW]}).encode())[0])

    clients = [threading.Thread(target=ask) for _ in range(4)]
    try:
        for client in clients:
            client.start()
        before = running.get("/v1/model")[1]["digest"]
        again = runs.digits(tmp_path, training={"steps": 4})
        exported(again)
        newer = manifest.read(open_storage(str(directory)))
        assert newer is not None and newer["digest"] != before
        eventually(lambda: running.get("/v1/model")[1]["digest"] == newer["digest"])
        # One that is damaged is not taken.
        broken = json.loads((directory / "model.json").read_text()) | {"digest": "0" * 64}
        (directory / newer["version"] / manifest.WEIGHTS).write_bytes(b"damaged")
        (directory / "model.json").write_text(json.dumps(broken))
        eventually(lambda: any("has changed since it was exported" in line for line in running.lines))
        assert running.get("/v1/model")[1]["digest"] == newer["digest"]
        running.process.send_signal(signal.SIGTERM)
        eventually(lambda: running.get("/readyz")[0] == 503)
        seen = len(statuses)
        eventually(lambda: len(statuses) > seen)  # it still answers
        over.set()
        for client in clients:
            client.join()
        assert running.process.wait(PATIENCE) == 0
        assert set(statuses) == {200}
    finally:
        over.set()
        running.stop()


def test_a_place_without_a_model_and_a_port_in_use_end_with_code_2(
    digits: tuple[TaskConfig, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path)]) == 2
    assert f"{tmp_path}: holds no model.json, so no model is exported there" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "nowhere")]) == 2 and "there is no such directory" in capsys.readouterr().err
    (tmp_path / "model.json").write_text("{}")
    assert main(["serve", str(tmp_path)]) == 2 and "model.json is no model's manifest" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(digits[1]), "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}: the port is in use by another program" in capsys.readouterr().err


def test_an_optimised_language_model_completes_prompts(text: Path, tmp_path: Path) -> None:
    from lepton_trainer.train.settings.delivery import Optimise

    config = runs.language(text, tmp_path, training={"steps": 60}, optimizer={"learningRate": 0.003})
    directory = exported(config, Delivery(export=Export(), optimise=Optimise(methods=["quantise"], tolerance=1.0)))
    running = Running(directory)
    try:
        told = running.get("/v1/model")[1]
        assert told["optimisations"][0]["kept"] and told["model"]["int8"]
        long = {"prompt": "the rank that", "max_tokens": 24}
        first, short, same, other, warm = running.predict(
            [
                long,
                {"prompt": "each sample", "max_tokens": 3},
                long,
                {**long, "temperature": 1.5, "seed": 1},
                {**long, "temperature": 1.5, "seed": 1},
            ]
        )
        assert first == same and first["count"] == 24 and first["finish"] == "length" and short["count"] == 3
        assert other == warm != first, "the seed decides"
        assert running.predict([long]) == [first], "alone and among others the same"
        assert running.predict(["", "x" * 1000])[0]["count"] <= 32
        for wrong, message in (
            ({"prompt": 3}, "found 3 as prompt"),
            ({"prompt": "a", "max_tokens": 0}, "found 0 as max_tokens"),
            ({"prompt": "a", "temperature": "hot"}, "found 'hot' as temperature"),
            ({"prompt": "a", "top_k": 1}, "found the key 'top_k'"),
            ({"prompt": "\ud800"}, "half of a surrogate pair"),
            (["a"], "found ['a']"),
        ):
            status, answer = running.post(json.dumps({"instances": [wrong]}).encode())
            assert status == 400 and message in answer["error"]
    finally:
        running.stop()


def test_a_model_of_tokens_takes_and_gives_tokens() -> None:
    adapter = Completions({"tokenizer": "", "vocabulary": 10, "context": 4})

    class Next(torch.nn.Module):
        """Says that each token is followed by the next number."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot((x + 1) % 10, 10).float()

    items = [adapter.read({"tokens": [7], "max_tokens": 5}), adapter.read({"tokens": [1, 2, 3, 4, 5, 6], "max_tokens": 2})]
    with torch.inference_mode():
        assert adapter.answer(Next(), items) == [
            {"tokens": [8, 9, 0, 1, 2], "count": 5, "finish": "length"},
            {"tokens": [7, 8], "count": 2, "finish": "length"},
        ]
