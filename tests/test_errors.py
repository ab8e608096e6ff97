"""Errors survive pickling, which is how Ray carries them between processes."""

from __future__ import annotations

import pickle

import pytest

from zscmr_ray.errors import ConfigError, DataError, RefusedError, StorageError, TrainingError, ZscmrError


@pytest.mark.parametrize(
    "kind", [ZscmrError, TrainingError, ConfigError, DataError, StorageError, RefusedError]
)
def test_pickling_keeps_every_part(kind: type[ZscmrError]) -> None:
    error = kind("what", got=1, expected="two", remedy="do this")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == "what; got: 1; expected: two; remedy: do this"
    assert again.remedy == "do this"
