"""The model's card, Markdown beside the weights: what it is, from which data, how well it does, what was optimised, under which licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def text(manifest: Mapping[str, Any]) -> str:
    """The card of a manifest whose `files` are those of its version, the card itself left out."""
    metric = manifest["metric"]
    parts = [
        f"# {manifest['task']}, {metric} {manifest['metrics'][metric]:.4f}",
        f"Exported by Lepton's trainer after step {manifest['source']['step']}. {_input(manifest)}",
        "| | |\n|---|---|",
    ]
    rows = {
        "licence": manifest["licence"],
        "data (hash of what was prepared from it)": f"`{manifest['source']['data']}`",
        "round": manifest["source"]["round"],
        "created": manifest["created"],
        "torch": manifest["torch"],
        **{name: f"{value:.6g}" for name, value in manifest["metrics"].items()},
    }
    parts[-1] += "".join(f"\n| {name} | {value} |" for name, value in rows.items())
    parts.append("The figures are those of the exported weights, loaded again, on the held-out split.")
    if "curves.png" in {name.rsplit("/", 1)[-1] for name in manifest["files"]}:
        parts.append("![loss, metric and learning rate over the steps](curves.png)")
    if manifest["optimisations"]:
        parts.append("## Optimisations\n\n" + _optimisations(manifest["optimisations"], metric))
    if manifest["formats"]:
        lines = [f"| {kind} | `{fact['file']}` | {_checked(fact)} |" for kind, fact in manifest["formats"].items()]
        parts.append("## Formats\n\n| format | file | difference from the original |\n|---|---|---|\n" + "\n".join(lines))
    parts.append(f"## Configuration\n\n```json\n{json.dumps(manifest['configuration'], indent=2)}\n```")
    return "\n\n".join(parts) + "\n"


def _input(manifest: Mapping[str, Any]) -> str:
    labels = manifest.get("labels") or []
    return f"Answers with one of {len(labels)} labels." if labels else ""


def _checked(fact: Mapping[str, Any]) -> str:
    return f"{fact['difference']:.2g} of the largest output, {fact['samples']} samples, tolerance {fact['tolerance']:g}"


def _optimisations(rows: list[dict[str, Any]], metric: str) -> str:
    lines = [f"| method | {metric} | bytes | ms, one sample | ms, 32 samples | kept |", "|---|---|---|---|---|---|"]
    for row in rows:
        before, after = row["before"], row.get("after")

        def pair(name: str, form: str, had: dict[str, Any] = before, has: dict[str, Any] | None = after) -> str:
            return f"{had[name]:{form}}" + (f" → {has[name]:{form}}" if has else "")

        kept = "yes" if row["kept"] else f"no: {row['reason']}"
        figures = [pair(metric, ".4f"), pair("bytes", ",.0f"), pair("milliseconds", ".2f"), pair("milliseconds_of_32", ".2f")]
        lines.append(f"| {row['method']} | {' | '.join(figures)} | {kept} |")
    return "\n".join(lines)
