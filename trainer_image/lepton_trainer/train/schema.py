"""The configuration described: a JSON Schema without references or nulls, and the same as text and as tables for the manual.

The schema is what a generator of the resource's definition takes: `$ref` inlined, every default given, no `anyOf`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lepton_trainer.train.config import TASKS
from lepton_trainer.train.settings.delivery import RESERVED
from lepton_trainer.train.settings.section import RULES


def of(task: str) -> dict[str, Any]:
    """The JSON Schema of one task's configuration, or of a group that stands beside it."""
    schema = (TASKS.get(task) or RESERVED[task]).model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    result: dict[str, Any] = _inline(schema, definitions)
    return result


def structural(task: str) -> dict[str, Any]:
    """The same as a structural schema of Kubernetes: exclusive bounds as flags, defaults in the descriptions, unknown keys left to the API
    server's strictness, and the rules between settings (CEL) where a group has some."""

    def walk(node: dict[str, Any]) -> dict[str, Any]:
        bounds = ("maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties")
        kept: dict[str, Any] = {key: node[key] for key in ("type", "enum", *bounds) if key in node}
        if isinstance(node.get("additionalProperties"), dict):  # a map
            kept["additionalProperties"] = walk(node["additionalProperties"])
        for bound in ("Minimum", "Maximum"):
            if f"exclusive{bound}" in node:
                kept |= {bound.lower(): node[f"exclusive{bound}"], f"exclusive{bound}": True}
        told = {"description": node["description"]} if "description" in node else {}
        if node.get(RULES):
            kept[RULES] = node[RULES]
        if "items" in node:
            kept["items"] = {key: node["items"][key] for key in ("type", "enum") if key in node["items"]}
        if "properties" in node:
            return told | kept | {"properties": {name: walk(item) for name, item in node["properties"].items()}}
        if "default" not in node or node["default"] in ("", {}):
            return kept | told
        return kept | {"description": f"{node['description']} Default {_default(node)}."}

    return walk(of(task))


def fields(task: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each setting of a task by its dotted name, with its schema; groups themselves left out."""

    def walk(prefix: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, item in node["properties"].items():
            if "properties" in item:
                yield from walk(f"{prefix}{name}.", item)
            else:
                yield f"{prefix}{name}", item

    yield from walk("", of(task))


def explain(task: str) -> str:
    """All settings of a task as plain text, a line each."""
    lines = [f"{task}: {((TASKS.get(task) or RESERVED[task]).__doc__ or '').strip()}", ""]
    for name, item in fields(task):
        lines.append(f"  {name} = {_default(item)}   ({kind(item)})")
        lines.append(f"      {item['description']}")
    return "\n".join(lines)


def table(task: str) -> str:
    """All settings of a task as a Markdown table."""
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, item in fields(task):
        rows.append(f"| `{name}` | {kind(item).replace('|', 'or')} | `{_default(item)}` | {item['description'].replace('|', 'or')} |")
    return "\n".join(rows)


def kind(item: dict[str, Any]) -> str:
    """A setting's type and bounds in words."""
    if item["type"] == "array":
        return f"list of {kind(item['items'])}"
    if "enum" in item:
        return " | ".join(map(str, item["enum"]))
    if "additionalProperties" in item:
        return f"map of {kind(item['additionalProperties'])}"
    low = f">= {item['minimum']:g}" if "minimum" in item else f"> {item['exclusiveMinimum']:g}" if "exclusiveMinimum" in item else ""
    high = f"<= {item['maximum']:g}" if "maximum" in item else f"< {item['exclusiveMaximum']:g}" if "exclusiveMaximum" in item else ""
    bounds = ", ".join(part for part in (low, high) if part)
    return f"{item['type']} {bounds}".strip()


def _default(item: dict[str, Any]) -> str:
    value = item["default"]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else '""' if value == "" else str(value)


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return {
        key: value if key == RULES else _inline(value, definitions)
        for key, value in node.items()
        if key != "title" or isinstance(value, dict)
    }
