"""Who may join, and as what."""

import base64
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from lepton_operator.coordinator.identity import Claims, Keys, Unidentified, UnknownKey, check_claims, check_place, check_secret
from lepton_trainer.protocol import messages as m
from lepton_trainer.protocol.names import TOKEN_AUDIENCE
from unit.coordinator.cluster_tokens import ISSUER, Cluster
from unit.coordinator.orders import JOB, JOB_UID, group

CLUSTERS = {algorithm: Cluster(algorithm) for algorithm in ("RS256", "ES256")}
NOW = time.time()


def keys_of(cluster: Cluster) -> Keys:
    return Keys(cluster.jwks(), ISSUER, TOKEN_AUDIENCE)


def join(**changes: Any) -> m.Join:
    defaults: dict[str, Any] = {"job": JOB, "job_uid": JOB_UID, "worker": 0, "worker_uid": "pod-0", "boot": "a", "token": "secret"}
    return m.Join(version=m.VERSION, host="10.0.0.1", procs=1, state=m.State(seq=0), **{**defaults, **changes})


@pytest.mark.parametrize("algorithm", CLUSTERS)
def test_a_genuine_token_names_its_pod(algorithm: str) -> None:
    cluster = CLUSTERS[algorithm]
    claims = keys_of(cluster).verify(cluster.token("pod-0"), time.time())
    assert claims == Claims("default", "pod-0", "name-of-pod-0", "node-1")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"exp": int(NOW) - 3600}, "expired"),
        ({"nbf": int(NOW) + 3600}, "not valid for another"),
        ({"aud": ["https://kubernetes.default.svc"]}, "[Aa]udience"),
        ({"aud": None}, "aud"),
        ({"iss": "https://another.cluster"}, "[Ii]ssuer"),
        ({"exp": None}, "exp"),
        ({"exp": "soon"}, "not numbers|[Ee]xpir"),
        ({"kubernetes.io": None}, "not bound to a pod"),
        ({"kubernetes.io": {"namespace": "default"}}, "not bound to a pod"),
    ],
)
def test_a_token_that_is_not_ours_is_refused_with_the_reason(changes: dict[str, Any], sentence: str) -> None:
    cluster = CLUSTERS["RS256"]
    with pytest.raises(Unidentified, match=sentence) as caught:
        keys_of(cluster).verify(cluster.token("pod-0", **changes), time.time())
    assert caught.value.code == m.BAD_TOKEN


def test_clocks_may_differ_by_a_minute() -> None:
    cluster = CLUSTERS["RS256"]
    token = cluster.token("pod-0", exp=int(time.time()) - 50, nbf=int(time.time()) + 50)
    assert keys_of(cluster).verify(token, time.time()).pod_uid == "pod-0"


def test_an_unknown_key_asks_for_the_newest_ones() -> None:
    with pytest.raises(UnknownKey, match="key-2") as caught:
        keys_of(CLUSTERS["RS256"]).verify(Cluster("ES256", kid="key-2").token("pod-0"), time.time())
    assert caught.value.kid == "key-2"


def test_a_token_of_another_key_under_our_key_id_is_refused() -> None:
    with pytest.raises(Unidentified, match="refused"):
        keys_of(CLUSTERS["ES256"]).verify(Cluster("ES256").token("pod-0"), time.time())


def test_a_token_signed_with_the_public_key_as_a_shared_secret_is_refused() -> None:
    cluster = CLUSTERS["RS256"]
    public = jwt.PyJWK(cluster.jwks()["keys"][0]).key
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    body = jwt.decode(cluster.token("pod-0"), options={"verify_signature": False})
    header = {"alg": "HS256", "typ": "JWT", "kid": cluster.kid}
    signing_input = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, body))
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(signing_input.encode(), pem)
    token = signing_input + "." + base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    with pytest.raises(Unidentified):
        keys_of(cluster).verify(token, time.time())


@pytest.mark.parametrize("token", ["", "abc", "a.b.c", "é", "." * 50])
def test_what_is_no_token_at_all_is_refused(token: str) -> None:
    with pytest.raises(Unidentified):
        keys_of(CLUSTERS["RS256"]).verify(token, time.time())


def test_keys_of_kinds_that_we_cannot_use_do_not_spoil_the_others() -> None:
    cluster = CLUSTERS["RS256"]
    odd = [{"kty": "oct", "k": "AAAA", "kid": "x"}, {"kty": "RSA", "kid": "broken"}, {"kty": "EC", "crv": "P-256", "kid": "half"}]
    keys = Keys({"keys": [*odd, *cluster.jwks()["keys"]]}, ISSUER, TOKEN_AUDIENCE)
    assert len(keys) == 1
    assert keys.verify(cluster.token("pod-0"), time.time()).pod_uid == "pod-0"


def test_a_token_speaks_for_its_own_pod_and_namespace_alone() -> None:
    check_claims(join(), Claims("default", "pod-0"))
    with pytest.raises(Unidentified, match="pod-1, not of pod-0"):
        check_claims(join(), Claims("default", "pod-1"))
    with pytest.raises(Unidentified, match="namespace 'team-b'"):
        check_claims(join(), Claims("team-b", "pod-0"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"worker": 1}, "is worker 0"), ({"worker_uid": "pod-9"}, "not a worker"), ({"job_uid": "older"}, "another job of that name")],
)
def test_a_worker_has_its_place_in_the_job_that_it_names(changes: dict[str, Any], sentence: str) -> None:
    check_place(join(), group(2))
    with pytest.raises(Unidentified, match=sentence) as caught:
        check_place(join(**changes), group(2))
    assert caught.value.code == m.UNKNOWN_WORKER


@pytest.mark.parametrize("token", ["", "secre", "secret2", "é"])
def test_a_shared_secret_must_be_the_jobs(token: str) -> None:
    check_secret(join(), group(1))
    with pytest.raises(Unidentified):
        check_secret(join(token=token), group(1))


def test_a_job_without_a_secret_accepts_none() -> None:
    with pytest.raises(Unidentified):
        check_secret(join(token=""), group(1, token=""))
