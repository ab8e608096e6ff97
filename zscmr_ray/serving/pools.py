"""Deployments beside the ingress: of the split topology encoders and shards of the index, of both the reranker (DESIGN 6).

Each holds up to two versions of every index; a request names its release, and one that is not here yet is loaded first.
Refusals are answered as values (remote.py). What it is not: the ingress (topology.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import ZscmrError
from zscmr_ray.serving.batcher import QueueFullError
from zscmr_ray.serving.encoding import EncoderPool, LocalEncoding
from zscmr_ray.serving.problems import ProblemError
from zscmr_ray.serving.releases import Release, Releases
from zscmr_ray.serving.remote import Refusal, ShardHits, shard_hits
from zscmr_ray.serving.replica import Replica
from zscmr_ray.serving.reranker import Shortlist
from zscmr_ray.serving.reranking import LocalReranking
from zscmr_ray.serving.searcher import Searcher, SearchTask
from zscmr_ray.serving.shelf import Shelf
from zscmr_ray.serving.version import LocalSearching, load_encoder, load_reranking, need_bytes

_LOG = logging.getLogger(__name__)
FloatArray = npt.NDArray[np.float32]


class EncoderDeployment(Replica):
    """The split topology's encoder: the models of up to two versions of each index."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._pool = EncoderPool(self._settings, self._metrics)
        self._shelf: Shelf[_HeldEncoder] = Shelf(self._releases, self._load, self._need_bytes)
        _load_live(self._shelf, self._releases)

    async def text(self, index: str, release_id: str, text: str) -> FloatArray | Refusal:
        """The vector of a text, by the model of a release."""
        return await _answered(self._shelf, index, release_id, lambda held: held.encoding.text(text))

    async def image(self, index: str, release_id: str, data: bytes) -> FloatArray | Refusal:
        """The vector of a picture's bytes, by the model of a release."""
        return await _answered(self._shelf, index, release_id, lambda held: held.encoding.image(data))

    async def prepare(self, index: str, release_id: str) -> Refusal | None:
        """Have a release's model here."""
        return await _prepared(self._shelf, index, release_id)

    async def check_health(self) -> None:
        """Raise, so that Serve replaces this replica, when a batch does not end."""
        self._check(max((held.encoding.busy_s() for held in self._shelf.all()), default=0.0))

    def _load(self, index: str, release: Release) -> _HeldEncoder:
        releases = self._releases[index]

        def load() -> Any:
            return load_encoder(releases, release, Searcher(releases.index_store(release)), self._settings)

        return _HeldEncoder(self._pool, release, self._pool.acquire(release.model_fingerprint, load)[1])

    def _need_bytes(self, index: str, release: Release) -> int:
        return need_bytes(self._releases[index], release, self._pool, with_index=False)


class _HeldEncoder:
    def __init__(self, pool: EncoderPool, release: Release, encoding: LocalEncoding) -> None:
        self._pool, self._release, self.encoding = pool, release, encoding

    def close(self) -> None:
        self._pool.give_back(self._release.model_fingerprint)


class ShardDeployment(Replica):
    """The split topology's share of the index: up to two versions of each."""

    def __init__(self, config: dict[str, Any], *, number: int) -> None:
        super().__init__(config)
        self._share = (number, self._settings.num_shards)
        self._shelf: Shelf[_HeldShard] = Shelf(self._releases, self._load, self._need_bytes)
        _load_live(self._shelf, self._releases)

    async def search(self, index: str, release_id: str, task: SearchTask) -> ShardHits | Refusal:
        """The best of this share's rows."""

        async def ask(held: _HeldShard) -> ShardHits:
            return shard_hits(held.searcher, task, await held.searching.search(task))

        return await _answered(self._shelf, index, release_id, ask)

    async def prepare(self, index: str, release_id: str) -> Refusal | None:
        """Have a release's share here."""
        return await _prepared(self._shelf, index, release_id)

    async def check_health(self) -> None:
        """Raise, so that Serve replaces this replica, when a batch does not end."""
        self._check(max((held.searching.busy_s() for held in self._shelf.all()), default=0.0))

    def _load(self, index: str, release: Release) -> _HeldShard:
        searcher = Searcher(self._releases[index].index_store(release), share=self._share)
        return _HeldShard(searcher, LocalSearching(searcher, self._settings, self._metrics))

    def _need_bytes(self, index: str, release: Release) -> int:
        return need_bytes(self._releases[index], release, None) // self._share[1]


class _HeldShard:
    def __init__(self, searcher: Searcher, searching: LocalSearching) -> None:
        self.searcher, self.searching = searcher, searching

    def close(self) -> None:
        self.searching.close()
        self.searcher.close()


class RerankDeployment(Replica):
    """The second stage: regions of up to two versions of each index that keeps them, and the text half of their models."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._shelf: Shelf[_HeldReranker] = Shelf(self._releases, self._load, self._need_bytes)
        _load_live(self._shelf, self._releases)

    async def rerank(self, index: str, release_id: str, shortlist: Shortlist) -> FloatArray | Refusal:
        """The pair score of each item of a shortlist, by the model of a release."""

        async def ask(held: _HeldReranker) -> FloatArray:
            assert held.reranking is not None, "the ingress asks where regions are kept"
            return await held.reranking.rerank(shortlist)

        return await _answered(self._shelf, index, release_id, ask)

    async def prepare(self, index: str, release_id: str) -> Refusal | None:
        """Have a release's regions here."""
        return await _prepared(self._shelf, index, release_id)

    async def check_health(self) -> None:
        """Raise, so that Serve replaces this replica, when a batch does not end."""
        self._check(max((h.reranking.busy_s() for h in self._shelf.all() if h.reranking), default=0.0))

    def _load(self, index: str, release: Release) -> _HeldReranker:
        releases = self._releases[index]
        searcher = Searcher(releases.index_store(release))
        reranking = load_reranking(releases, release, searcher, self._settings, self._metrics)
        return _HeldReranker(searcher, reranking)

    def _need_bytes(self, index: str, release: Release) -> int:
        return need_bytes(self._releases[index], release, None)


class _HeldReranker:
    def __init__(self, searcher: Searcher, reranking: LocalReranking | None) -> None:
        self.searcher, self.reranking = searcher, reranking

    def close(self) -> None:
        if self.reranking is not None:
            self.reranking.close()
        self.searcher.close()


def _load_live(shelf: Any, releases: dict[str, Releases]) -> None:
    """Have the live release of every index here before the first question; others come when they are asked for."""
    for index, found in releases.items():
        alias = found.require_alias()
        for release_id in (alias.live, *alias.former):
            try:
                shelf.load(index, release_id)
                break
            except ZscmrError as error:
                _LOG.error("release %s of %s cannot be loaded: %s", release_id, index, error)
                if release_id == (alias.live, *alias.former)[-1]:
                    raise


async def _answered(shelf: Any, index: str, release_id: str, ask: Callable[[Any], Awaitable[Any]]) -> Any:
    try:
        if not shelf.holds(index, release_id):
            await asyncio.to_thread(shelf.load, index, release_id)
        with shelf.pinned(index, release_id) as held:
            return await ask(held)
    except (ProblemError, ZscmrError, QueueFullError) as error:
        return Refusal.of(error)


async def _prepared(shelf: Any, index: str, release_id: str) -> Refusal | None:
    try:
        await asyncio.to_thread(shelf.load, index, release_id)
    except ZscmrError as error:
        return Refusal.of(error)
    return None
