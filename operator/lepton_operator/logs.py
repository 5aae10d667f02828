"""One line per log record, JSON for machines or text for people, each with the key of the job that it speaks of (`extra={"job": key}`)."""

import json
import logging
import sys
import time

NOISY = ("kopf", "aiohttp", "asyncio", "kubernetes")
"""Libraries whose information is not about jobs: only their warnings are shown."""


def set_up(style: str, level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _when(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _when(record), "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        job = getattr(record, "job", None)
        if job:
            line["job"] = str(job)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        job = getattr(record, "job", None)
        about = f" [{job}]" if job else ""
        text = f"{_when(record)} {record.levelname:<7}{about} {record.getMessage()}"
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")
