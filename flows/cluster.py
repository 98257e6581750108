"""One Dask cluster per flow run, started when the first batch needs it.

Only paths, indices and small specs go through the scheduler; arrays stay in files and the store.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from pipeline.errors import BadInput

log = logging.getLogger("smearflow.cluster")


def gpu_count() -> int:
    """CUDA devices of this machine, without importing torch in the flow's own process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([v for v in visible.split(",") if v.strip() not in ("", "-1")])
    from pathlib import Path

    return (
        len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
        if Path("/proc/driver/nvidia/gpus").is_dir()
        else 0
    )


class Workers:
    """The workers of a flow run: a local cluster, or an existing one by its scheduler's address."""

    def __init__(self, scheduler: str | None = None, n_workers: int | None = None) -> None:
        self.scheduler = scheduler
        self.n_workers = n_workers
        self._client: Any = None
        self._cluster: Any = None

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
                "distributed.worker.daemon": True,
                "distributed.scheduler.allowed-failures": 3,
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
        gpus = gpu_count()
        workers = self.n_workers or (gpus if gpus else os.cpu_count() or 1)
        self._cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            resources={"GPU": 1} if gpus else None,
            silence_logs=logging.WARNING,
            env={"OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1", "MKL_NUM_THREADS": "1"},
        )
        self._client = Client(self._cluster, set_as_default=False)
        log.info("Dask cluster with %d worker processes%s", workers, " (GPU)" if gpus else "")

    def has_gpu(self) -> bool:
        """Whether any worker offers the resource GPU."""
        info = self.client.scheduler_info(n_workers=-1)["workers"]
        return any(w.get("resources", {}).get("GPU") for w in info.values())

    def map(
        self, function: Callable[..., Any], calls: dict[str, tuple[Any, ...]], *, gpu: bool = False
    ) -> Iterator[tuple[str, Any, BaseException | None]]:
        """Run `function(*args)` for each key on the workers; yield (key, result, error) as they end.

        No more than four calls a worker are in flight, so that a long night does not pile up results.
        """
        from distributed import as_completed

        resources = {"GPU": 1} if gpu and self.has_gpu() else None
        waiting = iter(calls.items())
        keys: dict[Any, str] = {}

        def submit() -> Any:
            for key, args in waiting:
                future = self.client.submit(function, *args, pure=False, retries=0, resources=resources)
                keys[future] = key
                return future
            return None

        width = 4 * max(1, len(self.client.scheduler_info(n_workers=-1)["workers"]))
        first = [f for f in (submit() for _ in range(width)) if f is not None]
        if not first:
            return
        running = as_completed(first, loop=self.client.loop)
        for future in running:
            key = keys.pop(future)
            error = future.exception() if future.status == "error" else None
            if future.status == "cancelled":
                error = ConnectionError("the Dask cluster went away while this was computed")
            yield key, (future.result() if error is None else None), error
            future.release()
            following = submit()
            if following is not None:
                running.add(following)

    def close(self) -> None:
        """Stop what was started here; an existing cluster is only left."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None
