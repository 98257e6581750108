"""One Dask cluster per flow run, started when the first batch needs it.

Only paths, indices and small specs go through the scheduler; arrays stay in files and the store.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import Any

from flows.stopping import check
from pipeline.errors import BadInput, SmearflowError

log = logging.getLogger("smearflow.cluster")

IN_FLIGHT_PER_WORKER = 4  # bundles handed over and not yet answered: one works, the others wait beside it
MOST_IN_BUNDLE = 4  # calls that travel together; a message costs as much for four small calls as for one
BUNDLES_PER_WORKER = 8  # at least so many, so that no worker idles while another works on the last
LOOK_S = 5.0  # how often a silent cluster is looked at
NO_WORKERS_S = 120.0  # a cluster without a single worker for so long is given up


class ClusterGone(SmearflowError, ConnectionError):
    """The scheduler or every worker went away: the machine failed, not what it was computing."""


def gpu_devices() -> list[str]:
    """CUDA devices of this machine, each as CUDA_VISIBLE_DEVICES names it, without importing torch in the
    flow's own process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [v.strip() for v in visible.split(",") if v.strip() not in ("", "-1")]
    found = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(found.glob("*"))))] if found.is_dir() else []


def plan_workers(n_workers: int | None, cores: int, devices: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options of each worker process by its name: `n_workers`, or one a core, that see no GPU, and one a GPU
    that sees it alone and offers it as the resource GPU."""
    env = {"OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1", "MKL_NUM_THREADS": "1"}
    # Without a GPU the variable is left as it is: there is nothing to hide.
    blind = {"CUDA_VISIBLE_DEVICES": ""} if devices else {}
    plan: dict[str, dict[str, Any]] = {f"cpu-{i}": {"env": env | blind} for i in range(n_workers or cores)}
    for i, device in enumerate(devices):
        plan[f"gpu-{i}"] = {"env": env | {"CUDA_VISIBLE_DEVICES": device}, "resources": {"GPU": 1}}
    return plan


class ResultLost(SmearflowError, ConnectionError):
    """A worker died with a finished result that nobody had fetched."""


class Workers:
    """The workers of a flow run: a local cluster, or an existing one by its scheduler's address.

    Without an address, that of SMEARFLOW_SCHEDULER; `n_workers` are those of a local cluster without a GPU.
    """

    def __init__(self, scheduler: str | None = None, n_workers: int | None = None) -> None:
        self.scheduler = scheduler or os.environ.get("SMEARFLOW_SCHEDULER") or None
        self.n_workers = n_workers
        self._client: Any = None
        self._cluster: Any = None
        self._counted: tuple[float, int] | None = None  # when the workers were counted, and how many
        self._dead: set[Any] = set()  # nannies whose worker was not there at the last look

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def client(self) -> Any:
        """The Dask client; the cluster starts here."""
        if self._client is None:
            self._start()
        return self._client

    def _start(self) -> None:
        import dask
        from distributed import Client, LocalCluster

        # One process a worker: image libraries and ONNX Runtime hold the GIL or keep thread pools, and a
        # killed process costs one item.  One thread each, since the processes already fill the cores.
        dask.config.set(
            {
                # Dask has glibc hand memory back after every large array; images are nothing else, and a
                # registration then spends half of its time on fresh pages (benchmarks/night.py).
                "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 256 << 20,
                "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 32 << 20,
                "distributed.worker.daemon": True,
                # Dask samples the stacks of workers, scheduler and client a hundred times a second for its
                # dashboard's profile page, which nobody opens here, and weighs memory for moving results.
                "distributed.worker.profile.enabled": False,
                "distributed.scheduler.active-memory-manager.start": False,
                "distributed.admin.system-monitor.interval": "5s",
                "distributed.admin.tick.interval": "500ms",
                "distributed.worker.memory.monitor-interval": "250ms",
                "distributed.scheduler.allowed-failures": 3,
                # A LocalCluster gives a worker up for good that is missing so long after it was first lost,
                # also where its nanny has restarted it since and it was lost a second time.
                "distributed.deploy.lost-worker-timeout": "30 days",
                "distributed.comm.timeouts.connect": "20s",
                "distributed.admin.log-format": "%(name)s - %(levelname)s - %(message)s",
            }
        )
        for name in ("distributed", "distributed.worker", "distributed.scheduler"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # The nanny warns of every worker that takes its time to end; a lost worker is told by its items.
        logging.getLogger("distributed.nanny").setLevel(logging.ERROR)
        if self.scheduler is not None:
            try:
                self._client = Client(self.scheduler, timeout="5s", set_as_default=False)
            except (OSError, TimeoutError, ValueError) as error:
                raise BadInput(
                    f"{self.scheduler}: no Dask scheduler answers there ({error}); start one with 'dask "
                    "scheduler' or leave out --scheduler."
                ) from error
            return
        from distributed.system import MEMORY_LIMIT

        devices = gpu_devices()
        plan = plan_workers(self.n_workers, os.cpu_count() or 1, devices)
        self._cluster = LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            memory_limit=MEMORY_LIMIT // len(plan),
            silence_logs=logging.WARNING,
        )
        # A LocalCluster makes its workers all alike; these differ in what they see and offer.
        each: Any = self._cluster.new_spec
        for name, options in plan.items():
            self._cluster.worker_spec[name] = {**each, "options": {**each["options"], **options}}
        self._cluster.scale(len(plan))
        self._client = Client(self._cluster, set_as_default=False)
        self._client.wait_for_workers(len(plan), timeout=NO_WORKERS_S)
        log.info("Dask cluster with %d worker processes, %d of a GPU", len(plan), len(devices))

    def restart_if_lost(self) -> None:
        """Start anew, or connect anew, after a ClusterGone; the next batch does it."""
        if self._client is not None and self._client.status != "running":
            self.close()

    def has_gpu(self) -> bool:
        """Whether any worker offers the resource GPU."""
        info = self.client.scheduler_info(n_workers=-1)["workers"]
        return any(w.get("resources", {}).get("GPU") for w in info.values())

    def map(
        self,
        function: Callable[..., Any],
        calls: dict[str, tuple[Any, ...]],
        *,
        gpu: bool = False,
        alone: bool = False,
    ) -> Iterator[tuple[str, Any, BaseException | None]]:
        """Run `function(*args)` for each key on the workers; yield (key, result, error) as they end.

        No more than IN_FLIGHT_PER_WORKER bundles of calls a worker are handed over and unanswered, so that
        neither the scheduler nor this process holds more for a long night than for a short one.  A call
        that kills its worker comes back as an error, and so do those of its bundle; raises ClusterGone
        where the scheduler, or every worker, is lost, and
        Stopped where the run was told to end.  With `alone` one call is handed over at a time:
        Dask suspects every call that was with a worker when it died.
        """
        from distributed import wait

        resources = {"GPU": 1} if gpu and self.has_gpu() else None
        waiting = iter(_bundles(calls, 1 if alone else self._bundle_of(len(calls))))
        running: dict[Any, list[str]] = {}
        silent_since = time.monotonic()
        try:
            while True:
                check()
                for bundle in itertools.islice(waiting, self._room(len(running), alone)):
                    running[self._submit(function, list(bundle.values()), resources)] = list(bundle)
                if not running:
                    return
                try:
                    with self.client.as_current():
                        done = wait(list(running), timeout=LOOK_S, return_when="FIRST_COMPLETED").done
                except TimeoutError:
                    silent_since = self._patience(silent_since)
                    continue
                except CancelledError:  # the futures of a client whose scheduler is lost
                    raise _scheduler_lost() from None
                silent_since = time.monotonic()
                for future in done:
                    keys = running.pop(future)
                    answers, error = self._answer(future)
                    future.release()
                    for key, answer in zip(keys, answers or itertools.repeat((None, error)), strict=False):
                        yield key, *answer
        finally:
            for future in running:  # whoever reads this stopped early, or the cluster is gone
                future.release()

    def _bundle_of(self, n_calls: int) -> int:
        workers = max(1, self._n_workers())
        return max(1, min(MOST_IN_BUNDLE, n_calls // (workers * BUNDLES_PER_WORKER)))

    def _submit(self, function: Callable[..., Any], bundle: list[tuple[Any, ...]], resources: Any) -> Any:
        try:
            return self.client.submit(_run_each, function, bundle, pure=False, retries=0, resources=resources)
        except RuntimeError as error:  # distributed's word for a client that is closed or not connected
            raise _scheduler_lost() from error

    def _answer(
        self, future: Any
    ) -> tuple[list[tuple[Any, BaseException | None]] | None, BaseException | None]:
        """What the calls of a bundle that ended came to, or the error of all of them.

        Where its worker died with the result, Dask computes it again, which may take its time or fail.
        """
        since = time.monotonic()
        while True:
            if future.status in ("cancelled", "lost"):
                return None, self._result_lost()
            if future.status == "error":
                return None, future.exception()
            try:
                return future.result(timeout=LOOK_S), None
            except CancelledError:
                return None, self._result_lost()
            except TimeoutError:
                since = self._patience(since)
            except Exception as error:
                return None, error

    def _result_lost(self) -> ResultLost:
        """The error of one call; raises ClusterGone where the scheduler is lost with all of them."""
        self._n_workers(now=True)
        return ResultLost("a worker died with the result; the call has to be made again.")

    def _patience(self, since: float) -> float:
        """Since when there is no worker: now, where there is one; raises ClusterGone after too long."""
        if self._n_workers(now=True):
            return time.monotonic()
        if time.monotonic() - since > NO_WORKERS_S:
            raise ClusterGone(
                f"the Dask cluster has had no worker for {NO_WORKERS_S:.0f} s; see why its workers die, and "
                "run again."
            )
        return since

    def _n_workers(self, *, now: bool = False) -> int:
        """Workers that the scheduler knows (an adaptive cluster grows and shrinks); asked now and then."""
        if self.client.status not in ("running", "connecting"):
            raise _scheduler_lost()
        if now or self._counted is None or time.monotonic() - self._counted[0] > LOOK_S:
            try:
                n = len(self.client.scheduler_info(n_workers=-1)["workers"])
            except (OSError, RuntimeError, TimeoutError) as error:
                raise _scheduler_lost() from error
            self._counted = (time.monotonic(), n)
            self._revive(n)
        return self._counted[1]

    def _revive(self, n_alive: int) -> None:
        """Start workers of the own cluster again whose nannies gave up.

        A nanny does not restart a worker that died while it was starting, which a call that kills at once
        does to it.  One look's grace is for those that are being restarted.
        """
        nannies = list(self._cluster.workers.values()) if self._cluster is not None else []
        dead = {n for n in nannies if not n.is_alive()} if n_alive < len(nannies) else set()
        for nanny in dead & self._dead:
            log.warning("a worker died while it was starting; it is started again")
            self._cluster.sync(nanny.restart, asynchronous=False)
        self._dead = dead - self._dead

    def _room(self, n_running: int, alone: bool) -> int:
        if alone:
            return 1 - n_running
        return max(0, IN_FLIGHT_PER_WORKER * max(1, self._n_workers()) - n_running)

    def close(self) -> None:
        """Stop what was started here; an existing cluster is only left."""
        self._counted, self._dead = None, set()
        if self._client is not None:
            with contextlib.suppress(OSError, TimeoutError):  # of a scheduler that is not there any more
                self._client.close()
            self._client = None
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


def _bundles(calls: dict[str, tuple[Any, ...]], size: int) -> Iterator[dict[str, tuple[Any, ...]]]:
    rows = iter(calls.items())
    while bundle := dict(itertools.islice(rows, size)):
        yield bundle


def _run_each(
    function: Callable[..., Any], bundle: list[tuple[Any, ...]]
) -> list[tuple[Any, BaseException | None]]:
    """On the worker: (result, None) or (None, error) of each call; one that fails leaves the others alone."""
    answers: list[tuple[Any, BaseException | None]] = []
    for args in bundle:
        try:
            answers.append((function(*args), None))
        except Exception as error:
            answers.append((None, _fit_to_travel(error)))
    return answers


def _fit_to_travel(error: Exception) -> Exception:
    """The error, or, where it would not come out on the other side, one of its words."""
    try:
        pickle.dumps(copy.copy(error))  # a copy is made the way it is unpacked
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _scheduler_lost() -> ClusterGone:
    return ClusterGone("the connection to the Dask scheduler was lost; start it again, and run again.")
