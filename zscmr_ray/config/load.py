"""Build a configuration: `default < recipe < YAML < --set`, with every wrong key or value said clearly.

The YAML file holds operator sections only, so that no file overrides an ablation (DESIGN 4).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from zscmr_ray.config import OPERATOR_SECTIONS, RESEARCH_SECTIONS, Config, Section
from zscmr_ray.errors import ConfigError
from zscmr_ray.recipes import recipe_config

DEFAULT_FILE = Path("ray_config.yaml")


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration and, per dotted key that is not a default, where its value came from."""

    config: Config
    sources: Mapping[str, str]


def load_config(
    path: str | Path | None = None, *, recipe: str = "fgan", overrides: Sequence[str] = ()
) -> LoadedConfig:
    """Load a configuration; `overrides` are `section.key=value` texts, their values read as YAML.

    Without a path, `ray_config.yaml` in the current directory is read when it is there. Raises ConfigError for an
    unknown recipe, key or value, naming the nearest key.
    """
    base = recipe_config(recipe)
    values = base.model_dump()
    defaults = dict(flatten(Config().model_dump()))
    sources = {key: f"recipe {recipe}" for key, value in flatten(values) if value != defaults[key]}
    file = _config_file(path)
    if file is not None:
        for key, value in flatten(_read_yaml(file)):
            _assign(values, key, value, origin=str(file))
            sources[key] = str(file)
    for text in overrides:
        key, value = parse_override(text)
        _assign(values, key, value, origin="--set")
        sources[key] = "--set"
    return LoadedConfig(_validate(values, sources), sources)


def parse_override(text: str) -> tuple[str, Any]:
    """Split `a.b=value` and read the value as YAML.

    >>> parse_override("optim.lr=1e-3")
    ('optim.lr', 0.001)
    """
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise ConfigError(
            "not an override", got=text, expected="section.key=value", remedy="--set train.seed=1"
        )
    try:
        value = yaml.safe_load(raw) if raw else ""
    except yaml.YAMLError as error:
        raise ConfigError("not a YAML value", got=text, expected="section.key=value") from error
    return key.strip(), _number(value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings as dotted keys.

    >>> list(flatten({"a": {"b": 1}, "c": 2}))
    [('a.b', 1), ('c', 2)]
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def all_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the configuration, in the order of its definition."""
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from all_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _config_file(path: str | Path | None) -> Path | None:
    if path is None:
        return DEFAULT_FILE if DEFAULT_FILE.exists() else None
    if not Path(path).is_file():
        raise ConfigError("no such configuration file", got=path, remedy="give the path of a YAML file")
    return Path(path)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("not valid YAML", got=f"{file}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError("a configuration file holds sections", got=f"{file}: {type(content).__name__}")
    for name in content:
        if name in RESEARCH_SECTIONS or name == "recipe":
            raise ConfigError(
                f"`{name}` does not belong in {file}",
                expected=f"operator sections only: {', '.join(OPERATOR_SECTIONS)}",
                remedy=f"choose a recipe (--recipe) or use --set {name}...=value",
            )
    return content


def _assign(values: dict[str, Any], key: str, value: Any, *, origin: str) -> None:
    known = list(all_keys())
    if key not in known and "accumul" in key:
        raise ConfigError(
            "plain gradient accumulation under a contrastive loss: each micro batch would see only itself",
            got=f"{key} (from {origin})",
            expected="train.global_batch_size, the contrast set of a step, encoded so many rows at a time",
            remedy="--set train.micro_batch_size=<rows>: memory of one micro batch, the loss of the whole batch",
        )
    if key not in known:
        raise ConfigError(
            "unknown configuration key",
            got=f"{key} (from {origin})",
            expected=f"one of {len(known)} keys{_nearest(key, known)}",
            remedy="`zscmr config explain` lists them all",
        )
    *sections, name = key.split(".")
    target = values
    for section in sections:
        target = target[section]
    target[name] = value


def _nearest(key: str, known: Iterable[str]) -> str:
    """The closest key as text: the same last word in another section first, then the most similar spelling."""
    candidates = list(known)
    last = key.rpartition(".")[2]
    close = [name for name in candidates if name.rpartition(".")[2] == last]
    close = close or difflib.get_close_matches(key, candidates, n=1, cutoff=0.6)
    return f", nearest: {close[0]}" if close else ""


def _validate(values: dict[str, Any], sources: Mapping[str, str]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"wrong value for {key}",
            got=f"{first.get('input')!r} (from {sources.get(key, 'the recipe')})",
            expected=first["msg"],
            remedy=f"`zscmr config explain {key}` says what it means",
        ) from error


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 (no dot) as text; a user who types it means the number.
    if isinstance(value, str):
        try:
            return float(value) if any(mark in value for mark in "eE.") else value
        except ValueError:
            return value
    return value
