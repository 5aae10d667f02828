"""Our two images: built from the Dockerfile, tagged by their content, and brought into the cluster or pushed to a registry."""

import hashlib
import json
import os
import subprocess
import tomllib

from cluster import bases, machine, oci, substrate
from cluster.places import CHECKOUT, LAYOUT, STATE, locked
from cluster.terminal import Refused, step

SOURCES = {
    "operator": (
        "Dockerfile",
        ".dockerignore",
        "requirements/operator.lock",
        "crds",
        "operator/lepton_operator",
        "trainer_image/lepton_trainer",
    ),
    "trainer": ("Dockerfile", ".dockerignore", "requirements/trainer.lock", "trainer_image/lepton_trainer", "examples"),
}
TARGETS = tuple(SOURCES)
LATEST = STATE / "images.json"
"""The images that were brought into the cluster last: target to full name."""


def content_tag(target: str, base: str) -> str:
    """A tag that is the same for the same sources on the same base, and another one otherwise."""
    digest = hashlib.sha256(base.encode())
    for source in SOURCES[target]:
        path = CHECKOUT / source
        files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts) if path.is_dir() else [path]
        for file in files:
            digest.update(f"{file.relative_to(CHECKOUT)}\0{file.stat().st_mode & 0o111}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def load(targets: tuple[str, ...] = TARGETS) -> dict[str, str]:
    """Build the images and bring them into the cluster; returns their full names, tagged by content (`:dev` names the newest, too).

    Raises Refused where the cluster is not ours to load into, is not up, or a build fails.
    """
    kind = substrate.choose()
    if kind == substrate.NAMED:
        raise Refused("the cluster that LEPTON_KUBECONFIG names takes its images from a registry: `make push REGISTRY=...`")
    if not substrate.answers():
        raise Refused("no cluster is up: `make cluster-up` first")
    with locked("images"):
        names = {target: _load_embedded(target) if kind == substrate.EMBEDDED else _load_kind(target) for target in targets}
    STATE.mkdir(parents=True, exist_ok=True)
    LATEST.write_text(json.dumps({**latest(), **names}))
    return names


def latest() -> dict[str, str]:
    """The full names of the images that were loaded last."""
    content: dict[str, str] = json.loads(LATEST.read_text()) if LATEST.exists() else {}
    return content


def push(registry: str, tag: str | None = None, targets: tuple[str, ...] = TARGETS) -> list[str]:
    """Build the images and push them to `registry` (such as `example.org/team`) under `tag`, the project's version unless given.

    The base is what `OPERATOR_BASE` and `TRAINER_BASE` name in the environment; else with Docker the official images of the
    Dockerfile, and without it the Debian ones, whose torch has no CUDA. Returns the references.
    """
    tag = tag or str(tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"])
    references = []
    with locked("images"):
        for target in targets:
            reference = f"{registry}/lepton/{target}:{tag}"
            if substrate.docker_answers():
                local = docker_build(target)
                with step(f"pushing {reference}", long=True):
                    _run("docker", "tag", local, reference)
                    _run("docker", "push", "--quiet", reference)
            else:
                local = build(target)
                # A registry on this machine speaks plain HTTP.
                insecure = registry.split(":")[0].split("/")[0] in ("127.0.0.1", "localhost")
                with step(f"pushing {reference}", long=True):
                    bases.buildah("push", "--quiet", *(["--tls-verify=false"] if insecure else []), local, f"docker://{reference}")
            references.append(reference)
    return references


def _load_embedded(target: str) -> str:
    local = build(target)
    tag = local.rpartition(":")[2]
    full = f"docker.io/lepton/{target}"
    stored = f"{target}-{tag}"
    with step(f"{target} image into the cluster") as notes:
        if f"{full}:{tag}" in oci.ctr("images", "ls", "-q").split():
            oci.ctr("images", "tag", "--force", f"{full}:{tag}", f"{full}:dev")
            notes.append("there already")
        else:
            if not oci.has(stored):
                with locked("layout"):
                    bases.buildah("push", "--quiet", local, f"oci:{LAYOUT.name}:{stored}")
                oci.uncompress(stored)
            moved = oci.import_images({f"{full}:{tag}": stored, f"{full}:dev": stored})
            notes.append(f"{moved / 1e6:.1f} MB moved")
            oci.remove([other for other in oci.tags() if other.startswith(f"{target}-") and other != stored])
    return f"lepton/{target}:{tag}"


def build(target: str) -> str:
    """The image as the builder knows it, built unless the same content has been built before. Without Docker."""
    base = os.environ.get(f"{target.upper()}_BASE") or bases.require(target)
    tag = content_tag(target, base)
    local = f"localhost/lepton/{target}:{tag}"
    if bases.buildah("inspect", "--type", "image", local, check=False) is not None:
        return local
    embedded_options = ["--isolation", "chroot", "--network", "host", "--layers", "--quiet"]
    # The machine's certificate bundle, for package indexes behind a certificate authority of the house. It does not stay in the image.
    bundle = ["--volume", f"{machine.CA_BUNDLE}:{machine.CA_BUNDLE}:ro"] if machine.CA_BUNDLE.exists() else []
    with step(f"building the {target} image", long=True):
        arguments = ["--target", target, "--build-arg", f"{target.upper()}_BASE={base}", "--tag", local, "--file", "Dockerfile"]
        bases.buildah("bud", *embedded_options, *bundle, *arguments, str(CHECKOUT))
        _prune(target, local)
    return local


def _prune(target: str, keep: str) -> None:
    listed = json.loads(bases.buildah("images", "--json") or "[]")
    old = [name for image in listed for name in image.get("names") or () if name.startswith(f"localhost/lepton/{target}:") and name != keep]
    if old:
        bases.buildah("rmi", *old, check=False)


def _load_kind(target: str) -> str:
    local = docker_build(target)
    with step(f"{target} image into the cluster", long=True):
        _run("docker", "tag", local, f"lepton/{target}:dev")
        _run(str(substrate.kind()), "load", "docker-image", "--name", substrate.KIND_NAME, local, f"lepton/{target}:dev")
    return local


def docker_build(target: str) -> str:
    """The image as Docker knows it. Raises Refused where the build fails."""
    base = os.environ.get(f"{target.upper()}_BASE", "")
    name = f"lepton/{target}:{content_tag(target, base)}"
    argument = ["--build-arg", f"{target.upper()}_BASE={base}"] if base else []
    with step(f"building the {target} image", long=True):
        _run("docker", "build", "--quiet", "--target", target, *argument, "--tag", name, str(CHECKOUT))
    return name


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"{' '.join(command[:3])} failed:\n{(done.stdout + done.stderr).strip()[-3000:]}")
