"""Peers of the coordinator that are no agents, or not those that they say they are: refused with a sentence, the good ones undisturbed."""

import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster import substrate
from installation import Installation
from kube import eventually
from lepton_trainer.protocol import messages as m
from lepton_trainer.protocol import names
from lepton_trainer.protocol.frames import MAX_FRAME, Decoder, encode
from trainings import Training, Trainings

AUDIENCE = names.TOKEN_AUDIENCE


@pytest.fixture
def port(operator: Installation) -> Iterator[int]:
    """A loopback port that leads to the leader's coordinator."""
    pod = operator.leader_pod()["metadata"]["name"]
    command = [
        substrate.kubectl_program(),
        f"--kubeconfig={operator.kubeconfig}",
        "-n",
        operator.namespace,
        "port-forward",
        f"pod/{pod}",
        ":7443",
    ]
    forward = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert forward.stdout is not None
        yield int(forward.stdout.readline().split(":")[1].split()[0])
    finally:
        forward.terminate()
        forward.wait(10)


@contextmanager
def speaking(operator: Installation, port: int, authority: str) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to the coordinator, whose certificate is checked as agents do."""
    context = ssl.create_default_context(cadata=authority)
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    with context.wrap_socket(raw, server_hostname=f"lepton-coordinator.{operator.namespace}.svc") as connection:
        yield connection


def answers(connection: ssl.SSLSocket) -> list[object]:
    """Everything that the coordinator says until it closes the connection."""
    decoder, told = Decoder(), []
    while data := connection.recv(65536):
        told += list(decoder.feed(data))
    return told


def authority_of(job: Training) -> str:
    """The CA that a worker was told to trust."""
    return str(job.pods()[0]["metadata"]["annotations"]["training.lepton.ai/coordinator-ca"])


def token(job: Training, *arguments: str) -> str:
    return job.kubectl("create", "token", "default", "--duration=10m", *arguments).strip()


def bound_to(pod: dict) -> list[str]:  # type: ignore[type-arg]
    meta = pod["metadata"]
    return [f"--audience={AUDIENCE}", "--bound-object-kind=Pod", f"--bound-object-name={meta['name']}", f"--bound-object-uid={meta['uid']}"]


def join(job: Training, pod: dict, proof: str, worker: int = 0) -> m.Join:  # type: ignore[type-arg]
    uid = job.body()["metadata"]["uid"]
    key = f"{job.kubectl.namespace}/{job.name}"
    return m.Join(m.VERSION, key, uid, worker, pod["metadata"]["uid"], "f" * 32, proof, "10.0.0.1", 1, m.State(seq=1))


def test_whoever_cannot_prove_to_be_the_worker_is_refused(operator: Installation, trainings: Trainings, port: int) -> None:
    job, other = trainings.group("mine"), trainings.plain("theirs", "import time; time.sleep(300)")
    before = job.steps_in_generation(1, 120)
    theirs = eventually(lambda: other.pods(ended=False), 60)[0]
    pod, authority = job.pods()[0], authority_of(job)
    own = token(job, *bound_to(pod))
    joins = {
        "another job's worker, with a good token of its own": join(job, theirs, token(job, *bound_to(theirs))),
        "a worker in another one's place": join(job, pod, own, worker=1),
    }
    proofs = {
        "nonsense": "not-a-token",
        "of another audience": token(job, "--audience=somebody-else"),
        "of the API server": token(job),
        "bound to no pod": token(job, f"--audience={AUDIENCE}"),
        "of another job's worker": token(job, *bound_to(theirs)),
        "of another worker of the job": token(job, *bound_to(job.pods()[1])),
        "cut": own[:-4] + "AAAA",
    }
    expected = [(what, tried, m.UNKNOWN_WORKER) for what, tried in joins.items()]
    expected += [(f"a token {what}", join(job, pod, proof), m.BAD_TOKEN) for what, proof in proofs.items()]
    for what, tried, code in expected:
        with speaking(operator, port, authority) as connection:
            connection.sendall(encode(tried))
            told = answers(connection)
        (refused,) = told
        assert isinstance(refused, m.Refused) and not refused.final, f"{what}: {told}"
        assert refused.code == code and len(refused.message.split()) >= 4, f"{what}: {told}"
        assert tried.token not in refused.message
    job.steps_on()
    assert sorted(job.ledger().generations) == sorted(before.generations)
    assert job.complete()["restarts"]["total"] == 0


def test_garbage_oversized_half_and_silent_peers_are_put_out(operator: Installation, trainings: Trainings, port: int) -> None:
    job = trainings.group("steady")
    before = job.steps_in_generation(1, 120)
    authority = authority_of(job)
    good = encode(join(job, job.pods()[0], "x"))
    for junk in (b"GET / HTTP/1.1\r\n\r\n", (MAX_FRAME + 1).to_bytes(4, "big") + b"x" * 1000, b"\x00\x00\x00\x10" + b"\xff" * 16):
        with speaking(operator, port, authority) as connection:
            connection.sendall(junk)
            told = answers(connection)
            assert isinstance(told[-1], m.Refused) and told[-1].code == m.BAD_MESSAGE, (junk[:20], told)
    for half in (b"", good[:3], good[: len(good) // 2]):
        with speaking(operator, port, authority) as connection:
            began = time.monotonic()
            connection.sendall(half)
            answers(connection)  # it is closed by the other side
            assert time.monotonic() - began < 15
    with socket.create_connection(("127.0.0.1", port), timeout=60) as silent:  # not even TLS
        assert silent.recv(1) == b""
    job.steps_on()
    assert sorted(job.ledger().generations) == sorted(before.generations)
    late = trainings.plain("late", "print('joined')")
    assert late.wait("Finished")["state"] == "Complete"
    assert job.complete()["restarts"]["total"] == 0
