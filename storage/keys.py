"""The two keys of a laboratory, from the environment: of its pseudonyms, and of its audit log's seals."""

from __future__ import annotations

import os
from typing import Literal

from pipeline.errors import BadInput

Key = Literal["SMEARFLOW_PSEUDONYM_KEY", "SMEARFLOW_AUDIT_KEY"]
PSEUDONYM: Key = "SMEARFLOW_PSEUDONYM_KEY"
AUDIT: Key = "SMEARFLOW_AUDIT_KEY"


def key_of(variable: Key) -> bytes | None:
    """The key; None where there is none.

    Raises BadInput for one that is set and empty: a secret that was lost on its way is no wish to go without.
    """
    value = os.environ.get(variable)
    if value is None:
        return None
    if not value.strip():
        raise BadInput(f"{variable}: it is set, but empty; give the laboratory's key, or unset it.")
    return value.encode()
