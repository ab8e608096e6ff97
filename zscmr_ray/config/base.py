"""What every section of the configuration is made of: frozen models whose fields say what they affect.

`affects` is one of: `output` (bytes on disk or answers change: part of the stage's hash), `speed` (only how fast),
`place` (only where things are). A field without it is a mistake that a test finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Affects = Literal["output", "speed", "place"]


class Section(BaseModel):
    """A frozen section; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def output_fields(self) -> dict[str, Any]:
        """The values that affect output, nested sections included, as plain JSON values."""
        dumped = self.model_dump(mode="json")
        chosen: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Section):
                chosen[name] = value.output_fields()
            elif affects_of(info) == "output":
                chosen[name] = dumped[name]
        return chosen


def setting(default: Any, affects: Affects, meaning: str, **constraints: Any) -> Any:
    """One configuration field: default, what it affects, and its meaning with unit and range."""
    return Field(default, description=meaning, json_schema_extra={"affects": affects}, **constraints)


def nested(section: type[Section], meaning: str) -> Any:
    """A section inside a section."""
    return Field(default_factory=section, description=meaning, json_schema_extra={"affects": "section"})


def affects_of(info: Any) -> str | None:
    """What a pydantic field affects, or None when it does not say."""
    extra = info.json_schema_extra
    return extra.get("affects") if isinstance(extra, dict) else None


def without_places(dumped: Mapping[str, Any], section: type[Section]) -> dict[str, Any]:
    """A section's dumped values without the fields that say only where things are; unknown keys stay.

    For what is published: folders, buckets and addresses of a run are nobody else's business.
    """
    kept: dict[str, Any] = {}
    for name, value in dumped.items():
        info = section.model_fields.get(name)
        inner = info.annotation if info is not None else None
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, Section):
            kept[name] = without_places(value, inner)
        elif info is None or affects_of(info) != "place":
            kept[name] = value
    return kept
