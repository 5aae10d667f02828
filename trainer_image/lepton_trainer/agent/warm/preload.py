"""What the warm parent imports ahead of its ranks, and what makes each of them differ from its siblings after the fork.

Only modules of the standard library and of site-packages are imported: the user's own code runs in a rank, never in the parent.
"""

import ast
import ctypes
import importlib
import importlib.machinery
import importlib.util
import os
import random
import sys
import sysconfig
from typing import Any, Dict, List, Optional, Sequence, Set

BASE = ("torch", "torch.distributed", "torch.nn.parallel", "torch._dynamo")
FILE_LIMIT = 50
RECORD_LIMIT = 10_000
"""Modules that are written down of one rank."""
NEVER = ("__main__", "antigravity", "this", "idlelib", "turtle", "torch_xla")


def import_torch() -> None:
    for module in BASE:
        importlib.import_module(module)


def tolerate_missing_libuv() -> None:
    """Lets a torch that was built without libuv (Debian's 2.6) make stores: it refuses its own default, and its clients of an agent's
    store do not ask USE_LIBUV. Where torch has libuv nothing changes."""
    rendezvous: Any = sys.modules["torch.distributed.rendezvous"]
    create = rendezvous.TCPStore

    def create_store(*arguments: Any, **options: Any) -> Any:
        try:
            return create(*arguments, **options)
        except RuntimeError as error:
            if "libuv" not in str(error):
                raise
            return create(*arguments, **{**options, "use_libuv": False})

    rendezvous.TCPStore = create_store


def import_quietly(name: str) -> bool:
    """Imports `name` if it is somebody's library; True when that loaded something new. A failing one is the script's affair."""
    if name in sys.modules or not _is_library(name):
        return False
    try:
        importlib.import_module(name)
    except BaseException:
        return False
    return True


def _is_library(name: str) -> bool:
    top = name.partition(".")[0]
    if top in NEVER or not all(part.isidentifier() for part in name.split(".")):
        return False
    if top in sys.modules:
        origin = getattr(sys.modules[top], "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError, AttributeError):
            return False
        if spec is None:
            return False
        origin = spec.origin
        if origin in ("built-in", "frozen"):
            return True
    paths = sysconfig.get_paths()
    return origin is not None and any(origin.startswith(paths[kind] + os.sep) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))


def imported_by(target: Dict[str, Any]) -> List[str]:
    """The modules that the script, and modules beside it, import at their top level, by reading and not by running them."""
    folder = os.getcwd() if target["module"] else os.path.dirname(os.path.realpath(target["path"]))
    first = _local_file(folder, target["module"]) if target["module"] else target["path"]
    found: List[str] = []
    waiting: List[str] = [first] if first else []
    seen: Set[str] = set()
    while waiting and len(seen) < FILE_LIMIT:
        path = waiting.pop(0)
        seen.add(path)
        for name in _top_level_imports(path):
            local = _local_file(folder, name)
            if local is None:
                found.append(name)
            elif local not in seen:
                waiting.append(local)
    return list(dict.fromkeys(found))


def _local_file(folder: str, name: str) -> Optional[str]:
    stem = os.path.join(folder, *name.split("."))
    for path in (stem + ".py", os.path.join(stem, "__main__.py"), os.path.join(stem, "__init__.py")):
        if os.path.isfile(path):
            return path
    return None


def _top_level_imports(path: str) -> List[str]:
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read(1 << 20))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    names: List[str] = []
    waiting: List[Any] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names if alias.name.islower()]
        elif isinstance(node, (ast.Try, ast.With)):
            waiting += node.body
    return names


class _Recorder:
    """First on sys.meta_path: writes down every module that is not loaded yet and finds none itself.

    Each once: a module that is not there is asked for again and again, by some scripts at every step.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pid = os.getpid()
        self._written: Set[str] = set()

    def find_spec(self, name: str, path: Optional[Sequence[str]] = None, target: Any = None) -> Optional[importlib.machinery.ModuleSpec]:
        if name not in self._written and len(self._written) < RECORD_LIMIT and os.getpid() == self._pid:
            self._written.add(name)
            try:
                os.write(self._descriptor, name.encode("utf-8", "replace") + b"\n")
            except OSError:
                return None
        return None


def record(path: str) -> None:
    """In a rank: what it imports from now on is written to `path`, for the parent to import ahead of the next generation."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    sys.meta_path.insert(0, _Recorder(descriptor))


def read(path: str) -> List[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return list(dict.fromkeys(file.read(1 << 20).split()))
    except OSError:
        return []


def individualise() -> None:
    """In a rank: seeds that are not its siblings', and the threads that a fresh process would have taken from its environment."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    torch = sys.modules["torch"]
    torch.default_generator.seed()
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None:
        multiprocessing.current_process().authkey = os.urandom(32)
    wanted = _positive(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0])
    if wanted:
        torch.set_num_threads(wanted)
    blas = _positive(os.environ.get("OPENBLAS_NUM_THREADS", "")) or wanted or len(os.sched_getaffinity(0))
    if blas > 1:
        _set_openblas_threads(blas)


def _positive(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _set_openblas_threads(count: int) -> None:
    """The parent loads OpenBLAS with one thread, because its pool would not survive the fork; the rank gets what it asked for."""
    with open("/proc/self/maps") as file:
        libraries = {line.split(None, 5)[5].strip() for line in file if "openblas" in line}
    for path in libraries:
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix in ("", "scipy_"):
            for suffix in ("", "64_"):
                setter = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
                if setter is not None:
                    setter(count)
