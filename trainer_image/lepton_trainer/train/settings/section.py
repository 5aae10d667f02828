"""What every group of settings obeys: strict types, no unknown keys, no nulls; and how rules between settings reach the API server."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel

RULES = "x-kubernetes-validations"


class Section(BaseModel):
    """A group of settings: strict types, no unknown keys, no nulls."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            nulls = [str(key) for key, item in value.items() if item is None]
            if nulls:
                raise ValueError(f"{nulls[0]} has no value: leave the key out instead of writing null")
        return value


def between(*rules: tuple[str, str]) -> ConfigDict:
    """Rules between a section's settings as the API server judges them: (CEL, message). The models' own validators say the same."""
    return ConfigDict(json_schema_extra={RULES: [{"rule": rule, "message": message} for rule, message in rules]})


def needs_path(built_in: str) -> tuple[str, str]:
    return (
        f"!has(self.source) || self.source == '{built_in}' || has(self.path) && self.path != ''",
        f"data.path is missing: write the directory of the files, or source {built_in}",
    )
