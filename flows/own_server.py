"""Prefect's server of a run from the command line, where none is set up: it starts and ends with the run.

So do its records, which name the cases: they are in a folder of the run's own, that no one else can read.
"""

from __future__ import annotations

import flows.prefect_env  # noqa: F401  (sets Prefect's environment before it is imported below)

# isort: split
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from flows.stopping import check

LOG_CHARACTERS = 1000  # of a server that does not start, in the message


def _server(log: IO[bytes]) -> Any:
    """Prefect's temporary server, which Prefect then takes for its own."""
    import prefect
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    class OwnServer(SubprocessASGIServer):
        def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
            # As Prefect starts it, but in a session of its own: a signal to the run's process group must not
            # take it from under the run, which stops it itself.  What it says is of no use once it ran, and
            # it may end in pages of it.
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "uvicorn"),
                    *("--app-dir", str(Path(prefect.__file__).parent)),
                    *("--factory", "prefect.server.api.server:create_app"),
                    *("--host", "127.0.0.1", "--port", str(self.port)),
                    *("--log-level", "error", "--lifespan", "on"),
                ],
                env={
                    **os.environ,
                    "PREFECT_UI_ENABLED": "0",
                    "PREFECT__SERVER_EPHEMERAL": "1",
                    "PREFECT__SERVER_FINAL": "1",
                    **get_current_settings().to_environment_variables(exclude_unset=True),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    return OwnServer()


@contextmanager
def own_server() -> Iterator[None]:
    """Prefect's server for what runs inside: that of PREFECT_API_URL, else one of its own that ends with it.

    Its records go as well, unless PREFECT_HOME says where they shall stay.  Raises RuntimeError where it does
    not start.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    if PREFECT_API_URL.value():
        yield
        return
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        if not os.environ.get("PREFECT_HOME"):
            made = tempfile.TemporaryDirectory(prefix="smearflow-prefect-", ignore_cleanup_errors=True)
            stack.enter_context(temporary_settings({PREFECT_HOME: stack.enter_context(made)}))
        server = _server(log)
        stack.callback(server.stop)
        try:
            server.start()
        except RuntimeError as error:
            log.seek(0)
            said = log.read().decode("utf-8", "replace")[-LOG_CHARACTERS:]
            raise RuntimeError(f"Prefect's temporary server did not start: {error} {said}") from error
        check()
        yield
