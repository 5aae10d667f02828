"""A storage class for the embedded cluster: each claim becomes a folder of the machine that all pods of it share.

Run as a process of its own (`python3 -m cluster.volumes FOLDER KUBECONFIG`). It looks at claims and volumes twice a second and levels:
a claim without a volume gets one, a volume whose claim is gone goes with its folder. Everybody may write in the folder, because pods run as
any user and the kubelet changes no owner of a host's folder.
"""

import shutil
import sys
import time
import urllib.error
from http.client import HTTPException
from pathlib import Path

from cluster.api import Api, Object

CLASS = "lepton-shared"
PROVISIONER = "lepton.ai/shared-folder"
INTERVAL = 0.5
STORAGE_CLASS: Object = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": PROVISIONER,
    "reclaimPolicy": "Retain",  # what is released is deleted here, not by a controller that can't
    "volumeBindingMode": "Immediate",
}


def volume(claim: Object, folder: Path) -> Object:
    """The persistent volume, bound beforehand to `claim`, that is this folder of the machine."""
    metadata, spec = claim["metadata"], claim["spec"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"pvc-{metadata['uid']}", "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": CLASS,
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }


def level(api: Api, root: Path) -> None:
    """Make what is missing and delete what is released."""
    claims = api.call("GET", "/api/v1/persistentvolumeclaims")["items"]
    volumes = [item for item in api.call("GET", "/api/v1/persistentvolumes")["items"] if item["spec"].get("storageClassName") == CLASS]
    have = {item["metadata"]["name"] for item in volumes}
    for claim in claims:
        name = f"pvc-{claim['metadata']['uid']}"
        if claim["spec"].get("storageClassName") == CLASS and not claim["spec"].get("volumeName") and name not in have:
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o1777)
            api.apply(f"/api/v1/persistentvolumes/{name}", volume(claim, folder))
    for item in volumes:
        if item["status"].get("phase") == "Released":
            shutil.rmtree(root / item["metadata"]["name"], ignore_errors=True)
            api.delete(f"/api/v1/persistentvolumes/{item['metadata']['name']}")


def main() -> None:
    """Level for ever; an API server that is away is waited for."""
    root, api = Path(sys.argv[1]), Api(Path(sys.argv[2]))
    while True:
        try:
            level(api, root)
        except urllib.error.HTTPError as error:
            print(error, error.read().decode(errors="replace"), file=sys.stderr, flush=True)
        except (OSError, HTTPException) as error:
            print(error, file=sys.stderr, flush=True)
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main()
