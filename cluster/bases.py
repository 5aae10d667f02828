"""The images that ours are built on, made from Debian's packages where no registry of images can be reached.

In the world the bases are official images, the defaults of the Dockerfile's build arguments. Here a Debian with the same contract (an
interpreter; for the trainer also torch) is put together by debootstrap, stored once in the OCI layout, and read from there by the builder.
"""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster import machine, oci
from cluster.places import BUILDAH, LAYOUT, cache, locked
from cluster.terminal import Refused, step

SUITE = "trixie"
TRIM = (
    "usr/include",
    "usr/lib/libtorch-test",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
)
"""Folders that no program of an image needs."""


@dataclass(frozen=True, slots=True)
class Base:
    """A Debian of a few packages; `minutes` is how long it takes to make on two cores."""

    packages: tuple[str, ...]
    minutes: float

    @property
    def digest(self) -> str:
        """Changes whenever the base would be made differently."""
        return hashlib.sha256(repr((SUITE, self.packages, TRIM)).encode()).hexdigest()[:12]


BASES = {
    "operator": Base(("python3", "python3-venv", "ca-certificates"), 1.5),
    # Torch without CUDA, 2.6: the oldest that we support.
    "trainer": Base(("python3-torch", "python3-venv", "ca-certificates"), 4),
}


def require(target: str) -> str:
    """The name under which the builder knows the base of a target, which is made first where it is not there yet."""
    machine.install(machine.IMAGE_PROGRAMS)
    tag = f"base-{target}-{BASES[target].digest}"
    name = f"localhost/lepton-base/{target}:{BASES[target].digest}"
    with locked(f"base-{target}"):
        if not oci.has(tag):
            _make(target, tag)
        if buildah("inspect", "--type", "image", name, check=False) is None:
            with step(f"{target} base into the image builder"):
                pulled = buildah("pull", "--quiet", f"oci:{LAYOUT.name}:{tag}")
                buildah("tag", (pulled or "").split()[-1], name)
    return name


def buildah(*arguments: str, check: bool = True) -> str | None:
    """What buildah answers, with storage of our own; None where it fails and `check` is off. Raises Refused where it is on."""
    command = ["buildah", "--root", str(BUILDAH / "root"), "--runroot", str(BUILDAH / "run"), *arguments]
    # buildah makes an image's local name of the layout's path, and a folder that begins with a dot is no name: so a relative path.
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=LAYOUT.parent)
    if done.returncode == 0:
        return done.stdout
    if check:
        raise Refused(f"buildah {arguments[0]} failed:\n{(done.stdout + done.stderr).strip()[-3000:]}")
    return None


def _make(target: str, tag: str) -> None:
    base = BASES[target]
    root = cache() / f"{tag}.part"
    shutil.rmtree(root, ignore_errors=True)
    log = cache() / "logs" / f"{tag}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with step(f"making the {target} base from Debian packages (about {base.minutes:g} min, once)", long=True):
        options = ["--variant=minbase", f"--include={','.join(base.packages)}"]
        with log.open("w") as output:
            command = ["nice", "-n", "5", "debootstrap", *options, SUITE, str(root)]
            if subprocess.run(command, stdout=output, stderr=output, check=False).returncode:
                raise Refused(f"debootstrap failed; its words are in {log}")
    with step(f"packing the {target} base"):
        _trim(root)
        # Devices come from the runtime, and their nodes would make the image need more rights to unpack.
        command = ["tar", "--directory", str(root), "--numeric-owner", "--sort=name", "--exclude=./dev/*", "-cf", "-", "."]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout
            oci.create_image(tag, process.stdout, {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]})
        shutil.rmtree(root)


def _trim(root: Path) -> None:
    for folder in TRIM:
        for entry in (root / folder).iterdir() if (root / folder).is_dir() else ():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    for document in (root / "usr/share/doc").rglob("*"):
        if document.name != "copyright" and (document.is_symlink() or not document.is_dir()):
            document.unlink()
