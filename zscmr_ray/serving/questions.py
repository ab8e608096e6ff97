"""What can be wrong with a question, found before any work is done for it.

What it is: pure checks that raise a ProblemError with got and expected. What it is not: the wire's own rules (wire.py), or
texts and pictures, which their encoder judges.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zscmr_ray.retrieval.gallery import FILTER_COLUMNS
from zscmr_ray.serving.problems import ProblemError
from zscmr_ray.serving.searcher import Searcher
from zscmr_ray.serving.wire import SearchRequest

# How far a block of a `vector` query may be from unit length: f16 rounding is 1e-3.
_UNIT_TOLERANCE = 1e-2
# A JSON body as long as this holds a picture.
_PICTURE_BODY_BYTES = 16_384


def holds_picture(content_type: str, content_length: str | None) -> bool:
    """Whether a search's body holds a picture, by its head alone.

    >>> holds_picture("application/json", "60"), holds_picture("multipart/form-data", None)
    (False, True)
    """
    if content_type == "multipart/form-data":
        return True
    return (
        content_length is not None and content_length.isdigit() and int(content_length) > _PICTURE_BODY_BYTES
    )


def check_question(searcher: Searcher, request: SearchRequest, image: bytes | None, *, max_k: int) -> None:
    """Refuse anything but one question, a k beyond the bounds and unknown columns: ProblemError 422 or DataError."""
    given = request.query.given() + (["image (upload)"] if image is not None else [])
    if len(given) != 1:
        raise ProblemError(
            422,
            "one question at a time",
            got=" and ".join(given) or "no question",
            expected="exactly one of query.text, query.image_b64, query.vector, query.id or an uploaded image",
        )
    if request.k is not None and request.k > max_k:
        raise ProblemError(
            422, "k is larger than this service allows", got=f"k={request.k}", expected=f"<= {max_k}"
        )
    unknown = sorted(set(request.filter) - set(FILTER_COLUMNS))
    if unknown:
        raise ProblemError(
            422, "no such filter column", got=", ".join(unknown), expected=", ".join(FILTER_COLUMNS)
        )
    searcher.check_k(request.target, request.k)


def checked_vector(searcher: Searcher, values: Sequence[float]) -> npt.NDArray[np.float32]:
    """A `vector` question [D]; ProblemError 422 for another length or a block that is not of unit length."""
    dimension = searcher.dimension
    if len(values) != dimension:
        raise ProblemError(
            422, "the vector has another length than the index", got=len(values), expected=dimension
        )
    vector_D = np.asarray(values, np.float32)
    for block in searcher.blocks:
        # In float64: a float32 square of a wild number would overflow into a warning.
        norm = float(np.linalg.norm(np.asarray(values[block.start : block.stop], np.float64)))
        if not abs(norm - 1.0) <= _UNIT_TOLERANCE:
            raise ProblemError(
                422,
                f"block {block.name} of the vector is not of unit length",
                got=f"norm {norm:.4g} of columns {block.start} to {block.stop}",
                expected="1: unweighted unit blocks, as stored in the embeddings; weights are `lambda`",
            )
    return vector_D


def picture_of(image_b64: str) -> bytes:
    """The bytes of a base64 picture; ProblemError 422."""
    try:
        return base64.b64decode(image_b64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProblemError(
            422,
            "query.image_b64 is not base64",
            got=str(error),
            expected="standard base64 of the picture's bytes, without a data: prefix (URLs are never fetched)",
        ) from error
