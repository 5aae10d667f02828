"""Being `python script.py` or `python -m module` in a process that started as something else: argv, path, signals, tracebacks, exit code.

How a module becomes `__main__`: CPython's own `pymain_run_file` and `runpy._run_module_as_main`.
"""

import atexit
import builtins
import importlib.machinery
import json
import os
import re
import runpy
import signal
import sys
import threading
import time
import traceback
import types
from typing import Any, Dict, List, NoReturn, Optional, Sequence, Tuple

TAKES_VALUE = ("-W", "-X", "--check-hash-based-pycs")
PLAIN_FLAGS = re.compile(r"-[bBdEIOPqRsSuv]+|-[WX].+")


def parse(command: Sequence[str]) -> Tuple[Optional[Dict[str, Any]], List[str], str]:
    """(target, interpreter flags, "") of `python [flags] script.py|-m module ...`; (None, [], why not) of anything else."""
    if not re.fullmatch(r"python(\d(\.\d+)?)?", os.path.basename(command[0])):
        return None, [], f"the command starts {os.path.basename(command[0])!r} and not python"
    flags: List[str] = []
    at = 1
    while at < len(command):
        word = command[at]
        if word == "-m":
            if at + 1 == len(command):
                break
            return {"module": command[at + 1], "path": "", "args": list(command[at + 2 :]), "command": list(command)}, flags, ""
        if not word.startswith("-"):
            if os.path.isdir(word) or not word.endswith(".py"):
                return None, [], f"{word!r} is not a .py file"
            return {"module": "", "path": word, "args": list(command[at + 1 :]), "command": list(command)}, flags, ""
        if word in TAKES_VALUE and at + 1 < len(command):
            flags += [word, command[at + 1]]
            at += 1
        elif PLAIN_FLAGS.fullmatch(word):
            flags.append(word)
        else:
            return None, [], f"python's option {word!r} needs an interpreter of its own"
        at += 1
    return None, [], "python without a script"


def hidden_by(target: Dict[str, Any]) -> str:
    """Why the script would not find what it finds when started cold: a module beside it has the name of one that is loaded already."""
    folder = os.getcwd() if target["module"] else os.path.dirname(os.path.realpath(target["path"]))
    try:
        entries = os.listdir(folder)
    except OSError:
        return ""
    for entry in entries:
        name = entry[:-3] if entry.endswith(".py") else entry
        loaded = sys.modules.get(name)
        if (
            loaded is None
            or name == "__main__"
            or not (entry.endswith(".py") or os.path.isfile(os.path.join(folder, entry, "__init__.py")))
        ):
            continue
        origin = getattr(loaded, "__file__", None)
        if origin is None or not os.path.realpath(origin).startswith(os.path.join(folder, name)):
            return f"{entry} beside the script has the name of a module that the warm parent has imported"
    return ""


def run(target: Dict[str, Any]) -> NoReturn:
    """Runs the target as `__main__` and ends the process as the interpreter would."""
    _fresh_signals()
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    original = getattr(sys, "orig_argv", None)  # since 3.10
    if original is not None:
        original[:] = target["command"]
    safe_path = bool(getattr(sys.flags, "safe_path", False)) or bool(sys.flags.isolated)
    code: Any = 0
    failure: Optional[BaseException] = None
    try:
        if target["module"]:
            sys.argv[:] = ["-m", *target["args"]]
            if not safe_path:
                sys.path.insert(0, os.getcwd())
            runpy._run_module_as_main(target["module"])  # type: ignore[attr-defined]
        else:
            _run_file(module, target, safe_path)
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        failure = error
    if code is not None and not isinstance(code, int):
        _flush(sys.stdout)
        print(code, file=sys.stderr)
        code = 1
    if failure is not None:
        code = 1
        _tell(failure)
    _end(int(code or 0) & 0xFF, isinstance(failure, KeyboardInterrupt))


def _run_file(module: types.ModuleType, target: Dict[str, Any], safe_path: bool) -> None:
    path = os.path.join(os.getcwd(), target["path"])  # not normalised, as CPython leaves it
    sys.argv[:] = [target["path"], *target["args"]]
    if not safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        print(f"{target['command'][0]}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
        sys.exit(2)
    values = module.__dict__
    values.update(
        __file__=path,
        __cached__=None,
        __spec__=None,
        __package__=None,
        __builtins__=builtins,
        __loader__=importlib.machinery.SourceFileLoader("__main__", path),
    )
    exec(compile(source, path, "exec", dont_inherit=True), values)


def _fresh_signals() -> None:
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _tell(failure: BaseException) -> None:
    """Prints the traceback as the interpreter does, without our own frames, and leaves it in torch elastic's error file."""
    frames = failure.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    failure = failure.with_traceback(frames)
    _flush(sys.stdout)
    try:
        sys.excepthook(type(failure), failure, frames)
    except BaseException:
        traceback.print_exception(type(failure), failure, frames)
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and not os.path.exists(path):
        text = "".join(traceback.format_exception(type(failure), failure, frames))
        message = "".join(traceback.format_exception_only(type(failure), failure)).strip()
        body = {"message": {"message": message[:4096], "extraInfo": {"py_callstack": text[-65536:], "timestamp": str(int(time.time()))}}}
        try:
            with open(path, "w", encoding="utf-8", errors="replace") as file:
                json.dump(body, file)
        except OSError:
            return


def _end(code: int, interrupted: bool) -> NoReturn:
    """What the interpreter does at its end, short of tearing modules down; the exit status is the script's."""
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException:
            traceback.print_exc()
    _flush(sys.stderr)
    if not _flush(sys.stdout) and code == 0:
        code = 120
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def _flush(stream: Any) -> bool:
    try:
        if stream is not None and not stream.closed:
            stream.flush()
    except BaseException:
        return False
    return True
