"""The image layout and the content tags: what is the same stays the same, what changes changes, and nothing needed is thrown away."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from cluster import images, oci


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(oci, "LAYOUT", tmp_path / "layout")
    return tmp_path / "layout"


def layer(text: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        member = tarfile.TarInfo("file")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))
    return content.getvalue()


def blobs(layout: Path) -> set[str]:
    return {path.name for path in (layout / "blobs/sha256").iterdir()}


def manifest(layout: Path, tag: str) -> dict[str, list[dict[str, str]]]:
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    digest = next(entry["digest"] for entry in entries if entry["annotations"][oci.REFERENCE] == tag)
    content: dict[str, list[dict[str, str]]] = json.loads((layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_text())
    return content


def test_every_blob_is_named_by_the_hash_of_its_content(layout: Path) -> None:
    oci.create_image("one", io.BytesIO(layer("first")), {"User": "1"})
    assert oci.has("one") and not oci.has("two")
    for path in (layout / "blobs/sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_removing_an_image_keeps_the_layer_that_another_shares(layout: Path) -> None:
    oci.create_image("one", io.BytesIO(layer("shared")), {"User": "1"})
    oci.create_image("two", io.BytesIO(layer("shared")), {"User": "2"})
    oci.create_image("three", io.BytesIO(layer("alone")), {})
    oci.remove(["one", "three"])
    assert oci.tags() == ["two"]
    assert hashlib.sha256(layer("shared")).hexdigest() in blobs(layout)
    assert hashlib.sha256(layer("alone")).hexdigest() not in blobs(layout)
    assert len(blobs(layout)) == 3  # manifest, configuration, layer


def test_a_compressed_layer_becomes_the_plain_tar_that_the_configuration_names(layout: Path) -> None:
    plain = layer("code")
    oci.create_image("one", io.BytesIO(plain), {})
    packed = gzip.compress(plain)
    digest = hashlib.sha256(packed).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(packed)
    changed = manifest(layout, "one")
    changed["layers"] = [{"mediaType": f"{oci.LAYER}+gzip", "digest": f"sha256:{digest}", "size": str(len(packed))}]
    text = json.dumps(changed).encode()
    name = hashlib.sha256(text).hexdigest()
    (layout / "blobs/sha256" / name).write_bytes(text)
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0].update(digest=f"sha256:{name}", size=len(text))
    (layout / "index.json").write_text(json.dumps(index))
    oci.uncompress("one")
    (result,) = manifest(layout, "one")["layers"]
    assert result == {"mediaType": oci.LAYER, "digest": f"sha256:{hashlib.sha256(plain).hexdigest()}", "size": len(plain)}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the trainer image is made of."""
    for source in images.SOURCES["trainer"]:
        target = tmp_path / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (images.CHECKOUT / source).is_dir():
            shutil.copytree(images.CHECKOUT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(images.CHECKOUT / source, target)
    monkeypatch.setattr(images, "CHECKOUT", tmp_path)
    return tmp_path


def test_the_tag_follows_the_content_and_not_bytecode_or_the_clock(checkout: Path) -> None:
    before = images.content_tag("trainer", "base")
    package = checkout / "trainer_image/lepton_trainer"
    (package / "__pycache__").mkdir()
    (package / "__pycache__/x.pyc").write_bytes(b"bytecode")
    (package / "__init__.py").touch()
    assert images.content_tag("trainer", "base") == before
    assert images.content_tag("trainer", "other base") != before
    (package / "new.py").write_text("")
    added = images.content_tag("trainer", "base")
    (package / "new.py").write_text("x = 1\n")
    assert len({before, added, images.content_tag("trainer", "base")}) == 3


def test_the_trainer_image_brings_no_torch_of_its_own() -> None:
    lock = (images.CHECKOUT / "requirements/trainer.lock").read_text()
    names = {line.split("==")[0] for line in lock.splitlines() if "==" in line and not line.startswith(" ")}
    assert "scikit-learn" in names
    assert not [name for name in names if name in ("torch", "triton") or name.startswith("nvidia-")]
