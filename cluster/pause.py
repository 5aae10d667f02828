"""The image that holds each pod's namespaces open: one static program, from Debian, that does nothing but wait and reap."""

import io
import shutil
import tarfile
from pathlib import Path

from cluster import oci
from cluster.settings import PAUSE_IMAGE
from cluster.terminal import Refused

TAG = "pause"


def require_image() -> None:
    """Have the pause image in containerd."""
    if PAUSE_IMAGE in oci.ctr("images", "ls", "-q").split():
        return
    program = shutil.which("catatonit")
    if not program:
        raise Refused("catatonit is not installed")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        member = tarfile.TarInfo("pause")
        member.size, member.mode = Path(program).stat().st_size, 0o755
        with Path(program).open("rb") as file:
            archive.addfile(member, file)
    layer.seek(0)
    oci.create_image(TAG, layer, {"Entrypoint": ["/pause", "-P"], "User": "65535:65535"})
    oci.import_images({PAUSE_IMAGE: TAG})
