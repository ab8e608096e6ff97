"""The client for asyncio; the blocking one, with the same words, is sync.py."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from zscmr_ray.client.exchange import (
    BROKEN,
    error_of,
    json_of,
    search_request,
    should_retry,
    transport_error,
    wait_s,
)
from zscmr_ray.client.types import Item, SearchResponse, item_of, search_response


class AsyncClient:
    """A connection to one service; close it, or use it in an `async with` block. Any number of calls at once.

    `max_retries` bounds how often a 429, a 503 or a broken connection is tried again; `num_retries` counts them.
    `transport` replaces the network in tests.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        max_retries: int = 6,
        seed: int | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(
            base_url=base_url, headers=headers, timeout=timeout_s, transport=transport
        )
        self._max_retries = max_retries
        self._random = random.Random(seed)
        self.num_retries = 0

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def search(
        self,
        *,
        text: str | None = None,
        image: bytes | str | Path | None = None,
        id: str | None = None,  # noqa: A002  the wire's own name
        vector: Sequence[float] | None = None,
        target: str = "image",
        k: int | None = None,
        filter: Mapping[str, Sequence[str]] | None = None,  # noqa: A002
        label_weight: float | None = None,
        deadline_ms: int | None = None,
        index: str | None = None,
        rerank: bool = False,
    ) -> SearchResponse:
        """Search images or captions (`target`) by exactly one of text, image (bytes or a path), id or vector.

        `filter` maps a column (labels, id, item_id) to accepted values; `label_weight` in [0, 1] is lambda; `index` is
        a name of /v1/indexes; `rerank` orders the best by the attention fused with the words (IMFA).

        Raises ConfigError for a wrong question, DataError for what the service refuses, ServingError when it cannot answer.
        """
        options = search_request(
            text=text,
            image=image,
            id=id,
            vector=vector,
            target=target,
            k=k,
            filter=filter,
            label_weight=label_weight,
            deadline_ms=deadline_ms,
            index=index,
            rerank=rerank,
        )
        return search_response(json_of(await self._call("POST", "/v1/search", **options)))

    async def item(self, item_id: str) -> Item:
        """Look up an item or a caption by id; DataError when there is none."""
        return item_of(json_of(await self._call("GET", f"/v1/items/{quote(item_id, safe='')}")))

    async def thumbnail(self, item_id: str) -> bytes:
        """The JPEG thumbnail of an item (of a caption: its item's); DataError when there is none."""
        return (await self._call("GET", f"/v1/thumbnails/{quote(item_id, safe='')}")).content

    async def indexes(self) -> list[dict[str, Any]]:
        """What the service searches: versions, fingerprints, counts and measured recall."""
        return list(json_of(await self._call("GET", "/v1/indexes"))["indexes"])

    async def ready(self, wait_s: float = 0.0) -> bool:
        """Whether the service answers; waits up to `wait_s` seconds for it."""
        end_s = time.monotonic() + wait_s
        while True:
            try:
                if (await self._http.get("/readyz")).status_code == 200:
                    return True
            except httpx.TransportError:
                pass
            if time.monotonic() >= end_s:
                return False
            await asyncio.sleep(min(0.2, max(0.0, end_s - time.monotonic())))

    async def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(self._max_retries + 1):
            is_last = attempt == self._max_retries
            retry_after: str | None = None
            try:
                response = await self._http.request(method, path, **options)
            except httpx.TransportError as error:
                if is_last or not isinstance(error, BROKEN):
                    raise transport_error(
                        error, base_url=self._http.base_url, timeout_s=self._http.timeout.read
                    ) from error
            else:
                if response.is_success:
                    return response
                if is_last or not should_retry(response):
                    raise error_of(response)
                retry_after = response.headers.get("Retry-After")
            self.num_retries += 1
            await asyncio.sleep(wait_s(attempt, retry_after, self._random))
        raise AssertionError("unreachable: the last attempt returns or raises")
