"""Who an agent is: its projected service-account token, verified offline against the cluster's signing keys; or a job's shared secret.

A token says which pod carries it; the job's own list says which pods may join and as which worker. Nothing here does I/O and the time is
passed in. Source of the claims: Kubernetes' `kubernetes.io` private claims of bound tokens (KEP-1205), as a 1.35 API server writes them.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from lepton_operator.worker import GroupOrder
from lepton_trainer.protocol.messages import BAD_TOKEN, UNKNOWN_WORKER, Join

SKEW_SECONDS = 60.0
RSA_ALGORITHMS = ("RS256", "RS384", "RS512")
CURVE_ALGORITHMS = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",)}


@dataclass(frozen=True, slots=True)
class Claims:
    namespace: str
    pod_uid: str
    pod_name: str = ""
    node: str = ""


class Unidentified(Exception):
    """The token proves nothing; `code` is one of protocol.messages' codes, `args[0]` says why without repeating the token."""

    def __init__(self, message: str, code: str = BAD_TOKEN) -> None:
        super().__init__(message)
        self.code = code


class UnknownKey(Unidentified):
    """Signed with a key that is not among those known: perhaps the cluster has rotated its keys."""

    def __init__(self, kid: str) -> None:
        super().__init__(f"the token is signed with key {kid!r}, which is not known here; try again")
        self.kid = kid


class Keys:
    """The signing keys of a cluster, parsed once: verifying costs about 0.1 ms, parsing more."""

    def __init__(self, jwks: Mapping[str, Any], issuer: str, audience: str) -> None:
        self._issuer = issuer
        self._audience = audience
        self._keys: dict[str, tuple[Any, tuple[str, ...]]] = {}
        for plain in jwks.get("keys") or ():
            algorithms = RSA_ALGORITHMS if plain.get("kty") == "RSA" else CURVE_ALGORITHMS.get(str(plain.get("crv")), ())
            if algorithms:
                try:
                    self._keys[str(plain.get("kid", ""))] = (jwt.PyJWK(plain, algorithm=algorithms[0]).key, algorithms)
                except jwt.PyJWTError:
                    continue  # a key of a kind that we cannot use verifies nothing; the others still do

    def __len__(self) -> int:
        return len(self._keys)

    def verify(self, token: str, now: float) -> Claims:
        """The claims of a token that is genuine, ours and valid at `now` (unix seconds). Raises `Unidentified`, `UnknownKey`."""
        try:
            kid = str(jwt.get_unverified_header(token).get("kid", ""))
        except jwt.PyJWTError as error:
            raise Unidentified(f"not a token: {error}") from None
        found = self._keys.get(kid)
        if found is None:
            raise UnknownKey(kid)
        key, algorithms = found
        unchecked = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "require": ["exp", "iss", "aud"]}
        try:
            body = jwt.decode(token, key, algorithms=list(algorithms), audience=self._audience, issuer=self._issuer, options=unchecked)  # type: ignore[arg-type]
        except jwt.PyJWTError as error:
            raise Unidentified(f"the token is refused: {error}") from None
        _check_times(body, now)
        return read_claims(body)


def _check_times(body: Mapping[str, Any], now: float) -> None:
    expires, begins = body.get("exp"), body.get("nbf", 0)
    if not isinstance(expires, int | float) or not isinstance(begins, int | float):
        raise Unidentified("the token's times are not numbers")
    if now > expires + SKEW_SECONDS:
        raise Unidentified(f"the token expired {now - expires:.0f} s ago: read the token file again at each connect")
    if now < begins - SKEW_SECONDS:
        raise Unidentified(f"the token is not valid for another {begins - now:.0f} s: is this machine's clock right?")


def read_claims(body: Mapping[str, Any]) -> Claims:
    """The pod that a verified token is bound to. Raises `Unidentified` for a token that is bound to none."""
    private = body.get("kubernetes.io")
    pod = private.get("pod") if isinstance(private, dict) else None
    if not isinstance(private, dict) or not isinstance(pod, dict) or not pod.get("uid"):
        raise Unidentified("the token is not bound to a pod: mount a projected service-account token")
    node = private.get("node")
    return Claims(
        namespace=str(private.get("namespace", "")),
        pod_uid=str(pod["uid"]),
        pod_name=str(pod.get("name", "")),
        node=str(node.get("name", "")) if isinstance(node, dict) else "",
    )


def check_secret(join: Join, group: GroupOrder) -> None:
    """Local mode: the job's shared secret. Raises `Unidentified`."""
    if not group.token or not hmac.compare_digest(join.token.encode(), group.token.encode()):
        raise Unidentified("the token is not this job's")


def check_claims(join: Join, claims: Claims) -> None:
    """A token speaks for its own pod alone. Raises `Unidentified`."""
    namespace = join.job.partition("/")[0]
    if claims.pod_uid != join.worker_uid:
        raise Unidentified(f"the token is that of pod {claims.pod_uid}, not of {join.worker_uid}")
    if claims.namespace != namespace:
        raise Unidentified(f"the token is of namespace {claims.namespace!r}, the job of {namespace!r}")


def check_place(join: Join, group: GroupOrder) -> None:
    """The worker has its place in the job it names. Raises `Unidentified` with UNKNOWN_WORKER: it may be known a moment later."""
    index = group.workers.get(join.worker_uid)
    if join.job_uid != group.job_uid:
        raise Unidentified(f"{join.job} is another job of that name now (uid {group.job_uid})", UNKNOWN_WORKER)
    if index is None:
        raise Unidentified(f"{join.worker_uid} is not a worker of {join.job}", UNKNOWN_WORKER)
    if index != join.worker:
        raise Unidentified(f"{join.worker_uid} is worker {index} of {join.job}, not {join.worker}", UNKNOWN_WORKER)
