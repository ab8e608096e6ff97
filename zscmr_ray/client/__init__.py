"""The query client: typed search over HTTP, without ray, torch or the server's half of this package.

    with Client("http://127.0.0.1:8000") as client:
        for hit in client.search(text="a smiling cat", k=5).results:
            print(hit.rank, hit.score, hit.id, hit.caption)

    async with AsyncClient("http://127.0.0.1:8000") as client:
        answers = await asyncio.gather(*(client.search(text=text) for text in texts))

sync.py and asynchronous.py are the same client twice; what is asked, retried and raised is in exchange.py.
"""

from zscmr_ray.client.asynchronous import AsyncClient
from zscmr_ray.client.sync import Client
from zscmr_ray.client.types import Hit, Item, SearchResponse

__all__ = ["AsyncClient", "Client", "Hit", "Item", "SearchResponse"]
