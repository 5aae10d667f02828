"""Projected service-account tokens as a cluster signs them, from keys of the test's own."""

import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from lepton_trainer.protocol.names import TOKEN_AUDIENCE

ISSUER = "https://kubernetes.default.svc.cluster.local"


class Cluster:
    """One cluster's signing key; `jwks()` is what its /openid/v1/jwks answers."""

    def __init__(self, algorithm: str = "RS256", kid: str = "key-1") -> None:
        self.algorithm, self.kid = algorithm, kid
        self._key: Any = rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())

    def jwks(self) -> dict[str, Any]:
        kind = jwt.algorithms.RSAAlgorithm if self.algorithm == "RS256" else jwt.algorithms.ECAlgorithm
        return {"keys": [{**json.loads(kind.to_jwk(self._key.public_key())), "kid": self.kid, "use": "sig", "alg": self.algorithm}]}

    def token(self, uid: str, namespace: str = "default", **changes: Any) -> str:
        now = int(time.time())
        body = {
            "aud": [TOKEN_AUDIENCE],
            "exp": now + 3600,
            "iat": now,
            "nbf": now,
            "iss": ISSUER,
            "sub": f"system:serviceaccount:{namespace}:default",
            "kubernetes.io": {
                "namespace": namespace,
                "node": {"name": "node-1", "uid": "node-uid"},
                "pod": {"name": f"name-of-{uid}", "uid": uid},
                "serviceaccount": {"name": "default", "uid": "sa-uid"},
            },
        }
        kept = {key: value for key, value in {**body, **changes}.items() if value is not None}
        return jwt.encode(kept, self._key, algorithm=self.algorithm, headers={"kid": self.kid})
