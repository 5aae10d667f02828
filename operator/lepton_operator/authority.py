"""Where the coordinator's CA is kept and its leaf certificates are put: one Secret, filled once by the leader, and a private folder.

Workers trust the Secret's `ca.crt`, which reaches them as a pod annotation: the CA, and after a renewal the one before it too.
"""

import base64
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

from lepton_operator.api import Api
from lepton_operator.coordinator.certificates import Pair, bundle, check_authority, due, issue, new_authority
from lepton_operator.coordinator.link import TlsFiles
from lepton_operator.substrate import Conflict

log = logging.getLogger(__name__)

CERTIFICATE, KEY = "ca.crt", "ca.key"
RENEW_SECONDS = 365 * 86400.0
"""A CA with less time left than this is followed by a new one."""


class AuthoritySecret:
    """The one Secret; needs `get` and `patch` on its name. Raises what `Api` raises, and `CertificateError` for contents that are no CA."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/secrets/{name}"

    async def read(self, now: float) -> Pair | None:
        """What the Secret holds, `certificate` being the whole bundle; None while it is empty. `Gone`: the Secret itself is missing."""
        found = _pair(await self._api.request("get", "secrets", self._path))
        if found is not None:
            check_authority(found, now)
        return found

    async def fill(self, now: float) -> Pair:
        """For the leader: the Secret's CA, made now if there is none or it is due. What another wrote in between is kept."""
        while True:
            body = await self._api.request("get", "secrets", self._path)
            found = _pair(body)
            if found is not None and not _ages(found, now):
                check_authority(found, now)
                return found
            made = new_authority(now)
            made = Pair(bundle(made.certificate, found.certificate if found else "", now), made.key)
            data = {CERTIFICATE: made.certificate, KEY: made.key}
            patch = {
                "metadata": {"resourceVersion": body["metadata"]["resourceVersion"]},
                "data": {name: base64.b64encode(text.encode()).decode() for name, text in data.items()},
            }
            try:
                await self._api.request("patch", "secrets", self._path, body=patch, content_type="application/merge-patch+json")
            except Conflict:
                continue
            log.info("made %s CA for the coordinator", "a new" if found else "the first")
            return made


def _pair(body: dict[str, Any]) -> Pair | None:
    data = body.get("data") or {}
    if not data.get(CERTIFICATE) or not data.get(KEY):
        return None
    return Pair(*(base64.b64decode(data[name]).decode("utf-8", "replace") for name in (CERTIFICATE, KEY)))


def _ages(authority: Pair, now: float) -> bool:
    try:
        until = x509.load_pem_x509_certificate(authority.certificate.encode()).not_valid_after_utc
    except ValueError:
        return False  # no CA at all: not ours to overwrite, the check says so
    return until.timestamp() - now < RENEW_SECONDS


class LeafFiles:
    """The leaf of this process in files that only it can read; a new pair of names each time, so that no reader sees half."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._folder = tempfile.TemporaryDirectory(prefix="lepton-operator-")
        self._leaf: Pair | None = None
        self._count = 0

    def renewed(self, authority: Pair, now: float) -> TlsFiles | None:
        """Paths of a new leaf when one is due, else None. Raises `CertificateError`."""
        if self._leaf is not None and not due(self._leaf, authority, now):
            return None
        self._leaf = issue(authority, self._names, now)
        self._count += 1
        paths = [Path(self._folder.name, f"leaf-{self._count}.{suffix}") for suffix in ("crt", "key")]
        for path, text in zip(paths, (self._leaf.certificate, self._leaf.key), strict=True):
            path.touch(mode=0o600)
            path.write_text(text)
        return TlsFiles(*map(os.fspath, paths))

    def close(self) -> None:
        self._folder.cleanup()
