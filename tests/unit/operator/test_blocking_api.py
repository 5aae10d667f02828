"""The Lease thread's HTTP client: deadlines that hold, credentials that are read again, TLS that is checked."""

import http.server
import ssl
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from builders.lease_store import HttpStore, trickling_server
from lepton_operator.pods.blocking_api import BlockingApi, Unanswered
from lepton_operator.pods.certificates import new_authority, new_leaf

LEASE = "/apis/coordination.k8s.io/v1/namespaces/lepton/leases/lease"


def test_an_answer_that_trickles_in_is_cut_off_at_the_deadline() -> None:
    url, server = trickling_server()
    began = time.monotonic()
    with pytest.raises(Unanswered, match="in time"):
        BlockingApi(url).request("GET", LEASE, None, 0.3)
    assert time.monotonic() - began < 1.0
    server.join(5)


def test_a_server_that_is_not_there_is_unanswered() -> None:
    with pytest.raises(Unanswered, match="refused"):
        BlockingApi("http://127.0.0.1:1").request("GET", LEASE, None, 1.0)


def test_the_token_is_read_again_for_each_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with HttpStore() as store:
        api = BlockingApi(store.url, token_file=str(token))
        for text in ("first\n", "second\n"):
            token.write_text(text)
            assert api.request("GET", LEASE, None, 2.0).status == 404
    assert store.tokens == ["Bearer first", "Bearer second"]


def test_inside_a_pod_the_service_account_is_used(tmp_path: Path) -> None:
    assert BlockingApi.in_cluster({}, tmp_path) is None
    (tmp_path / "token").write_text("t")
    api = BlockingApi.in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, tmp_path)
    assert api is not None and (api.server, api.token_file) == ("https://[fd00::1]:6443", str(tmp_path / "token"))
    assert BlockingApi.in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path / "absent") is None


def test_a_kubeconfigs_static_token_is_not_shown() -> None:
    configuration = SimpleNamespace(
        host="https://h", ssl_ca_cert="ca", cert_file=None, key_file=None, api_key={"BearerToken": "Bearer abc"}
    )
    api = BlockingApi.of_configuration(configuration)
    assert api == BlockingApi("https://h", ca_file="ca", token="abc") and "abc" not in repr(api)


@pytest.mark.parametrize(("trusted", "name"), [(True, "127.0.0.1"), (False, "127.0.0.1"), (True, "elsewhere")])
def test_a_server_is_believed_only_with_a_certificate_of_its_authority_and_name(tmp_path: Path, trusted: bool, name: str) -> None:
    now = datetime.now(UTC)
    authority = new_authority(now)
    files = {"crt": tmp_path / "crt", "key": tmp_path / "key", "ca": tmp_path / "ca"}
    for path, text in zip((files["crt"], files["key"]), new_leaf(authority, [name], now), strict=True):
        path.write_text(text)
    files["ca"].write_text(authority.bundle if trusted else new_authority(now).bundle)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"spec": {}}')

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["crt"], files["key"])
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.handle_request, daemon=True)
    thread.start()
    api = BlockingApi(f"https://127.0.0.1:{server.server_address[1]}", ca_file=str(files["ca"]))
    try:
        if trusted and name == "127.0.0.1":
            assert api.request("GET", LEASE, None, 2.0).body == {"spec": {}}
        else:
            with pytest.raises(Unanswered, match="certificate"):
                api.request("GET", LEASE, None, 2.0)
    finally:
        thread.join(5)
        server.server_close()
