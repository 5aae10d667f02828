"""The configuration files and command lines of the embedded cluster's components, each with the reason for what is not a default."""

import json
import sys
from pathlib import Path

from cluster.addresses import (
    BRIDGE,
    BRIDGE_ADDRESS,
    CLUSTER_DOMAIN,
    DNS_PORT,
    ETCD,
    ETCD_PEER,
    NODE,
    POD_NETWORK,
    SERVICE_DNS,
    SERVICE_NETWORK,
)
from cluster.certificates import PKI, kubeconfig
from cluster.daemons import Daemon
from cluster.machine import CNI_PLUGINS
from cluster.places import AUDIT_LOG, CHECKOUT, STATE

CONFIG = STATE / "config"
CONTAINERD = STATE / "containerd"
CONTAINERD_SOCKET = CONTAINERD / "containerd.sock"
KUBELET = STATE / "kubelet"
POD_LOGS = STATE / "pod-logs"
VOLUMES = STATE / "volumes"
PAUSE_IMAGE = "docker.io/lepton/pause:1"


# Only writes, of everybody: benchmarks count what the operator and, because of it, the cluster's own controllers write.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}],
}

CNI = {
    "cniVersion": "0.4.0",
    "name": "lepton",
    "plugins": [
        {
            "type": "bridge",
            "bridge": BRIDGE,
            "isDefaultGateway": True,
            # A pod may reach itself through its own Service.
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(STATE / "cni-addresses"),
                "ranges": [[{"subnet": POD_NETWORK, "rangeStart": "10.88.1.0", "gateway": BRIDGE_ADDRESS}]],
            },
        }
    ],
}

# restrict_oom_score_adj: without CAP_SYS_RESOURCE every sandbox would die while its score is lowered.
# netns_mounts_under_state_dir and Root: so that all that is left after a crash lies in our folder and can be told from others'.
CONTAINERD_TOML = f"""version = 2
root = "{CONTAINERD}/root"
state = "{CONTAINERD}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{CONTAINERD}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{CONFIG}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{CONTAINERD}/runc"
        SystemdCgroup = false
"""

KUBELET_CONFIG = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "address": BRIDGE_ADDRESS,
    "authentication": {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": True},
        "x509": {"clientCAFile": str(PKI / "ca.crt")},
    },
    "authorization": {"mode": "Webhook"},
    "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
    "cgroupDriver": "cgroupfs",
    "failCgroupV1": False,
    "enforceNodeAllocatable": [],
    "failSwapOn": False,
    "resolvConf": "",
    "clusterDNS": [SERVICE_DNS],
    "clusterDomain": CLUSTER_DOMAIN,
    "podLogsDir": str(POD_LOGS),
    "volumePluginDir": str(KUBELET / "volume-plugins"),
    "serializeImagePulls": False,
    "maxPods": 250,
    # The disk is shared with everything else on the machine: how full it is says nothing about our images.
    "imageGCHighThresholdPercent": 100,
    "imageGCLowThresholdPercent": 99,
    "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%"},
    "kubeAPIQPS": 100,
    "kubeAPIBurst": 200,
}

PROXY_CONFIG = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "clientConnection": {"kubeconfig": str(kubeconfig("kube-proxy"))},
    "mode": "iptables",
    "hostnameOverride": NODE,
    "nodePortAddresses": ["primary"],
    "clusterCIDR": POD_NETWORK,
    "healthzBindAddress": "127.0.0.1:10256",
    "metricsBindAddress": "127.0.0.1:10249",
    "conntrack": {"maxPerCore": 0},
    "iptables": {"minSyncPeriod": "100ms", "localhostNodePorts": False},
}

SCHEDULER_CONFIG = {
    "apiVersion": "kubescheduler.config.k8s.io/v1",
    "kind": "KubeSchedulerConfiguration",
    "clientConnection": {"kubeconfig": str(kubeconfig("kube-scheduler")), "qps": 500, "burst": 1000},
    "leaderElection": {"leaderElect": False},
}

# forward: without it a name of the world outside would be answered with SERVFAIL instead of the machine's own answer.
COREFILE = f""".:{DNS_PORT} {{
    bind {BRIDGE_ADDRESS}
    errors
    ready 127.0.0.1:8181
    cache 5
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig("coredns")}
        ttl 5
    }}
    forward . /etc/resolv.conf
}}
"""


def write() -> None:
    """Write every configuration file whose content changes; nothing is restarted for the others."""
    files = {
        "audit-policy.yaml": json.dumps(AUDIT_POLICY),
        "cni/10-lepton.conflist": json.dumps(CNI),
        "containerd.toml": CONTAINERD_TOML,
        "kubelet.yaml": json.dumps(KUBELET_CONFIG),
        "kube-proxy.yaml": json.dumps(PROXY_CONFIG),
        "kube-scheduler.yaml": json.dumps(SCHEDULER_CONFIG),
        "Corefile": COREFILE,
    }
    for name, content in files.items():
        path = CONFIG / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # kube-proxy ends itself when its file is written, even with the same words.
        if not path.exists() or path.read_text() != content:
            path.write_text(content)


