"""The cluster's own certificate authority, the identity of each component, and a kubeconfig for each."""

import base64
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.addresses import API_SERVER, BRIDGE_ADDRESS, CLUSTER_DOMAIN, NODE, SERVICE_API_SERVER
from cluster.places import KUBECONFIG, STATE

PKI = STATE / "pki"
DAYS = 365
RENEW_BEFORE_DAYS = 30


@dataclass(frozen=True, slots=True)
class Identity:
    """One certificate: the file's stem, who it names, and by which authority."""

    file: str
    common_name: str
    organisation: str = ""
    authority: str = "ca"
    names: tuple[str, ...] = ()


IDENTITIES = (
    Identity(
        "apiserver",
        "kube-apiserver",
        names=(
            "DNS:localhost",
            "DNS:kubernetes",
            "DNS:kubernetes.default",
            "DNS:kubernetes.default.svc",
            f"DNS:kubernetes.default.svc.{CLUSTER_DOMAIN}",
            "IP:127.0.0.1",
            f"IP:{BRIDGE_ADDRESS}",
            f"IP:{SERVICE_API_SERVER}",
        ),
    ),
    Identity("apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters"),
    Identity("front-proxy", "front-proxy-client", authority="front-proxy-ca"),
    Identity("admin", "lepton-admin", "system:masters"),
    Identity("kube-controller-manager", "system:kube-controller-manager"),
    Identity("kube-scheduler", "system:kube-scheduler"),
    Identity("kube-proxy", "system:kube-proxy"),
    Identity("kubelet", f"system:node:{NODE}", "system:nodes"),
    Identity("coredns", "lepton-coredns"),
    Identity("kwok", "lepton-kwok", "system:masters"),
    Identity("volumes", "lepton-volumes", "system:masters"),
)


def kubeconfig(component: str) -> Path:
    """The kubeconfig by which a component (a file stem of `IDENTITIES`) speaks to the API server."""
    return KUBECONFIG if component == "admin" else PKI / f"{component}.kubeconfig"


def write_all() -> bool:
    """Make what is missing or about to expire; true when something was made."""
    PKI.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = False
    for authority in ("ca", "front-proxy-ca"):
        if _expires_soon(PKI / f"{authority}.crt"):
            _key(PKI / f"{authority}.key")
            usage = ["-addext", "keyUsage=critical,digitalSignature,keyCertSign,cRLSign"]
            subject = ["-subj", f"/CN=lepton-{authority}", *usage]
            _openssl("req", "-x509", "-new", "-key", f"{authority}.key", "-days", "3650", *subject, "-out", f"{authority}.crt")
            for identity in IDENTITIES:
                (PKI / f"{identity.file}.crt").unlink(missing_ok=True)
            made = True
    for identity in IDENTITIES:
        if _expires_soon(PKI / f"{identity.file}.crt"):
            _issue(identity)
            made = True
        if not kubeconfig(identity.file).exists() or made:
            _write_kubeconfig(identity)
    if not (PKI / "service-accounts.key").exists():
        # RSA, because tokens of real clusters are RS256 and what verifies them is to see the same here.
        _openssl("genrsa", "-out", "service-accounts.key", "2048")
        _openssl("rsa", "-in", "service-accounts.key", "-pubout", "-out", "service-accounts.pub")
        made = True
    return made


def _issue(identity: Identity) -> None:
    _key(PKI / f"{identity.file}.key")
    organisation = f"/O={identity.organisation}" if identity.organisation else ""
    request, extensions = PKI / "request.csr", PKI / "extensions.cnf"
    _openssl("req", "-new", "-key", f"{identity.file}.key", "-subj", f"{organisation}/CN={identity.common_name}", "-out", request.name)
    lines = ["keyUsage=critical,digitalSignature", "extendedKeyUsage=clientAuth,serverAuth"]
    if identity.names:
        lines.append(f"subjectAltName={','.join(identity.names)}")
    extensions.write_text("\n".join(lines))
    authority = ["-CA", f"{identity.authority}.crt", "-CAkey", f"{identity.authority}.key", "-CAcreateserial"]
    _openssl(
        "x509", "-req", "-in", request.name, *authority, "-days", str(DAYS), "-extfile", extensions.name, "-out", f"{identity.file}.crt"
    )
    request.unlink()
    extensions.unlink()


def _write_kubeconfig(identity: Identity) -> None:
    def inline(name: str) -> str:
        return base64.b64encode((PKI / name).read_bytes()).decode()

    user = {"client-certificate-data": inline(f"{identity.file}.crt"), "client-key-data": inline(f"{identity.file}.key")}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lepton", "cluster": {"server": API_SERVER, "certificate-authority-data": inline("ca.crt")}}],
        "users": [{"name": identity.common_name, "user": user}],
        "contexts": [{"name": "lepton", "context": {"cluster": "lepton", "user": identity.common_name}}],
        "current-context": "lepton",
    }
    path = kubeconfig(identity.file)
    path.touch(mode=0o600)
    path.write_text(json.dumps(content, indent=2))  # JSON is YAML


def _key(path: Path) -> None:
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path.name)
    path.chmod(0o600)


def _expires_soon(certificate: Path) -> bool:
    if not certificate.exists():
        return True
    seconds = RENEW_BEFORE_DAYS * 86400
    return (
        subprocess.run(
            ["openssl", "x509", "-checkend", str(seconds), "-noout", "-in", certificate], capture_output=True, check=False
        ).returncode
        != 0
    )


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=PKI, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stderr.strip()}")
