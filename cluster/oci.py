"""An OCI image layout on disk: how images are handed to containerd, and only those blobs of them that it lacks.

`buildah push oci:` writes into such a layout and skips layers that are there already; `import_images` packs what containerd does not have
yet and pipes it in. So a change of our code moves one layer of some hundred KB, without a registry.
"""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from cluster.places import LAYOUT, locked
from cluster.settings import CONTAINERD_SOCKET
from cluster.terminal import Refused

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
REFERENCE = "org.opencontainers.image.ref.name"
CHUNK = 1 << 20

Descriptor = dict[str, Any]


class Readable(Protocol):
    """Anything that gives bytes until there are none."""

    def read(self, size: int, /) -> bytes: ...


def create_image(tag: str, layer: Readable, config: Mapping[str, object]) -> None:
    """Store an image of one layer (an uncompressed tar) in the layout under `tag`; `config` is the `config` part of its configuration."""
    with locked("layout"):
        (LAYOUT / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (LAYOUT / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
        layer_blob = _store(layer, LAYER)
        configuration = {
            "architecture": "amd64",
            "os": "linux",
            "config": dict(config),
            "rootfs": {"type": "layers", "diff_ids": [layer_blob["digest"]]},
            "history": [{"created_by": "cluster"}],
        }
        config_blob = _store(io.BytesIO(json.dumps(configuration).encode()), CONFIG)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config_blob, "layers": [layer_blob]}
        descriptor = _store(io.BytesIO(json.dumps(manifest).encode()), MANIFEST)
        others = [entry for entry in _index()["manifests"] if entry.get("annotations", {}).get(REFERENCE) != tag]
        entries = [*others, {**descriptor, "annotations": {REFERENCE: tag}}]
        (LAYOUT / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}))


def uncompress(tag: str) -> None:
    """Store the layers of an image as plain tars.

    The builder compresses every layer anew for each image that it hands over, but leaves out a layer of which the layout has the plain tar.
    So this costs seconds once, and spares them at every later change of our code.
    """
    with locked("layout"):
        index = _index()
        entry = next(item for item in index["manifests"] if item.get("annotations", {}).get(REFERENCE) == tag)
        manifest = json.loads(_path(entry["digest"]).read_text())
        for number, layer in enumerate(manifest["layers"]):
            if layer["mediaType"].endswith("+gzip"):
                with gzip.open(_path(layer["digest"])) as content:
                    manifest["layers"][number] = _store(content, LAYER)
        descriptor = _store(io.BytesIO(json.dumps(manifest).encode()), MANIFEST)
        entry.update(descriptor)
        (LAYOUT / "index.json").write_text(json.dumps(index))


def has(tag: str) -> bool:
    """Whether the layout holds an image of this tag."""
    return any(entry.get("annotations", {}).get(REFERENCE) == tag for entry in _index()["manifests"])


def remove(tags: Iterable[str]) -> None:
    """Forget images of the layout, and delete the blobs that no other image needs."""
    with locked("layout"):
        gone = set(tags)
        index = _index()
        index["manifests"] = [entry for entry in index["manifests"] if entry.get("annotations", {}).get(REFERENCE) not in gone]
        (LAYOUT / "index.json").write_text(json.dumps(index))
        needed = {blob["digest"] for entry in index["manifests"] for blob in (entry, *_blobs(entry))}
        for path in (LAYOUT / "blobs/sha256").iterdir():
            if f"sha256:{path.name}" not in needed:
                path.unlink()


def tags() -> list[str]:
    """The tags of the layout's images."""
    return [entry["annotations"][REFERENCE] for entry in _index()["manifests"] if REFERENCE in entry.get("annotations", {})]


def import_images(images: Mapping[str, str]) -> int:
    """Bring images of the layout into the embedded cluster's containerd; `images` maps a full name to the layout's tag.

    Returns the number of bytes that had to be moved. Raises Refused where containerd does not take them.
    """
    present = set(ctr("content", "ls", "-q").split())
    by_tag = {entry.get("annotations", {}).get(REFERENCE): entry for entry in _index()["manifests"]}
    entries: list[Descriptor] = []
    blobs: dict[str, Descriptor] = {}
    for name, tag in images.items():
        entry = by_tag[tag]
        entries.append({**entry, "annotations": {"io.containerd.image.name": name}})
        # The manifest always travels: it is what an import is about. Layers and configuration only where they are missing.
        blobs[entry["digest"]] = entry
        blobs.update({blob["digest"]: blob for blob in _blobs(entry) if blob["digest"] not in present})
    command = ["ctr", "--address", str(CONTAINERD_SOCKET), "--namespace", "k8s.io", "images", "import", "--digests=false", "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stdin and process.stderr
    try:
        with tarfile.open(fileobj=process.stdin, mode="w|", bufsize=CHUNK) as archive:
            _add(archive, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
            _add(archive, "index.json", json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode())
            for digest in blobs:
                archive.add(_path(digest), f"blobs/sha256/{digest.removeprefix('sha256:')}", recursive=False)
        process.stdin.close()
    except BrokenPipeError:
        pass  # what it says on stderr is the reason
    errors = process.stderr.read().decode()
    if process.wait():
        raise Refused(f"containerd does not take {', '.join(images)}: {errors.strip()}")
    return sum(int(blob["size"]) for blob in blobs.values())


def ctr(*arguments: str) -> str:
    """What containerd's command line answers, in the namespace of Kubernetes."""
    command = ["ctr", "--address", str(CONTAINERD_SOCKET), "--namespace", "k8s.io", "--connect-timeout", "5s", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"ctr {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _index() -> dict[str, Any]:
    path = LAYOUT / "index.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    return content


def _blobs(entry: Descriptor) -> list[Descriptor]:
    manifest = json.loads(_path(entry["digest"]).read_text())
    return [manifest["config"], *manifest["layers"]]


def _path(digest: str) -> Path:
    return LAYOUT / "blobs/sha256" / digest.removeprefix("sha256:")


def _store(content: Readable, media_type: str) -> Descriptor:
    scratch = LAYOUT / "blobs/incoming"
    digest, size = hashlib.sha256(), 0
    with scratch.open("wb") as file:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
    shutil.move(scratch, _path(digest.hexdigest()))
    return {"mediaType": media_type, "digest": f"sha256:{digest.hexdigest()}", "size": size}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
