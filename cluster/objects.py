"""The Kubernetes objects that make the embedded cluster whole: its DNS and its storage class."""

from cluster import volumes
from cluster.addresses import BRIDGE_ADDRESS, DNS_PORT, SERVICE_DNS
from cluster.api import Api, Object

RBAC = "/apis/rbac.authorization.k8s.io/v1"
DNS_PORTS = (("dns", "UDP"), ("dns-tcp", "TCP"))


def apply_all(api: Api) -> None:
    """Create the objects, or bring them to their content."""
    name = "lepton:coredns"
    role: Object = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    }
    binding: Object = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "lepton-coredns"}],
    }
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        # No selector: CoreDNS is a process of the machine, and the slice below says where.
        "spec": {
            "clusterIP": SERVICE_DNS,
            "ports": [{"name": port, "port": 53, "targetPort": DNS_PORT, "protocol": protocol} for port, protocol in DNS_PORTS],
        },
    }
    endpoints: Object = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [BRIDGE_ADDRESS], "conditions": {"ready": True}}],
        "ports": [{"name": port, "port": DNS_PORT, "protocol": protocol} for port, protocol in DNS_PORTS],
    }
    api.apply(f"/apis/storage.k8s.io/v1/storageclasses/{volumes.CLASS}", volumes.STORAGE_CLASS)
    api.apply(f"{RBAC}/clusterroles/{name}", role)
    api.apply(f"{RBAC}/clusterrolebindings/{name}", binding)
    api.apply("/api/v1/namespaces/kube-system/services/kube-dns", service)
    api.apply("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns", endpoints)
