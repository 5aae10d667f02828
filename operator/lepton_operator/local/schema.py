"""What the API server does with a custom resource and a structural schema: unknown fields, nulls and defaults, then each value.

Only the keywords that our CRD uses are here, each with the API server's own path and message; `rules` evaluates the CEL rules. A general
JSON Schema library would find the same faults in other words, and knows neither pruning nor list maps.
"""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from lepton_operator.local.crd import Schema

# Fields of every object that no CRD lists. A mistyped one is reported like any other.
TYPE_FIELDS = frozenset({"apiVersion", "kind", "metadata"})
METADATA_FIELDS = frozenset(
    {
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "managedFields",
        "name",
        "namespace",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    }
)
INT_OR_STRING = "x-kubernetes-int-or-string"
PRESERVE = "x-kubernetes-preserve-unknown-fields"


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a manifest. `str()` of it is the line that kubectl prints."""

    path: str  # "spec.workers.replicas"; empty: the whole object
    kind: str  # "Invalid value", "Required value", "Unsupported value", "Duplicate value", "Too long", "Too many"
    detail: str = ""
    value: Any = None
    shows_value: bool = False
    blocks_rules: bool = False  # the API server evaluates no CEL rule while such a fault stands

    def __str__(self) -> str:
        parts = [self.path or "<nil>", f"{self.kind}: {_shown(self.value)}" if self.shows_value else self.kind, self.detail]
        return ": ".join(part for part in parts if part)


def invalid(path: str, value: Any, detail: str, *, blocks_rules: bool = False) -> Problem:
    return Problem(path, "Invalid value", detail, value, shows_value=True, blocks_rules=blocks_rules)


def unknown_fields(value: Any, schema: Schema, path: str = "") -> Iterator[str]:
    """Paths of the fields that the schema does not have."""
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            where = f"{path}.{key}" if path else str(key)
            if not path and key == "metadata":
                yield from (f"metadata.{name}" for name in item if name not in METADATA_FIELDS) if isinstance(item, dict) else ()
            elif key in properties:
                yield from unknown_fields(item, properties[key], where)
            elif isinstance(extra, dict):
                yield from unknown_fields(item, extra, where)
            elif not schema.get(PRESERVE) and (path or key not in TYPE_FIELDS):
                yield where
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from unknown_fields(item, schema.get("items", {PRESERVE: schema.get(PRESERVE, False)}), f"{path}[{index}]")


def with_defaults(value: Any, schema: Schema) -> Any:
    """A copy of `value` with the schema's defaults put in, and without the nulls that the schema does not allow."""
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
        merged = dict(value)
        for key, part in properties.items():
            if "default" in part and merged.get(key) is None:
                merged[key] = deepcopy(part["default"])
        result = {}
        for key, item in merged.items():
            part = properties.get(key, extra if isinstance(extra, dict) else None)
            if part is None:
                result[key] = deepcopy(item)
            elif item is not None or part.get("nullable"):
                result[key] = with_defaults(item, part)
        return result
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items", {})) for item in value]
    return value


