"""The few calls that the bring-up makes to an API server, over HTTPS with a client certificate, without starting kubectl for each."""

import base64
import http.client
import json
import ssl
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

Object = dict[str, Any]


class Api:
    """A client of the API server named in one of our own kubeconfigs (JSON, certificates inline)."""

    def __init__(self, kubeconfig: Path) -> None:
        content = json.loads(kubeconfig.read_text())
        cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
        self.server: str = cluster["server"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.context = ssl.create_default_context(cadata=authority)
        with tempfile.NamedTemporaryFile() as file:  # the ssl module reads a client's certificate only from a file
            file.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
            file.flush()
            self.context.load_cert_chain(file.name)

    def call(self, method: str, path: str, body: object = None, content_type: str = "application/json", timeout: float = 10) -> Object:
        """One request; the answer as an object. Raises urllib.error.HTTPError for a refusal, OSError where nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.server + path, data, {"Content-Type": content_type}, method=method)
        with urllib.request.urlopen(request, timeout=timeout, context=self.context) as response:
            text = response.read()
        return json.loads(text) if text.startswith(b"{") else {"text": text.decode()}

    def get(self, path: str) -> Object | None:
        """The object at the path, or None where there is none."""
        try:
            return self.call("GET", path)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def apply(self, path: str, body: Object) -> Object:
        """Create the object, or bring it to this content (server-side apply)."""
        return self.call("PATCH", f"{path}?fieldManager=lepton-cluster&force=true", body, "application/apply-patch+yaml")

    def patch(self, path: str, operations: list[Object]) -> Object:
        """Apply a JSON patch."""
        return self.call("PATCH", path, operations, "application/json-patch+json")

    def delete(self, path: str) -> None:
        """Delete the object at the path; well where there is none."""
        try:
            self.call("DELETE", path)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise

    def ready(self) -> bool:
        """Whether the API server says that it is ready."""
        try:
            return self.call("GET", "/readyz", timeout=2) == {"text": "ok"}
        except (OSError, http.client.HTTPException):
            return False
