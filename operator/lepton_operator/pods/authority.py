"""Where the coordinator's CA is kept and its leaf certificates are put: one Secret, filled once by the leader, and a private folder.

Workers trust the Secret's `ca.crt`, which reaches them as a pod annotation: the CA, and after a renewal the one before it too.
"""

import base64
import logging
import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from lepton_operator.coordinator.tls import TlsFiles
from lepton_operator.pods.api import Api
from lepton_operator.pods.certificates import Authority, new_authority, new_leaf
from lepton_operator.substrate import Conflict

log = logging.getLogger(__name__)

CERTIFICATE, KEY = "ca.crt", "ca.key"
LEAF_ROTATE = timedelta(days=1)


class AuthorityError(ValueError):
    """What the Secret holds is no CA of ours; `args[0]` says what to do."""


class AuthoritySecret:
    """The one Secret; needs `get` and `patch` on its name. Raises what `Api` raises (`Gone`: it is missing) and `AuthorityError`."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api = api
        self._name = f"{namespace}/{name}"
        self._path = f"/api/v1/namespaces/{namespace}/secrets/{name}"

    async def read(self) -> Authority | None:
        """What the Secret holds; None while it is empty."""
        return self._authority(await self._api.request("get", "secrets", self._path))

    async def fill(self) -> Authority:
        """For the leader: the Secret's CA, made now if there is none or it is due. What another wrote in between is kept."""
        while True:
            now = datetime.now(UTC)
            body = await self._api.request("get", "secrets", self._path)
            found = self._authority(body)
            if found is not None and not found.due(now):
                return found
            made = new_authority(now, found)
            patch = {
                "metadata": {"resourceVersion": body["metadata"]["resourceVersion"]},
                "data": {CERTIFICATE: _encoded(made.bundle), KEY: _encoded(made.key)},
            }
            try:
                await self._api.request("patch", "secrets", self._path, body=patch, content_type="application/merge-patch+json")
            except Conflict:
                continue
            log.info("made %s CA for the coordinator", "a new" if found else "the first")
            return made

    def _authority(self, body: dict[str, Any]) -> Authority | None:
        data = body.get("data") or {}
        if not data.get(CERTIFICATE) and not data.get(KEY):
            return None
        try:
            authority = Authority(*(base64.b64decode(data[name]).decode() for name in (CERTIFICATE, KEY)))
            key = serialization.load_pem_private_key(authority.key.encode(), None)
            if key.public_key() != authority.certificate.public_key():
                raise ValueError("the key is not that of the certificate")
        except (KeyError, TypeError, ValueError) as error:
            remedy = "delete its data, and the leader makes a new CA"
            raise AuthorityError(f"the Secret {self._name} holds no CA that can be used ({error}): {remedy}") from None
        return authority


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class LeafFiles:
    """The leaf of this process in files that only it can read; a new pair of names each time, so that no reader sees half."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._folder = tempfile.TemporaryDirectory(prefix="lepton-operator-")
        self._signed: tuple[Authority, datetime] | None = None
        self._count = 0

    def renewed(self, authority: Authority, now: datetime) -> TlsFiles | None:
        """Paths of a new leaf when one is due (a day old, or another CA's), else None."""
        if self._signed is not None and self._signed[0] == authority and now - self._signed[1] < LEAF_ROTATE:
            return None
        texts = new_leaf(authority, self._names, now)
        self._signed = (authority, now)
        self._count += 1
        paths = [Path(self._folder.name, f"leaf-{self._count}.{suffix}") for suffix in ("crt", "key")]
        for path, text in zip(paths, texts, strict=True):
            path.touch(mode=0o600)
            path.write_text(text)
        return TlsFiles(*map(os.fspath, paths))

    def close(self) -> None:
        self._folder.cleanup()
