"""The store for tests of what hands work to it."""

import asyncio

from gateway.store import Store

EPOCH = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class StoreHere:
    """The store on the loop's own thread; while `error` is set, all work on it fails so."""

    def __init__(self, path):
        self.store = Store(path, new_epoch=EPOCH, reserve_bytes=0)
        self.error = None

    async def __call__(self, work):
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return work(self.store)