def foundation(programs: Path) -> list[Daemon]:
    """etcd, containerd and the API server: what the others need before they start. `programs` is the folder of the components."""
    ca, front_proxy = str(PKI / "ca.crt"), str(PKI / "front-proxy-ca.crt")
    etcd = Daemon(
        "etcd",
        (
            str(programs / "etcd"),
            f"--data-dir={STATE / 'etcd'}",
            f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}",
            f"--listen-peer-urls={ETCD_PEER}",
            f"--initial-advertise-peer-urls={ETCD_PEER}",
            f"--initial-cluster=default={ETCD_PEER}",
            # The data need not survive a power cut, and the disk is slow.
            "--unsafe-no-fsync",
            "--log-level=warn",
        ),
    )
    containerd = Daemon("containerd", ("containerd", f"--config={CONFIG / 'containerd.toml'}"), (CONFIG / "containerd.toml",))
    api_server = Daemon(
        "kube-apiserver",
        (
            str(programs / "kube-apiserver"),
            f"--etcd-servers={ETCD}",
            # An address of the bridge, not loopback: it becomes the endpoint of the Service `kubernetes`, which pods use.
            f"--bind-address={BRIDGE_ADDRESS}",
            f"--advertise-address={BRIDGE_ADDRESS}",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--client-ca-file={ca}",
            f"--tls-cert-file={PKI / 'apiserver.crt'}",
            f"--tls-private-key-file={PKI / 'apiserver.key'}",
            f"--kubelet-client-certificate={PKI / 'apiserver-kubelet.crt'}",
            f"--kubelet-client-key={PKI / 'apiserver-kubelet.key'}",
            # Else logs and exec would look up the node's name.
            "--kubelet-preferred-address-types=InternalIP",
            f"--proxy-client-cert-file={PKI / 'front-proxy.crt'}",
            f"--proxy-client-key-file={PKI / 'front-proxy.key'}",
            f"--requestheader-client-ca-file={front_proxy}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
            f"--service-account-key-file={PKI / 'service-accounts.pub'}",
            f"--service-account-signing-key-file={PKI / 'service-accounts.key'}",
            f"--audit-policy-file={CONFIG / 'audit-policy.yaml'}",
            f"--audit-log-path={AUDIT_LOG}",
            "--audit-log-maxsize=64",
            "--audit-log-maxbackup=3",
            "--profiling=false",
        ),
        (PKI / "apiserver.crt", PKI / "ca.crt", PKI / "service-accounts.pub", CONFIG / "audit-policy.yaml"),
    )
    return [etcd, containerd, api_server]


def components(programs: Path) -> list[Daemon]:
    """What needs an API server that answers. `programs` is the folder of the components."""
    ca, front_proxy = str(PKI / "ca.crt"), str(PKI / "front-proxy-ca.crt")

    def authenticated(component: str, port: int) -> tuple[str, ...]:
        path = kubeconfig(component)
        return (
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--authentication-kubeconfig={path}",
            f"--authorization-kubeconfig={path}",
            f"--client-ca-file={ca}",
            f"--requestheader-client-ca-file={front_proxy}",
        )

    def daemon(name: str, *arguments: str, inputs: tuple[Path, ...] = ()) -> Daemon:
        return Daemon(name, (str(programs / name), *arguments), (PKI / "ca.crt", *inputs))

    return [
        daemon(
            "kube-controller-manager",
            f"--kubeconfig={kubeconfig('kube-controller-manager')}",
            *authenticated("kube-controller-manager", 10257),
            "--leader-elect=false",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={PKI / 'service-accounts.key'}",
            f"--root-ca-file={ca}",
            f"--cluster-signing-cert-file={ca}",
            f"--cluster-signing-key-file={PKI / 'ca.key'}",
            # With the defaults a new namespace waits seconds for its service account, and no pod can be made in it until then.
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ),
        daemon(
            "kube-scheduler",
            f"--config={CONFIG / 'kube-scheduler.yaml'}",
            *authenticated("kube-scheduler", 10259),
            inputs=(CONFIG / "kube-scheduler.yaml",),
        ),
        daemon(
            "kubelet",
            f"--config={CONFIG / 'kubelet.yaml'}",
            f"--kubeconfig={kubeconfig('kubelet')}",
            f"--root-dir={KUBELET}",
            f"--cert-dir={KUBELET / 'pki'}",
            f"--hostname-override={NODE}",
            f"--node-ip={BRIDGE_ADDRESS}",
            inputs=(CONFIG / "kubelet.yaml",),
        ),
        daemon("kube-proxy", f"--config={CONFIG / 'kube-proxy.yaml'}", inputs=(CONFIG / "kube-proxy.yaml",)),
        daemon("coredns", f"-conf={CONFIG / 'Corefile'}", inputs=(CONFIG / "Corefile",)),
        Daemon(
            "volumes",
            (str(Path(sys.executable).resolve()), "-m", "cluster.volumes", str(VOLUMES), str(kubeconfig("volumes"))),
            (Path(__file__).with_name("volumes.py"), kubeconfig("volumes")),
            {"PYTHONPATH": str(CHECKOUT)},
        ),
    ]
