"""The sections a researcher changes, through recipes or `--set`, never through the YAML file.

Symbols and published values: FGAN (Ge et al., TOMM 2025); see docs/science.md for where ours differ and why.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from zscmr_ray.config.base import Section, setting

Blocks = Annotated[int, Field(ge=0)] | Literal["all"]
"""How many of a backbone's last blocks are trained."""


class ModelSection(Section):
    """The alignment network."""

    method: Literal["fgan", "inn", "tower", "best"] = setting(
        "fgan",
        "output",
        "fgan = fine-grained alignment network; inn = inner product with attention over regions (IMFA); tower = two towers "
        "over pooled features; best = quickly fitted alignments in one vector, nothing to set. Fields that a method does not "
        "read say whose they are",
    )
    region_grid: int | None = setting(
        None,
        "output",
        "side of the region map the model sees: cached maps are pooled to it; none = as cached (preprocess.region_grid)",
        ge=1,
    )
    image_blocks: Blocks = setting(
        0,
        "output",
        "blocks of the image backbone that are trained, from pixels: the last n, or all; 0 = frozen, cached features "
        "(needs pairs made with preprocess.keep_images=true)",
    )
    text_blocks: Blocks = setting(
        0,
        "output",
        "blocks of the text backbone that are trained, from captions: the last n, or all; 0 = frozen",
    )
    width: int = setting(512, "output", "width D of tokens and region embeddings, of a tower's vector", ge=8)
    num_heads: int = setting(4, "output", "fgan: attention heads of the region scorer", ge=1)
    attention_dropout: float = setting(
        0.1, "output", "fgan: dropout of the scorer's attention weights", ge=0, lt=1
    )
    latent: int = setting(512, "output", "fgan: latent width of the label-distribution VAE", ge=2)
    image_trunk: Literal["linear", "none"] = setting(
        "linear", "output", "fgan, inn: linear = Linear + LayerNorm to the width"
    )
    text_trunk: Literal["bigru", "linear"] = setting(
        "bigru", "output", "fgan, inn: trainable layers over the token states (published for FGAN: bigru)"
    )
    selection: Literal["topk", "mean"] = setting(
        "topk", "output", "fgan: topk = perturbed top-k, mean = mean pooling"
    )
    eval_selection: Literal["hard", "soft"] = setting(
        "hard", "output", "fgan: region selection at retrieval time"
    )
    ratio: float = setting(
        0.1, "output", "fgan: kept share of the tokens; k = max(1, round(ratio x length))", gt=0, le=1
    )
    rounding: Literal["ceil", "floor"] = setting(
        "ceil", "output", "fgan: of ratio x length; at least 1 token is kept"
    )
    num_noise_samples: int = setting(250, "output", "fgan: Gaussian perturbations n of the top-k", ge=1)
    sigma: float = setting(0.05, "output", "fgan: standard deviation of the perturbations", gt=0)
    label_head: bool = setting(True, "output", "fgan: learn label distributions (needs a teacher)")
    defect: int | None = setting(
        None, "output", "fgan: switch one defect of the released code back on (a study)", ge=1, le=12
    )
    attention: Literal["mean", "self", "fused"] = setting(
        "fused",
        "output",
        "inn: region weights: mean = ZS_INN, self = from the image (ZS_INN_SELF), fused = from image and text "
        "(ZS_INN_FUSE, IMFA)",
    )
    attention_width: int = setting(
        32, "output", "inn: width A of the attention; a step holds B x B x R x A in chunks (ours)", ge=1
    )
    fusion: Literal["hadamard", "sum", "concat"] = setting(
        "hadamard",
        "output",
        "inn: how image and text are fused; concat = a two-layer perceptron (ours: the source names none)",
    )
    tower: Literal["linear", "mlp"] = setting(
        "linear", "output", "tower: one Linear, or Linear, LayerNorm, GELU, Linear"
    )
    dropout: float = setting(0.0, "output", "tower: dropout of the pooled features", ge=0, lt=1)
    feature_noise: float = setting(
        0.0, "output", "tower: Gaussian noise on the pooled features, in units of the row's RMS", ge=0
    )


class LossSection(Section):
    """FGCL and FGLA (fgan), the contrast (inn, tower) and distillation (inn); a term with weight 0 is not computed."""

    fgcl_weight: float = setting(1.0, "output", "fgan: weight of the contrastive loss", ge=0)
    negative_margin: float = setting(
        0.7, "output", "fgan: m1: the pair beats the hardest negative by this", ge=0
    )
    weak_margin: float = setting(
        0.3, "output", "fgan: m2: the farthest same-class non-pair stays this much farther", ge=0
    )
    weak_weight: float = setting(0.1, "output", "fgan: w: weight of the same-class term", ge=0)
    negatives: Literal["hardest", "mean"] = setting(
        "mean",
        "output",
        "FGCL and hinge: the hardest negative of each row (published; collapses FGCL), or every one's hinge averaged",
    )
    fgla_weight: float = setting(1.0, "output", "fgan: weight of the label alignment", ge=0)
    reconstruction_weight: float = setting(1.0, "output", "fgan: weight of the VAE reconstruction", ge=0)
    kl_weight: float = setting(1e-4, "output", "fgan: weight of the VAE KL term", ge=0)
    prior_weight: float = setting(
        1.0, "output", "fgan: weight of KL(prior || predicted), both modalities", ge=0
    )
    cross_weight: float = setting(
        1.0, "output", "fgan: weight of the KLs between the modalities, both ways", ge=0
    )
    detach_targets: bool = setting(
        True, "output", "fgan: no gradient into reconstruction and cross-KL targets"
    )
    contrast: Literal["hinge", "infonce"] = setting(
        "hinge",
        "output",
        "inn, tower: bidirectional hinge, or InfoNCE over the batch (ours: the source is silent)",
    )
    hinge_margin: float = setting(0.2, "output", "inn, tower: margin of the hinge (VSE++)", ge=0)
    temperature: float = setting(0.1, "output", "inn, tower: InfoNCE's temperature, or where it starts", gt=0)
    learned_temperature: bool = setting(False, "output", "inn, tower: learn the temperature (at least .01)")
    same_class: Literal["negative", "ignored", "positive"] = setting(
        "negative",
        "output",
        "inn, tower: what same-class non-pairs are; positive = supervised contrastive (infonce only)",
    )
    distill_weight: float = setting(
        1.0,
        "output",
        "inn, attention=fused: weight of KL(fused || text-free attention), which gives the served vector (ours); "
        "0 = the served vector is the mean's",
        ge=0,
    )


class OptimSection(Section):
    """Optimiser, schedule and when to stop."""

    lr: float = setting(4e-4, "output", "peak learning rate of AdamW", gt=0)
    encoder_lr: float = setting(
        2e-5, "output", "peak learning rate of trained backbone blocks (same schedule)", gt=0
    )
    weight_decay: float = setting(1e-4, "output", "decoupled weight decay", ge=0)
    warmup_steps: int = setting(10, "output", "linear warm-up before the cosine", ge=0)
    max_epochs: int = setting(6, "output", "passes over the training rows; the cosine ends here", ge=1)
    clip_norm: float = setting(1.0, "output", "global gradient norm is clipped here; 0 = never", ge=0)
    validate_every_epochs: int = setting(
        1, "output", "epochs between validations on pseudo-unseen classes", ge=1
    )
    patience_epochs: int = setting(4, "output", "stop after so many epochs without a better validation", ge=1)
