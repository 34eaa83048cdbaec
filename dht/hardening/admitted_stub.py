"""Call a peer's DHT handlers, each call after admission.

Stock hivemind raises, where nothing catches it, when an answer comes under what is no DHT id; here an answer under
another id than the peer's own is as one under none. This file does not know what is asked. It runs on the event loop.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.proto import dht_pb2

from dht.errors import NotAdmitted, PeerUnreachable
from dht.records import dht_id


class AdmittedStub:
    """Calls to one peer, each after admission; a peer that forgot us is asked to admit us once more."""

    def __init__(
        self, stub: Any, ensure: Callable[[str], Awaitable[None]], forget: Callable[[str], None], peer: PeerID
    ):
        self._stub = stub
        self._ensure = ensure
        self._forget = forget
        self._peer = peer.to_base58()
        self._own_id = dht_id(peer.to_bytes())

    async def rpc_ping(self, request: dht_pb2.PingRequest, timeout: float) -> dht_pb2.PingResponse:
        """Ask whether it answers."""
        return await self._call(self._stub.rpc_ping, request, timeout)

    async def rpc_store(self, request: dht_pb2.StoreRequest, timeout: float) -> dht_pb2.StoreResponse:
        """Ask it to store records."""
        return await self._call(self._stub.rpc_store, request, timeout)

    async def rpc_find(self, request: dht_pb2.FindRequest, timeout: float) -> dht_pb2.FindResponse:
        """Ask for records and neighbours."""
        return await self._call(self._stub.rpc_find, request, timeout)

    async def rpc_held(self, request: dht_pb2.FindRequest, timeout: float) -> dht_pb2.FindResponse:
        """Ask for digests and neighbours."""
        return await self._call(self._stub.rpc_held, request, timeout)

    async def _call(self, method: Callable[..., Awaitable[Any]], request: Any, timeout: float) -> Any:
        response = await self._call_member(method, request, timeout)
        if response.peer.node_id != self._own_id:
            response.peer.node_id = b""
        return response

    async def _call_member(self, method: Callable[..., Awaitable[Any]], request: Any, timeout: float) -> Any:
        await self._admit()
        try:
            return await method(request, timeout=timeout)
        except PeerUnreachable:
            self._forget(self._peer)  # so that the next call looks first whether anyone is there
            raise
        except NotAdmitted:
            self._forget(self._peer)
            await self._admit()
            return await method(request, timeout=timeout)

    async def _admit(self) -> None:
        try:
            await self._ensure(self._peer)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise PeerUnreachable("the admission was given up: we are leaving") from None
