"""From a question to its vector, with what else is there: text and pictures apart, recent texts remembered.

What it is: the two ways to encode of the fused topology (`LocalEncoding`, batchers over a model in this process) and the
bounded memory before any of them (`RememberedTexts`). What it is not: the model (encoder.py), or encoders elsewhere
(remote.py).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

from zscmr_ray.config import ServeSection
from zscmr_ray.serving.batcher import Batcher, QueueFullError
from zscmr_ray.serving.encoder import Encoder, Pixels
from zscmr_ray.serving.metrics import Metrics

FloatArray = npt.NDArray[np.float32]
_DECODE_THREADS = 2


class Encoding(Protocol):
    """Queries to unit-block vectors [D]. Raises QueueFullError, DataError or ProblemError."""

    async def text(self, text: str) -> FloatArray:
        """The vector of a text."""
        ...

    async def image(self, data: bytes) -> FloatArray:
        """The vector of a picture's bytes."""
        ...

    def may_take_picture(self) -> bool:
        """Whether a picture that comes now would be taken; asked before its bytes are read."""
        ...

    def busy_s(self) -> float:
        """How long the batch that runs has run."""
        ...


class LocalEncoding:
    """A model in this process, its texts and pictures batched apart."""

    def __init__(self, encoder: Encoder, settings: ServeSection, metrics: Metrics) -> None:
        self._encoder, self._metrics = encoder, metrics
        self._max_picture_queue_s = settings.max_picture_queue_ms / 1000
        self._decoding = ThreadPoolExecutor(_DECODE_THREADS, thread_name_prefix="zscmr-decode")
        self._pictures_decoding = 0
        self._texts: Batcher[str, FloatArray] = Batcher(
            lambda texts: list(encoder.encode_texts(texts)),
            name="encode_text",
            max_batch_size=settings.max_batch_size,
            max_queued=settings.max_queued_requests,
            max_queue_s=settings.max_queue_ms / 1000,
            metrics=metrics,
        )
        self._images: Batcher[Pixels, FloatArray] = Batcher(
            lambda pixels: list(encoder.encode_images(pixels)),
            name="encode_image",
            max_batch_size=settings.max_batch_size,
            max_queued=settings.max_queued_requests,
            # Refused before decoding (may_take_picture): what was decoded is not thrown away.
            metrics=metrics,
        )

    async def text(self, text: str) -> FloatArray:
        """Clean and encode a text."""
        return await self._texts.submit(self._encoder.clean(text))

    async def image(self, data: bytes) -> FloatArray:
        """Decode and encode a picture."""
        if not self.may_take_picture():
            raise QueueFullError
        self._pictures_decoding += 1
        try:
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._decoding, self._decode, data)
        finally:
            self._pictures_decoding -= 1
        return await self._images.submit(pixels)

    def may_take_picture(self) -> bool:
        """Whether those before it, decoding included, would let it begin within serve.max_picture_queue_ms."""
        ahead = self._pictures_decoding
        wait_s = self._images.expected_wait_s() + ahead * self._images.item_s
        return (self._images.is_queue_empty and not ahead) or wait_s <= self._max_picture_queue_s

    def busy_s(self) -> float:
        """How long the longer of the two running batches has run."""
        return max(self._texts.busy_s(), self._images.busy_s())

    def close(self) -> None:
        """End the threads."""
        self._texts.close()
        self._images.close()
        self._decoding.shutdown(wait=False, cancel_futures=True)

    def _decode(self, data: bytes) -> Pixels:
        began_s = time.perf_counter()
        try:
            return self._encoder.decode(data)
        except Exception as error:
            self._metrics.failed("decode", error)
            raise
        finally:
            self._metrics.batch("decode", 1, time.perf_counter() - began_s)


class RememberedTexts:
    """The last `size` texts' vectors before an encoding of one model; pictures pass through."""

    def __init__(self, encoding: Encoding, *, size: int, metrics: Metrics) -> None:
        self._encoding, self._size, self._metrics = encoding, size, metrics
        self._vectors: OrderedDict[str, FloatArray] = OrderedDict()

    async def text(self, text: str) -> FloatArray:
        """The remembered vector, or a new one."""
        found = self._vectors.get(text)
        self._metrics.cache(hit=found is not None)
        if found is not None:
            self._vectors.move_to_end(text)
            return found
        vector_D = await self._encoding.text(text)
        if self._size:
            vector_D.setflags(write=False)
            self._vectors[text] = vector_D
            if len(self._vectors) > self._size:
                self._vectors.popitem(last=False)
        return vector_D

    async def image(self, data: bytes) -> FloatArray:
        """The vector of a picture's bytes."""
        return await self._encoding.image(data)

    def may_take_picture(self) -> bool:
        """As the encoding."""
        return self._encoding.may_take_picture()

    def busy_s(self) -> float:
        """As the encoding."""
        return self._encoding.busy_s()


class EncoderPool:
    """The models in this process, one of each fingerprint however many indexes and versions use it."""

    def __init__(self, settings: ServeSection, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._lock = threading.Lock()
        self._held: dict[str, tuple[Encoder, LocalEncoding, int]] = {}

    def acquire(self, fingerprint: str, load: Callable[[], Encoder]) -> tuple[Encoder, LocalEncoding]:
        """The model of a fingerprint, loaded unless it is here already; give it back as often as it was acquired."""
        with self._lock:
            if fingerprint in self._held:
                encoder, encoding, users = self._held[fingerprint]
            else:
                encoder, users = load(), 0
                encoding = LocalEncoding(encoder, self._settings, self._metrics)
            self._held[fingerprint] = (encoder, encoding, users + 1)
            return encoder, encoding

    def holds(self, fingerprint: str) -> bool:
        """Whether a model is here."""
        return fingerprint in self._held

    def give_back(self, fingerprint: str) -> None:
        """Let a model go; the last one to do so ends its threads."""
        with self._lock:
            encoder, encoding, users = self._held.pop(fingerprint)
            if users > 1:
                self._held[fingerprint] = (encoder, encoding, users - 1)
                return
        encoding.close()
