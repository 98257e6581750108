"""The published schema of `result.json`, and reading a document against it."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pipeline.errors import BadInput
from pipeline.result import SCHEMA_VERSION, Result

SCHEMA_ID = f"urn:smearflow:result:{SCHEMA_VERSION}"


def json_schema() -> dict[str, Any]:
    """The published schema of `result.json`, JSON Schema 2020-12."""
    schema = Result.model_json_schema(mode="serialization", by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **schema,
        "title": "smearflow per-case result",
    }


def schema_text() -> str:
    """The text of `docs/result.schema.json`."""
    return json.dumps(json_schema(), indent=1, sort_keys=True) + "\n"


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json_schema())


def validate_document(document: Any, name: str = "result.json") -> None:
    """Raise BadInput, naming the place, unless a parsed document follows the published schema."""
    error = next(iter(sorted(_validator().iter_errors(document), key=lambda e: list(map(str, e.path)))), None)
    if error is not None:
        where = "/".join(str(p) for p in error.path) or "the document"
        raise BadInput(
            f"{name}: {where}: {error.message[:300]}; it does not follow schema {SCHEMA_VERSION}, "
            "make it again with `smearflow run`."
        )


def read_result(text: str | bytes, name: str = "result.json") -> Result:
    """A result from its JSON text; raises BadInput where it is no valid result."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{name} is not JSON ({error}); make it again with `smearflow run`.") from error
    validate_document(document, name)
    return Result.model_validate(document)


if __name__ == "__main__":  # python -m pipeline.result_schema > docs/result.schema.json
    print(schema_text(), end="")
