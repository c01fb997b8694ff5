"""The configuration's JSON Schema (draft 2020-12), for editors and for those who generate configurations."""

from typing import Any

from proxy.settings.model import Settings

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """What a configuration file may hold. Rules between fields are beyond a schema: ``patgate check`` knows them."""
    schema = Settings.model_json_schema(mode="validation")
    return {"$schema": _DIALECT, **schema, "title": "patgate configuration"}
