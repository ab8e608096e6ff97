"""What goes over the wire: the request and response models of `/v1/` (DESIGN 6), also the OpenAPI document's source.

Strict on purpose: unknown fields, numbers in quotes, NaN and more than one question are refused. Not the client's
types: those are dataclasses in client.py, so that a client needs neither pydantic nor this package's server half.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from zscmr_ray.config.serving import DEFAULT_INDEX

MAX_TEXT_CHARS = 4096
MAX_ID_CHARS = 4096
MAX_VECTOR = 65_536
MAX_DEADLINE_MS = 60_000
MAX_FILTER_VALUES = 1000
# What k is when a request names none; an index with fewer items answers with all of them.
DEFAULT_K = 10

Target = Literal["image", "text"]
_Name = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Query(_Wire):
    """Exactly one question. An uploaded picture (multipart) takes the place of all four."""

    text: str | None = Field(default=None, max_length=MAX_TEXT_CHARS, description="words to search by")
    image_b64: str | None = Field(
        default=None, description="a picture, base64 (JPEG, PNG, WebP, GIF, BMP or TIFF)"
    )
    vector: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        default=None, max_length=MAX_VECTOR, description="a full vector of unit blocks, unweighted"
    )
    id: _Name | None = Field(
        default=None, description="id of an indexed item or caption, whose vector is the question"
    )

    def given(self) -> list[str]:
        """The names of the questions that are there."""
        return [name for name in ("text", "image_b64", "vector", "id") if getattr(self, name) is not None]


class SearchRequest(_Wire):
    """Body of `POST /v1/search`; in a multipart upload the part named `request`, without `query`."""

    query: Query = Field(default_factory=Query)
    index: _Name = Field(DEFAULT_INDEX, description="which index, by its name in /v1/indexes")
    target: Target = Field("image", description="what to search: images or captions")
    k: int | None = Field(
        None, ge=1, description=f"number of results; none = {DEFAULT_K}, or all where there are fewer"
    )
    filter: dict[str, Annotated[list[_Name], Field(max_length=MAX_FILTER_VALUES)]] = Field(
        default_factory=dict,
        description="column -> accepted values (any of them); columns are combined with and",
    )
    label_weight: float | None = Field(
        None,
        alias="lambda",
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="0 = regions only, 1 = label distributions only; none = the checkpoint's choice",
    )
    rerank: bool = Field(
        False,
        description="order the best by the attention fused with the words (IMFA; see `rerank` in /v1/indexes)",
    )
    deadline_ms: int | None = Field(None, ge=1, le=MAX_DEADLINE_MS, description="give up after this, in ms")

    @model_validator(mode="after")
    def _at_most_one_question(self) -> SearchRequest:
        given = self.query.given()
        if len(given) > 1:
            raise ValueError(f"one question at a time, got {' and '.join(given)}")
        return self


class EmbeddingsRequest(_Wire):
    """Body of `POST /v1/embeddings`, as OpenAI's clients send it."""

    input: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="a text, a picture as data:image/<type>;base64,<bytes>, or a list of such"
    )
    model: str | None = Field(
        None, max_length=MAX_ID_CHARS, description="an index, or its model's fingerprint"
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64 = the little-endian float32 numbers"
    )
    dimensions: int | None = Field(None, ge=1, description="the vectors' own length; they are not cut")
    user: str | None = Field(None, max_length=MAX_ID_CHARS, description="accepted, and not looked at")
    deadline_ms: int | None = Field(None, ge=1, le=MAX_DEADLINE_MS, description="give up after this, in ms")


class Embedding(_Wire):
    """The vector of one input: unweighted unit blocks, in the half precision that is stored."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(_Wire):
    """Words of the texts, split at white space (tokenizers differ, and pictures have none)."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(_Wire):
    """Answer of `POST /v1/embeddings`; `model` is the fingerprint that stored vectors carry."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


class SearchHit(_Wire):
    """One result."""

    id: str = Field(description="id of the image item, or of the caption (`<item>#<n>`)")
    item_id: str = Field(description="id of the item the row belongs to")
    score: float = Field(
        description="weighted inner product, or the score of the pair where it was re-ranked; larger is closer"
    )
    rank: int = Field(ge=1)
    caption: str | None
    labels: list[str]
    thumbnail_url: str | None = Field(description="path of the JPEG thumbnail on this service")


class SearchResponse(_Wire):
    """Answer of `POST /v1/search`, best first."""

    results: list[SearchHit]
    index_version: str
    model_fingerprint: str
    label_weight: float = Field(description="the label weight (lambda) that was used")
    coverage: float = Field(description="share of the index that was searched")
    degraded: list[str] = Field(description="what was left out to answer in time; empty = nothing")
    reranked: int = Field(0, description="how many of the best by vector were re-ranked; 0 = none")
    notes: list[str] = Field(description="why there are fewer results than asked for; empty = there are not")
    timings_ms: dict[str, float]


class ItemRegions(_Wire):
    """How much each region of an item's picture counts in its vector."""

    weights: list[list[float]] = Field(description="a square grid, row by row from the top")
    box: list[float] = Field(
        description="what the grid covers: left, top, right, bottom as shares of the picture"
    )


class Item(_Wire):
    """Answer of `GET /v1/items/{id}`."""

    id: str
    item_id: str
    side: Target
    labels: list[str]
    captions: list[str]
    thumbnail_url: str | None
    regions: ItemRegions | None = Field(None, description="null where the index keeps no region weights")


class Block(_Wire):
    """A named range of a vector's columns."""

    name: str
    start: int
    stop: int


class IndexInfo(_Wire):
    """One index this service searches."""

    name: str
    index_version: str
    model_fingerprint: str
    kind: str
    dimension: int
    blocks: list[Block]
    counts: dict[str, int]
    recall_at_10: dict[str, float] = Field(description="measured against brute force, per query direction")
    label_weight: float
    filter_columns: list[str]
    max_k: int
    rerank: bool = Field(description="whether `rerank` is offered")
    problem: str | None = Field(description="why a newer release is not live; null = the alias's release is")


class Indexes(_Wire):
    """Answer of `GET /v1/indexes`."""

    indexes: list[IndexInfo]


class Health(_Wire):
    """Answer of `GET /healthz` and `GET /readyz`."""

    status: Literal["ok"]


class Problem(BaseModel):
    """Every error, as application/problem+json (RFC 9457) with four fields of our own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str
    title: str
    status: int
    detail: str
    got: str | None = None
    expected: str | None = None
    remedy: str | None = None
    request_id: str
