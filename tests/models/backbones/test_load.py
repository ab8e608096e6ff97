"""Backbones by name: unknown names are refused, and nothing is imported that was not asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone


def test_unknown_names_say_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown image backbone; got: resnet; expected: efficientnet-lite0"
    ):
        load_image_backbone("resnet")
    with pytest.raises(ConfigError, match="unknown text backbone; got: efficientnet-lite0; expected: minilm"):
        load_text_backbone("efficientnet-lite0")


def test_packaged_backbones_do_not_import_transformers() -> None:
    code = (
        "import sys; from zscmr_ray.models.backbones import load_image_backbone as i, load_text_backbone as t;"
        "i('tiny'), t('tiny'); import zscmr_ray.models.backbones.minilm, zscmr_ray.models.backbones.efficientnet;"
        "assert 'transformers' not in sys.modules and 'ray' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
