"""The CRD's CEL rules, evaluated as the API server does: with `self`, `oldSelf` in an update, and the same path and message for the user.

The evaluator is `cel-expr-python`, which wraps the CEL project's own C++ implementation: the language's reference next to the Go one inside
the API server, with the same RE2 behind `matches`, and no dependency of its own. The pure-Python `cel-python` is orders of magnitude slower
and brings its own regular expressions; `common-expression-language` uses Rust's, whose syntax differs. Kubernetes' own CEL libraries
(quantity, url, format) exist in none of them, so the CRD's rules keep to the standard ones.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from cel_expr_python import cel

from lepton_operator.local.crd import Schema
from lepton_operator.local.schema import Problem, invalid

RULES = "x-kubernetes-validations"
USES_OLD = re.compile(r"\boldSelf\b")


def broken_rules(value: Any, old: Any, schema: Schema, path: str = "") -> Iterator[Problem]:
    """Every rule that `value` breaks; `old` is the value before an update, None when there was none."""
    if value is None:
        return
    for rule in schema.get(RULES, ()):
        if USES_OLD.search(rule["rule"]) and old is None:
            continue
        problem = _evaluate(rule, value, old, schema, path)
        if problem is not None:
            yield problem
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            before = old.get(key) if isinstance(old, dict) else None
            if key in properties:
                yield from broken_rules(item, before, properties[key], f"{path}.{key}" if path else key)
            elif isinstance(extra, dict):
                yield from broken_rules(item, before, extra, f"{path}[{key}]")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from broken_rules(item, _same_entry(item, old, schema), schema.get("items", {}), f"{path}[{index}]")


def _evaluate(rule: dict[str, str], value: Any, old: Any, schema: Schema, path: str) -> Problem | None:
    data = {"self": _comparable(value, schema), "oldSelf": _comparable(old, schema)}
    outcome = _compiled(rule["rule"]).eval(data=data)
    where = path + rule.get("fieldPath", "")
    where = where if path else where.removeprefix(".")
    if outcome.type() == cel.Type.ERROR:
        return invalid(path, schema.get("type", ""), f"{outcome.value()} evaluating rule: {rule.get('message', rule['rule'])}")
    if outcome.value() is True:
        return None
    detail = rule.get("message", "")
    if "messageExpression" in rule:
        said = _compiled(rule["messageExpression"]).eval(data=data)
        detail = str(said.value()) if said.type() == cel.Type.STRING else detail
    detail = detail or f"failed rule: {rule['rule']}"
    return Problem(where, "Invalid value", detail) if schema.get("type") in ("object", "array") else invalid(where, value, detail)


def _comparable(value: Any, schema: Schema) -> Any:
    """`value` as CEL sees it in the API server: no field that the schema does not name, and list maps in the order of their keys."""
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
        parts = {key: properties.get(key, extra if isinstance(extra, dict) else None) for key in value}
        return {key: _comparable(value[key], part) for key, part in parts.items() if part is not None}
    if isinstance(value, list):
        items = [_comparable(item, schema.get("items", {})) for item in value]
        keys = schema.get("x-kubernetes-list-map-keys")
        return sorted(items, key=lambda item: [str(item.get(key)) for key in keys]) if keys else items
    return int(value) if isinstance(value, float) and value.is_integer() and schema.get("type") != "number" else value


def _same_entry(item: Any, old: Any, schema: Schema) -> Any:
    """The entry of a list map that `item` was before; entries of other lists have no past."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if not keys or not isinstance(old, list) or not isinstance(item, dict):
        return None
    return next((before for before in old if all(before.get(key) == item.get(key) for key in keys)), None)


@cache
def _environment() -> cel.Env:
    return cel.NewEnv(variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN})


@cache
def _compiled(expression: str) -> cel.Expression:
    return _environment().compile(expression)
