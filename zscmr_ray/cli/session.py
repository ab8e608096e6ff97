"""Start or join Ray for the length of a command, and say errors the way users need them.

Token authentication is switched on for everything started here; dashboards stay on loopback.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from zscmr_ray.config import RaySection
from zscmr_ray.errors import ConfigError, ZscmrError

# Read by Ray when it is first imported, so it is set by every command before that (STACK: clients do not send
# the token by themselves). The rest silences warnings about features this project does not use.
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # libgomp's threads spin for milliseconds between two parallel regions by default: on a busy machine two threads were
    # six times slower than one (2,700 against 880 ms a step). This short spin costs nothing on a quiet one (444 ms).
    "GOMP_SPINCOUNT": "5000",
    # Ray's workers run at niceness 15, so that each of its own short housekeeping tasks stops a training step: on two
    # cores 37 ms a step over the bare loop, -10 ms at 0.
    "RAY_worker_niceness": "0",
    # A worker idle for a second is ended, and the next commit or decode task starts another: 1.5 CPU-seconds each, a
    # quarter of preprocess on two cores (66 against 88 images/s).
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # Ray otherwise starts workers before it answers a driver, and waits for ever when one of them dies before it has
    # registered (1 of 55 random kills): the driver hung in `ray.init`.
    "RAY_prestart_worker_first_driver": "0",
    # Every process of Ray times each event of its loops (a hundred a second in an idle worker) for its debug log: a fifth of
    # what its idle processes take, 4.1 in the place of 4.9% of a core.
    "RAY_event_stats": "0",
}

# For a Ray of one command without a dashboard: nobody looks at what it measures of its processes, 1% of a core.
UNWATCHED_ENVIRONMENT = {
    "RAY_enable_metrics_collection": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}

INTERRUPTED = 130
INTERRUPTED_TEXT = "interrupted: run the same command again and it goes on where it stopped"


class Interrupted(SystemExit):
    """Ends a command with 130, and says something else than that it goes on when it is run again."""

    def __init__(self, text: str) -> None:
        super().__init__(INTERRUPTED)
        self.text = text


def prepare_environment() -> None:
    """Set the environment Ray and its workers read; what the user has set stays."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    """Start the Ray of the block for one command and no dashboard; what the user has set in the environment stays."""
    import ray

    added = {name: value for name, value in UNWATCHED_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
    node = ray._private.worker._global_node
    if node is not None:
        # No setting leaves them out. The first sends what workers print to a driver that asked for none, the second is the
        # server of the dashboard that there is not, the third scales a cluster of more machines: 1.4% of a core.
        node.kill_log_monitor(check_alive=False)
        node.kill_dashboard(check_alive=False)
        node.kill_monitor(check_alive=False)


@contextlib.contextmanager
def ray_session(section: RaySection) -> Iterator[None]:
    """Have Ray running inside the block: joined where an address is given, else started on this machine.

    Raises ConfigError when the cluster cannot be reached. Only what was started here is stopped at the end. Worker
    output stays in Ray's log files: stages print what matters themselves, and a worker's error is raised here.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    address = section.cluster_address
    # Several jobs of one cluster never see each other's actors.
    namespace = section.namespace or f"zscmr-{uuid.uuid4().hex[:12]}"
    try:
        if address:
            ray.init(address, namespace=namespace, logging_level=logging.WARNING, log_to_driver=False)
        else:
            has_dashboard = section.dashboard_port is not None
            with contextlib.nullcontext() if has_dashboard else _unwatched():
                ray.init(
                    "local",
                    namespace=namespace,
                    num_cpus=section.num_cpus,
                    object_store_memory=section.object_store_bytes,
                    include_dashboard=has_dashboard,
                    dashboard_host="127.0.0.1",
                    dashboard_port=section.dashboard_port,
                    _temp_dir=section.temp_dir,
                    logging_level=logging.WARNING,
                    log_to_driver=False,
                )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "cannot reach or start Ray",
            got=f"ray.address={address}: {error}",
            expected="a running cluster, or none to start Ray on this machine",
            remedy="`ray status --address ...` must answer, and RAY_AUTH_MODE=token be set on both sides",
        ) from error
    try:
        # Again: Ray's own handler, set by init, would end the command with the signal's number.
        with sigterm_interrupts():
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM (`ray job stop`, a scheduler, `kill`) ends the block as Ctrl-C does: what is held is given back, 130."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        # None: a handler that was not set from Python, and cannot be set back from it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command and turn how it ended into an exit code; every failure is said on stderr.

    0 ok, 1 failed, 2 usage or configuration, 3 data, 4 refused, 130 interrupted with resumable state.
    """
    try:
        with sigterm_interrupts():
            command()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code == INTERRUPTED:
            print(getattr(end, "text", INTERRUPTED_TEXT), file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print(INTERRUPTED_TEXT, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        cause = find_cause(error)
        if cause is None:
            traceback.print_exc()
            return 1
        print(render(cause), file=sys.stderr)
        return cause.exit_code
    return 0


def find_cause(error: BaseException | None) -> ZscmrError | None:
    """The user-facing error inside what Ray wrapped around it, if there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None)
        if isinstance(inner, ZscmrError):
            return inner
        if isinstance(error, ZscmrError):
            return error
        failures = getattr(error, "worker_failures", None)
        if isinstance(failures, dict) and failures:
            error = next(iter(failures.values()))
            continue
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return None


def render(error: ZscmrError) -> str:
    """An error on up to four lines: what, got, expected, remedy."""
    lines = [f"error: {error.message}"]
    for name in ("got", "expected", "remedy"):
        value = getattr(error, name)
        if value is not None:
            lines.append(f"  {name + ':':<10}{value}")
    return "\n".join(lines)
