"""The sections a researcher changes, through recipes or `--set`, never through the YAML file.

Symbols and published values: FGAN (Ge et al., TOMM 2025); see docs/science.md for where ours differ and why.
"""

from __future__ import annotations

from typing import Literal

from zscmr_ray.config.base import Section, setting


class ModelSection(Section):
    """The alignment network."""

    method: Literal["fgan"] = setting("fgan", "output", "fgan = fine-grained alignment network")
    width: int = setting(512, "output", "width D of tokens and region embeddings", ge=8)
    num_heads: int = setting(4, "output", "attention heads of the region scorer", ge=1)
    attention_dropout: float = setting(0.1, "output", "dropout of the scorer's attention weights", ge=0, lt=1)
    latent: int = setting(512, "output", "latent width of the label-distribution VAE", ge=2)
    image_trunk: Literal["linear", "none"] = setting(
        "linear", "output", "linear = Linear + LayerNorm to the width"
    )
    text_trunk: Literal["bigru", "linear"] = setting(
        "bigru", "output", "trainable layers under both text heads"
    )
    selection: Literal["topk", "mean"] = setting(
        "topk", "output", "topk = perturbed top-k, mean = mean pooling"
    )
    eval_selection: Literal["hard", "soft"] = setting("hard", "output", "region selection at retrieval time")
    ratio: float = setting(
        0.1, "output", "kept share of the tokens; k = max(1, round(ratio x length))", gt=0, le=1
    )
    rounding: Literal["ceil", "floor"] = setting(
        "ceil", "output", "of ratio x length; at least 1 token is kept"
    )
    num_noise_samples: int = setting(250, "output", "Gaussian perturbations n of the top-k", ge=1)
    sigma: float = setting(0.05, "output", "standard deviation of the perturbations", gt=0)
    label_head: bool = setting(True, "output", "learn label distributions (needs a teacher)")
    defect: int | None = setting(
        None, "output", "switch one defect of the released code back on (a study)", ge=1, le=12
    )


class LossSection(Section):
    """FGCL and FGLA, SCIENCE section 2; a term with weight 0 is not computed."""

    fgcl_weight: float = setting(1.0, "output", "weight of the contrastive loss", ge=0)
    negative_margin: float = setting(0.7, "output", "m1: the pair beats the hardest negative by this", ge=0)
    weak_margin: float = setting(
        0.3, "output", "m2: the farthest same-class non-pair stays this much farther", ge=0
    )
    weak_weight: float = setting(0.1, "output", "w: weight of the same-class term", ge=0)
    negatives: Literal["hardest", "mean"] = setting(
        "mean",
        "output",
        "the hardest negative of each row (published; collapses), or every one's hinge averaged",
    )
    fgla_weight: float = setting(1.0, "output", "weight of the label alignment", ge=0)
    reconstruction_weight: float = setting(1.0, "output", "weight of the VAE reconstruction", ge=0)
    kl_weight: float = setting(1e-4, "output", "weight of the VAE KL term", ge=0)
    prior_weight: float = setting(1.0, "output", "weight of KL(prior || predicted), both modalities", ge=0)
    cross_weight: float = setting(1.0, "output", "weight of the KLs between the modalities, both ways", ge=0)
    detach_targets: bool = setting(True, "output", "no gradient into reconstruction and cross-KL targets")


class OptimSection(Section):
    """Optimiser, schedule and when to stop."""

    lr: float = setting(4e-4, "output", "peak learning rate of AdamW", gt=0)
    weight_decay: float = setting(1e-4, "output", "decoupled weight decay", ge=0)
    warmup_steps: int = setting(10, "output", "linear warm-up before the cosine", ge=0)
    max_epochs: int = setting(6, "output", "passes over the training rows; the cosine ends here", ge=1)
    clip_norm: float = setting(1.0, "output", "global gradient norm is clipped here; 0 = never", ge=0)
    validate_every_epochs: int = setting(
        1, "output", "epochs between validations on pseudo-unseen classes", ge=1
    )
    patience_epochs: int = setting(4, "output", "stop after so many epochs without a better validation", ge=1)
