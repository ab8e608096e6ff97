"""One JSON object a line: time, level, logger, message, request id and whatever an event adds.

What it is: the formatter and the handler of `zscmr_ray` in a replica, and the context variable that carries a request's id
to whatever logs while it is answered. What it is not: Serve's and Ray's own logs, which stay as they are. Never logged:
keys, headers, query texts, pictures.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from zscmr_ray.config import ServeSection

LOGGER = "zscmr_ray"
REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("zscmr_request_id", default="")
FIELDS = "zscmr_fields"
"""The attribute of a log record that holds an event's own fields (`extra={FIELDS: {...}}`)."""


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; an exception's traceback is one string in it."""

    def __init__(self, *, replica: str) -> None:
        super().__init__()
        self._replica = replica

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "replica": self._replica,
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logs(settings: ServeSection, *, replica: str) -> None:
    """Send this process's `zscmr_ray` records to stderr or to a file of this replica in `serve.log_dir`."""
    logger = logging.getLogger(LOGGER)
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if settings.log_dir is not None:
        folder = Path(settings.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder / f"{replica}-{os.getpid()}.jsonl", encoding="utf-8")
    handler.setFormatter(JsonFormatter(replica=replica))
    logger.handlers[:] = [handler]
    logger.setLevel(settings.log_level)
    logger.propagate = False


def log_event(logger: logging.Logger, message: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log an event with fields of its own."""
    if logger.isEnabledFor(level):
        logger.log(level, message, extra={FIELDS: fields})
