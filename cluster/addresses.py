"""The addresses and ports of the embedded cluster. Nothing listens on an interface that leads off the machine."""

NODE = "lepton"
BRIDGE = "lepton0"
BRIDGE_ADDRESS = "10.88.0.1"
POD_NETWORK = "10.88.0.0/16"
PREFIX_LENGTH = 16
SERVICE_NETWORK = "10.96.0.0/16"
SERVICE_API_SERVER = "10.96.0.1"
SERVICE_DNS = "10.96.0.10"
CLUSTER_DOMAIN = "cluster.local"
API_SERVER = f"https://{BRIDGE_ADDRESS}:6443"
DNS_PORT = 1053
# Not 2379 and 2380, so that an etcd that somebody else runs here is neither in our way nor taken for ours.
ETCD = "http://127.0.0.1:23790"
ETCD_PEER = "http://127.0.0.1:23800"
FAKE_GPUS = 8
