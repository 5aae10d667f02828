"""The one door to the Kubernetes API: raw JSON over the asyncio client, a token bucket, time-outs, and errors in `substrate`'s words.

It knows HTTP and Kubernetes' Status objects, nothing about jobs. The client library's models are not used: decoding a pod into them costs
more than everything the operator does with it.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client as kube
from kubernetes.aio import config as kube_config

from lepton_operator.substrate import Conflict, Gone, Rejected, Unavailable

Json = dict[str, Any]
Observe = Callable[[str, str, str, float], None]
"""Told (verb, resource, HTTP code or "error", seconds) of each request."""

TIMEOUT_SECONDS = 15.0
CONNECT_SECONDS = 5.0
PAGE = 500
WRITES = frozenset({"create", "update", "patch", "delete"})


class AlreadyExists(Exception):
    """An object of this name is there (HTTP 409, reason AlreadyExists)."""


class Expired(Exception):
    """The LIST's continue token is too old (HTTP 410): start the LIST again."""


class TokenBucket:
    """`qps` requests per second with a burst; who asks first goes first."""

    def __init__(self, qps: float, burst: float) -> None:
        self._qps, self._burst, self._tokens, self._at = qps, burst, burst, time.monotonic()

    async def take(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._qps) - 1.0
        self._at = now
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._qps)


async def load_configuration(kubeconfig: str = "") -> kube.Configuration:
    """The service account's when running in a pod, else the named (or the default) kubeconfig's."""
    configuration = kube.Configuration()
    if kubeconfig:
        await kube_config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        return configuration
    try:
        kube_config.load_incluster_config(client_configuration=configuration)
    except kube_config.ConfigException:
        await kube_config.load_kube_config(client_configuration=configuration)
    return configuration


class Api:
    """Requests of one operator. Raises `Conflict`, `Gone`, `AlreadyExists`, `Expired`, `Rejected`, `Unavailable`, nothing else."""

    def __init__(self, configuration: kube.Configuration, qps: float = 200.0, burst: float = 400.0, observe: Observe | None = None) -> None:
        self.on_return: Callable[[], None] = lambda: None
        """Called when the API server answers again after it could not be reached."""
        self.may_write: Callable[[], bool] = lambda: True
        """Asked just before each request that changes something in the cluster."""
        self._away = False
        self._client = kube.ApiClient(configuration)
        self._bucket = TokenBucket(qps, burst)
        self._observe = observe

    @property
    def configuration(self) -> kube.Configuration:
        configuration: kube.Configuration = self._client.configuration
        return configuration

    async def close(self) -> None:
        await self._client.close()

    async def request(
        self,
        verb: str,
        resource: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float = TIMEOUT_SECONDS,
    ) -> Json:
        """The decoded response. `verb` is Kubernetes' (get, list, create, update, patch, delete), `resource` names it in the metrics."""
        await self._bucket.take()
        if verb in WRITES and resource != "tokenreviews" and not self.may_write():
            raise Unavailable(f"not leading (any more), so nothing is written: {verb} {resource}")
        began = time.monotonic()
        code = "error"
        try:
            status, headers, data = await self._send(verb, path, query, body, content_type, timeout)
            code = str(status)
            if self._away:
                self._away = False
                self.on_return()
        except Unavailable:
            self._away = True
            raise
        finally:
            if self._observe:
                self._observe(verb, resource, code, time.monotonic() - began)
        try:
            answer = json.loads(data) if data else {}
        except ValueError:
            answer = {"message": data[:512].decode("utf-8", "replace")}
        if status >= 400:
            raise failure(status, answer if isinstance(answer, dict) else {}, headers.get("Retry-After"))
        return answer if isinstance(answer, dict) else {}

    async def _send(
        self, verb: str, path: str, query: Mapping[str, str] | None, body: Any, content_type: str, timeout: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        method = {"get": "GET", "list": "GET", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}[verb]
        url = self._client.configuration.host + path + ("?" + urlencode(query) if query else "")
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS)
        for last in (False, True):
            try:
                headers = {"Accept": "application/json, */*;q=0.5", "Content-Type": content_type, "User-Agent": "lepton-operator"}
                await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
                response = await self._client.rest_client.request(method, url, headers=headers, body=body, _request_timeout=limits)
                return response.status, response.headers, await response.read()
            except aiohttp.ServerDisconnectedError as error:
                # A kept connection that the server had closed. Every write here is conditional or idempotent, so once more is safe.
                if last:
                    raise Unavailable(f"the API server closed the connection: {error}") from None
            except TimeoutError:
                raise Unavailable(f"the API server did not answer within {timeout:.0f} s") from None
            except (aiohttp.ClientError, OSError, ssl.SSLError, kube_config.ConfigException) as error:
                raise Unavailable(f"the API server cannot be reached: {error}") from None
        raise AssertionError("unreachable")

    async def pages(self, resource: str, path: str, label_selector: str = "") -> AsyncIterator[tuple[list[Json], str]]:
        """The pages of one consistent LIST: (items, the LIST's resourceVersion, the same on each page). Raises `Expired` in the middle."""
        query = {"limit": str(PAGE)}
        if label_selector:
            query["labelSelector"] = label_selector
        while True:
            page = await self.request("list", resource, path, query, timeout=60.0)
            meta = page.get("metadata") or {}
            yield page.get("items") or [], str(meta.get("resourceVersion", ""))
            if not meta.get("continue"):
                return
            query["continue"] = meta["continue"]


def failure(status: int, answer: Json, retry_after: str | None = None) -> Exception:
    """The exception that a Kubernetes Status stands for, with the refuser's own words."""
    reason, message = str(answer.get("reason") or ""), str(answer.get("message") or f"HTTP {status}")
    if status == 404:
        return Gone(message)
    if status == 410:
        return Expired(message)
    if status == 409:
        return AlreadyExists(message) if reason == "AlreadyExists" else Conflict(message)
    if status in (401, 408, 429) or status >= 500:
        seconds = float(retry_after) if retry_after and retry_after.isdigit() else 1.0
        return Unavailable(message, retry_after=max(0.1, seconds))
    return Rejected(refusal_reason(status, answer, message), message)


def refusal_reason(status: int, answer: Json, message: str) -> str:
    """A CamelCase word for a condition, from a refusal (HTTP 400, 403, 422, ...)."""
    causes = (answer.get("details") or {}).get("causes") or ()
    if any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
        return "NamespaceTerminating"
    for words, reason in _REFUSALS:
        if words in message:
            return reason
    return {403: "Forbidden", 422: "Invalid"}.get(status, "AdmissionDenied" if "admission" in message else "Invalid")


_REFUSALS = (
    ("exceeded quota", "QuotaExceeded"),
    ("failed quota", "QuotaExceeded"),  # a quota wants resources that the pod does not state
    ("violates PodSecurity", "PodSecurityViolated"),
    ("looking up service account", "ServiceAccountMissing"),
    ("no PriorityClass", "PriorityClassMissing"),
    (" usage per ", "LimitRangeViolated"),
    ("limit to request ratio", "LimitRangeViolated"),
    ("denied the request", "AdmissionDenied"),
)
