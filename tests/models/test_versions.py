"""A method's version: in an architecture, and refused where it is another's."""

from __future__ import annotations

import pytest

from zscmr_ray.errors import RefusedError
from zscmr_ray.models.build import METHODS, build_model, own_settings
from zscmr_ray.models.versions import METHOD_VERSIONS, VERSION, version_facts

WIDTHS = {"image_channels": 7, "text_channels": 5, "num_classes": 6}


def test_versions_are_of_methods_that_exist_and_above_1() -> None:
    assert METHOD_VERSIONS.keys() <= METHODS.keys()
    assert all(version > 1 for version in METHOD_VERSIONS.values()), "version 1 is written nowhere"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_architecture_names_its_version(method: str) -> None:
    architecture = own_settings({"method": method, **WIDTHS})
    assert architecture.get(VERSION, 1) == METHOD_VERSIONS.get(method, 1)
    built = build_model(architecture).architecture()
    assert {name: built[name] for name in built if name == VERSION} == version_facts(method)


@pytest.mark.parametrize("found", [None, 3, 99])
def test_a_checkpoint_of_another_version_is_refused(found: int | None) -> None:
    architecture = own_settings({"method": "best", **WIDTHS}) | {VERSION: found}
    if found is None:
        del architecture[VERSION]
    with pytest.raises(RefusedError, match="another version of method best"):
        build_model(architecture)


def test_a_version_of_a_method_without_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = own_settings({"method": "fgan", **WIDTHS})
    build_model(architecture)
    monkeypatch.setitem(METHOD_VERSIONS, "fgan", 2)
    with pytest.raises(RefusedError, match="before they were written down"):
        build_model(architecture)
