"""How agents' tokens are judged: by the cluster's signing keys, offline, or by the API server where it hides the keys."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from lepton_operator import clock
from lepton_operator.coordinator.identity import Claims, Unidentified
from lepton_operator.pods.api import AlreadyExists, Api, Expired
from lepton_operator.substrate import Conflict, Gone, Rejected, Unavailable
from lepton_trainer.protocol.names import TOKEN_AUDIENCE

log = logging.getLogger(__name__)

REFRESH_SECONDS = 600.0
FEWEST_SECONDS = 10.0
"""Between two fetches, however many unknown keys are named: a forged key id costs the API server nothing."""
FAILURES = (AlreadyExists, Conflict, Expired, Gone, Rejected, Unavailable)


class SigningKeys:
    """Fetches the keys when started, every ten minutes and when asked; `apply(jwks, issuer)` takes them."""

    def __init__(self, api: Api, apply: Callable[[dict[str, Any], str], None]) -> None:
        self._api, self._apply = api, apply
        self._wanted = asyncio.Event()

    def wanted(self, kid: str) -> None:
        """A token names key `kid`, which is not known."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            began = clock.mono()
            self._wanted.clear()
            known = await self.fetch()
            try:
                async with asyncio.timeout(REFRESH_SECONDS if known else FEWEST_SECONDS):
                    await self._wanted.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(max(0.0, began + FEWEST_SECONDS - clock.mono()))

    async def fetch(self) -> bool:
        """Whether the keys could be had."""
        try:
            about, keys = await asyncio.gather(
                self._api.request("get", "openid", "/.well-known/openid-configuration"),
                self._api.request("get", "openid", "/openid/v1/jwks"),
            )
        except FAILURES as error:
            log.warning("the cluster's signing keys cannot be read, tokens are reviewed by the API server instead: %s", error)
            return False
        self._apply(keys, str(about.get("issuer", "")))
        return True

    async def review(self, token: str) -> Claims:
        """The API server's judgement of a token. Raises `Unidentified`."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [TOKEN_AUDIENCE]},
        }
        try:
            answer = await self._api.request("create", "tokenreviews", "/apis/authentication.k8s.io/v1/tokenreviews", body=body)
        except FAILURES as error:
            raise Unidentified(f"the token cannot be reviewed: {error}") from None
        status = answer.get("status") or {}
        if not status.get("authenticated") or TOKEN_AUDIENCE not in (status.get("audiences") or ()):
            raise Unidentified(f"the API server does not accept the token: {status.get('error') or 'wrong audience'}")
        user = status.get("user") or {}
        extra = user.get("extra") or {}
        parts = str(user.get("username", "")).split(":")  # system:serviceaccount:NAMESPACE:NAME
        return Claims(
            namespace=parts[2] if len(parts) == 4 else "",
            pod_uid=str((extra.get("authentication.kubernetes.io/pod-uid") or [""])[0]),
            pod_name=str((extra.get("authentication.kubernetes.io/pod-name") or [""])[0]),
            node=str((extra.get("authentication.kubernetes.io/node-name") or [""])[0]),
        )