def faults(value: Any, schema: Schema, path: str = "") -> Iterator[Problem]:
    """Every value that the schema's own keywords refuse, in the schema's order."""
    allowed = ("integer", "string") if schema.get(INT_OR_STRING) else (schema["type"],) if "type" in schema else ()
    found = _type_of(value)
    if allowed and found not in allowed and not (found == "integer" and "number" in allowed):
        message = f'{path} in body must be of type {",".join(allowed)}: "{found}"'
        yield invalid(path, found, message, blocks_rules=True)
    if isinstance(value, str):
        yield from _string_faults(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number_faults(value, schema, path)
    elif isinstance(value, list):
        yield from _list_faults(value, schema, path)
    elif isinstance(value, dict):
        yield from _object_faults(value, schema, path)
    if "enum" in schema and value not in schema["enum"]:
        names = ", ".join(json.dumps(str(name)) for name in schema["enum"])
        yield Problem(path, "Unsupported value", f"supported values: {names}", value, shows_value=True, blocks_rules=True)


def duplicates(value: Any, schema: Schema, path: str = "") -> Iterator[Problem]:
    """Entries of list maps that are none, or have the keys of an earlier one; each set of keys is reported once."""
    if isinstance(value, dict):
        extra = schema.get("additionalProperties")
        for key, item in value.items():
            if key in schema.get("properties", {}):
                yield from duplicates(item, schema["properties"][key], f"{path}.{key}" if path else key)
            elif isinstance(extra, dict):
                yield from duplicates(item, extra, f"{path}[{key}]")
    elif isinstance(value, list):
        if schema.get("x-kubernetes-list-type") == "map":
            yield from _list_map_faults(value, schema["x-kubernetes-list-map-keys"], path)
        for index, item in enumerate(value):
            yield from duplicates(item, schema.get("items", {}), f"{path}[{index}]")


def _list_map_faults(entries: list[Any], keys: list[str], path: str) -> Iterator[Problem]:
    for index, entry in enumerate(entries):
        if entry is not None and not isinstance(entry, dict):
            yield invalid(f"{path}[{index}]", entry, "must be an object for an array of list-type map")
            return
    counts: dict[str, int] = {}
    for index, entry in enumerate(entries):
        given = {key: entry[key] for key in keys if key in (entry or {})}
        seen = json.dumps(given, sort_keys=True)
        counts[seen] = counts.get(seen, 0) + 1
        if counts[seen] == 2:
            yield Problem(f"{path}[{index}]", "Duplicate value", value=given, shows_value=True)


def _string_faults(value: str, schema: Schema, path: str) -> Iterator[Problem]:
    if len(value) > schema.get("maxLength", len(value)):
        yield Problem(path, "Too long", f"may not be more than {schema['maxLength']} bytes", blocks_rules=True)
    if len(value) < schema.get("minLength", 0):
        yield invalid(path, value, f"{path} in body should be at least {schema['minLength']} chars long")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield invalid(path, value, f"{path} in body should match '{schema['pattern']}'")
    if schema.get("format") == "date-time" and not _is_time(value):
        yield invalid(path, value, f'{path} in body must be of type date-time: "{value}"', blocks_rules=True)


def _number_faults(value: float, schema: Schema, path: str) -> Iterator[Problem]:
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    if value < low or (value == low and schema.get("exclusiveMinimum")):
        words = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        yield invalid(path, value, f"{path} in body should be {words} {_bound(low, value)}")
    if value > high or (value == high and schema.get("exclusiveMaximum")):
        words = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        yield invalid(path, value, f"{path} in body should be {words} {_bound(high, value)}")


def _bound(bound: float, value: float) -> str:
    """A whole number beside a whole number."""
    return str(int(bound)) if isinstance(value, int) else _digits(bound)


def _digits(number: float) -> str:
    """As Go prints it: the shortest digits that mean this number, with an exponent below 0.0001 and from 1e+06 on."""
    mantissa, _, exponent = repr(float(number)).partition("e")
    digits = Decimal(mantissa).scaleb(int(exponent or 0)).normalize()
    power = digits.adjusted()
    if -4 <= power < 6 or not digits:
        return f"{digits:f}"
    first, *others = (str(digit) for digit in digits.as_tuple().digits)
    return f"{'-' if digits < 0 else ''}{first}{'.' if others else ''}{''.join(others)}e{power:+03d}"


def _list_faults(value: list[Any], schema: Schema, path: str) -> Iterator[Problem]:
    for index, item in enumerate(value):
        yield from faults(item, schema.get("items", {}), f"{path}[{index}]")
    if len(value) > schema.get("maxItems", len(value)):
        yield _too_many(path, len(value), schema["maxItems"])


def _object_faults(value: dict[str, Any], schema: Schema, path: str) -> Iterator[Problem]:
    if len(value) > schema.get("maxProperties", len(value)):
        yield _too_many(path, len(value), schema["maxProperties"])
    properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
    for key in sorted(value, key=lambda name: list(properties).index(name) if name in properties else len(properties)):
        part = properties.get(key, extra if isinstance(extra, dict) else None)
        if part is not None:
            yield from faults(value[key], part, f"{path}.{key}" if path else key)
    for key in schema.get("required", ()):
        if key not in value:
            yield Problem(f"{path}.{key}" if path else key, "Required value", blocks_rules=True)


def _too_many(path: str, count: int, limit: int) -> Problem:
    return Problem(path, "Too many", f"must have at most {limit} items", count, shows_value=True, blocks_rules=True)


def _type_of(value: Any) -> str:
    """JSON's name of a value's type. A float without a fraction is an integer, as it is in JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _is_time(value: str) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _shown(value: Any) -> str:
    return _digits(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
