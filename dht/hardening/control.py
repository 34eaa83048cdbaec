"""Speak p2pd's control protocol over its unix socket: connect, streams, unary calls, and the calls of peers.

In place of ``hivemind.p2p.P2P`` and its bindings, whose stock behaviour this mends:
- a unary call hangs for ever when the local p2pd dies, and a late answer to a cancelled call ends the reader task and
  with it every later call: here the reader survives the first and fails all open calls on the second;
- a handler's exception travels to the peer as ``repr``: here a peer reads a fixed word;
- an answer over p2pd's message limit is lost and the caller waits for its timeout: here it reads a refusal;
- a peer may open any number of streams: here ``MAX_STREAMS_PER_PEER``;
- failed calls leave sockets open; ``__del__`` touches the loop.

This file does not know who may call (``protocol`` and ``swarm`` decide). It runs on the event loop.
"""

import asyncio
import contextlib
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from hivemind.p2p import P2PContext
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from dht.errors import (
    BadAddress,
    DaemonDied,
    DhtError,
    NotAdmitted,
    PeerUnreachable,
    ProtocolViolation,
    UnavailableError,
)
from dht.identity import peer_id_to_bytes, peer_id_to_str

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 4 * 2**20
"""Longest message of the control connection; p2pd's own default."""

MAX_UNARY_CALLS = 512
"""Unary calls of peers that are answered at once; more are refused."""

MAX_STREAMS_PER_PEER = 512
"""Streams of one peer that are served at once; more are closed unread."""

READ_LIMIT_BYTES = 2**16
"""Bytes that a stream reads ahead of its consumer; frames of any length pass through ``readexactly``."""

CONNECTED_S = 0.1
"""Seconds for which the list of connected peers is believed, unless something happens to a connection."""

HANDSHAKE_S = 5.0
"""Seconds within which p2pd must say who a new inbound stream is from."""

_ACCEPTING_TURNS = 4
"""Turns of the event loop in which whoever has connected is accepted, becomes a stream and is closed."""

_P2P_CODE = bytes.fromhex("a50326")  # code 421 and the length 38, as varints

_NOT_ADMITTED = b"not admitted"
_FAILED = b"failed"
_BUSY = b"busy"
_TOO_LONG = b"answer too long"

StreamHandler = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
UnaryHandler = Callable[[bytes, PeerID], Awaitable[bytes]]


class Control:
    """A connection to one p2pd; made by ``open``, ended by ``close``."""

    def __init__(self, daemon_socket: Path, own_socket: Path) -> None:
        self._daemon_socket = daemon_socket
        self._own_socket = own_socket
        self._stream_handlers: dict[str, StreamHandler] = {}
        self._unary_handlers: dict[str, UnaryHandler] = {}
        self._calls: dict[bytes, asyncio.Future[Any]] = {}
        self._serving: dict[bytes, asyncio.Task[None]] = {}
        self._num_streams: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._closed = False
        self._connected: tuple[float, frozenset[str]] | None = None  # monotonic seconds, ids
        self.peer_id: PeerID | None = None

    async def open(self) -> None:
        """Connect, and listen for streams from peers.

        Raises:
            DaemonDied: p2pd does not answer.
        """
        await self.listen()
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.PERSISTENT_CONN_UPGRADE)
        _, reader, self._writer = await self._request(request)
        self._spawn(self._read_calls(reader))
        self.peer_id = (await self.identify())[0]

    async def listen(self) -> None:
        """Take the streams that p2pd hands over; a part of ``open``."""
        self._server = await asyncio.start_unix_server(
            self._on_connection, path=str(self._own_socket), limit=READ_LIMIT_BYTES
        )

    async def close(self) -> None:
        """End every stream, call and task of this connection."""
        self._closed = True
        if self._server is not None:
            # A server of asyncio that closes while it accepts leaves the accepted socket open.
            self._own_socket.unlink(missing_ok=True)
            for _ in range(_ACCEPTING_TURNS):
                await asyncio.sleep(0)
            self._server.close()
        if self._writer is not None:
            self._writer.close()
        tasks = [*self._tasks, *self._serving.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail_calls()
        for writer in [self._writer] if self._writer is not None else []:
            await close_writer(writer)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- one request, one answer -------------------------------------------------------------------------------------

    async def _request(self, request: p2pd_pb2.Request) -> tuple[Any, asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request on a connection of its own; give p2pd's answer and the connection, which the caller closes."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._daemon_socket), limit=READ_LIMIT_BYTES)
        except OSError as error:
            raise DaemonDied("the p2pd process of this node has ended: start the node again") from error
        try:
            writer.write(_framed(request.SerializeToString()))
            response = p2pd_pb2.Response()
            response.ParseFromString(await _read_framed(reader))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            await close_writer(writer)
            raise DaemonDied("the p2pd process of this node has ended: start the node again") from error
        except BaseException:
            writer.close()
            raise
        if response.type == p2pd_pb2.Response.ERROR:
            await close_writer(writer)
            raise PeerUnreachable(response.error.msg)
        return response, reader, writer

    async def _ask(self, request: p2pd_pb2.Request) -> Any:
        response, _, writer = await self._request(request)
        await close_writer(writer)
        return response

    async def identify(self) -> tuple[PeerID, list[str]]:
        """Give our peer id and the addresses at which p2pd believes that we can be reached, without the id."""
        response = await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY))
        return PeerID(response.identify.id), [str(Multiaddr(address)) for address in response.identify.addrs]

    async def connect(self, peer_id: str, addresses: Sequence[str], timeout_s: float) -> None:
        """Connect to a peer at one of its addresses; nothing happens when there is a connection already.

        Raises:
            PeerUnreachable: It answers at none of them in time.
            BadAddress: One of them is no multiaddr.
        """
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.CONNECT,
            connect=p2pd_pb2.ConnectRequest(
                peer=PeerID.from_base58(peer_id).to_bytes(),
                addrs=[address_bytes(each) for each in addresses],
            ),
        )
        self._connected = None
        try:
            async with asyncio.timeout(timeout_s):
                await self._ask(request)
        except TimeoutError:
            raise PeerUnreachable(f"peer {peer_id} does not answer within {timeout_s:g} s") from None

    async def disconnect(self, peer_id: str) -> None:
        """Close the connections to a peer, if there are any."""
        self._connected = None
        peer = p2pd_pb2.DisconnectRequest(peer=PeerID.from_base58(peer_id).to_bytes())
        await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.DISCONNECT, disconnect=peer))

    async def connected_peers(self) -> set[str]:
        """Give the ids of the peers that we have a connection with, as they were a moment ago.

        Every DHT call asks for them first, and a look-up makes many at once.
        """
        known = self._connected
        if known is None or time.monotonic() - known[0] > CONNECTED_S:
            asked_s = time.monotonic()
            response = await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS))
            known = self._connected = asked_s, frozenset(_peer_text(peer.id) for peer in response.peers)
        return set(known[1])

    async def seen_at(self, peer_id: str) -> list[str]:
        """Give the addresses at the far ends of our connections to a peer; a translated one is its router's."""
        response = await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS))
        own = PeerID.from_base58(peer_id).to_bytes()
        addresses = [address for peer in response.peers if peer.id == own for address in peer.addrs]
        seen = []
        for address in addresses:
            with contextlib.suppress(ValueError, LookupError, OSError):  # what hivemind's codec cannot read
                seen.append(str(Multiaddr(address)))
        return seen

    # -- streams -----------------------------------------------------------------------------------------------------

    async def open_stream(self, peer_id: str, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a raw stream to a peer's handler.

        Raises:
            PeerUnreachable: No connection, or the peer has no such handler.
        """
        stream = p2pd_pb2.StreamOpenRequest(peer=PeerID.from_base58(peer_id).to_bytes(), proto=[protocol])
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=stream)
        _, reader, writer = await self._request(request)
        return reader, writer

    async def handle_stream(self, protocol: str, handler: StreamHandler) -> None:
        """Call ``handler(peer_id, reader, writer)`` for every stream that a peer opens; close the stream after it."""
        self._stream_handlers[protocol] = handler
        own = Multiaddr(f"/unix{self._own_socket}").to_bytes()
        await self._ask(
            p2pd_pb2.Request(
                type=p2pd_pb2.Request.STREAM_HANDLER,
                streamHandler=p2pd_pb2.StreamHandlerRequest(addr=own, proto=[protocol], balanced=False),
            )
        )

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:
            writer.close()
        else:
            serving = self._spawn(self._serve_stream(reader, writer))
            serving.add_done_callback(lambda _: writer.close())  # It may be cancelled before it has begun.

    async def _serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                info = p2pd_pb2.StreamInfo()
                info.ParseFromString(await _read_framed(reader))
            await self._serve_peer(info.proto, PeerID(info.peer).to_base58(), reader, writer)
        except (DhtError, ConnectionError, EOFError, TimeoutError) as error:
            logger.debug("a stream ended: %s", error)
        except Exception:  # the border of stream handlers: what one stream does must not end the node
            logger.exception("a stream handler failed")
        finally:
            await close_writer(writer)

    async def _serve_peer(
        self, protocol: str, peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._num_streams[peer_id] >= MAX_STREAMS_PER_PEER:
            logger.debug("peer %s has too many streams", peer_id)
            return
        self._num_streams[peer_id] += 1
        try:
            await self._stream_handlers[protocol](peer_id, reader, writer)
        finally:
            self._num_streams[peer_id] -= 1
            if not self._num_streams[peer_id]:
                del self._num_streams[peer_id]

    # -- unary calls, in the shape that hivemind's ServicerBase asks of a P2P object -----------------------------------

    async def add_protobuf_handler(
        self,
        name: str,
        handler: Callable[[Any, P2PContext], Awaitable[Any]],
        input_protobuf_type: Any,
        *,
        stream_input: bool = False,
        stream_output: bool = False,
        balanced: bool = False,
    ) -> None:
        """Answer the unary calls of peers to ``name``."""
        if stream_input or stream_output or balanced:
            raise NotImplementedError("our DHT calls are unary")

        async def answer(request: bytes, remote_id: PeerID) -> bytes:
            context = P2PContext(handle_name=name, local_id=self.peer_id, remote_id=remote_id)
            response = await handler(input_protobuf_type.FromString(request), context)
            packed: bytes = response.SerializeToString()
            return packed

        self._unary_handlers[name] = answer
        await self._call(addUnaryHandler=p2pd_pb2.AddUnaryHandlerRequest(proto=name, balanced=False))

    async def remove_protobuf_handler(
        self, name: str, *, stream_input: bool = False, stream_output: bool = False
    ) -> None:
        """Stop answering ``name``."""
        del stream_input, stream_output
        await self._call(removeUnaryHandler=p2pd_pb2.RemoveUnaryHandlerRequest(proto=name))
        del self._unary_handlers[name]

    async def call_protobuf_handler(self, peer_id: PeerID, name: str, request: Any, response_type: Any) -> Any:
        """Call a peer's unary handler.

        Raises:
            NotAdmitted: The peer does not count us as a member.
            PeerUnreachable: No connection to the peer.
            UnavailableError: The peer's handler failed or is busy.
            ProtocolViolation: The answer is no such message.
        """
        call = p2pd_pb2.CallUnaryRequest(peer=peer_id.to_bytes(), proto=name, data=request.SerializeToString())
        answer = await self._call(callUnary=call)
        try:
            return response_type.FromString(answer)
        except DecodeError:
            raise ProtocolViolation("a peer's answer is no message of this protocol") from None

    async def _call(self, **payload: Any) -> bytes:
        call_id = os.urandom(16)
        message = p2pd_pb2.PersistentConnectionRequest(callId=call_id, **payload)
        if message.ByteSize() > MAX_MESSAGE_BYTES:
            raise ProtocolViolation("a call is longer than p2pd carries")
        if self._closed or self._writer is None:
            raise DaemonDied("the p2pd process of this node has ended: start the node again")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        try:
            self._writer.write(_framed(message.SerializeToString()))
            await self._writer.drain()
            answer: bytes = await future
        except asyncio.CancelledError:
            cancel = p2pd_pb2.PersistentConnectionRequest(callId=call_id, cancel=p2pd_pb2.Cancel())
            self._writer.write(_framed(cancel.SerializeToString()))
            raise
        except ConnectionError as error:
            raise DaemonDied("the p2pd process of this node has ended: start the node again") from error
        finally:
            del self._calls[call_id]
        return answer

    async def _read_calls(self, reader: asyncio.StreamReader) -> None:
        """Read the control connection until it ends; then fail whatever waits for it."""
        try:
            while True:
                message = p2pd_pb2.PersistentConnectionResponse()
                message.ParseFromString(await _read_framed(reader))
                self._dispatch(message)
        except (asyncio.IncompleteReadError, ConnectionError, ProtocolViolation):
            pass
        finally:
            self._closed = True
            self._fail_calls()

    def _fail_calls(self) -> None:
        for future in self._calls.values():
            if not future.done():
                future.set_exception(DaemonDied("the p2pd process of this node has ended: start the node again"))

    def _dispatch(self, message: Any) -> None:
        call_id = bytes(message.callId)
        if message.HasField("requestHandling"):
            self._serve_call(call_id, message.requestHandling)
            return
        future = self._calls.get(call_id)
        if message.HasField("cancel"):
            if call_id in self._serving:
                self._serving[call_id].cancel()
        elif future is None or future.done():
            pass  # the caller gave up before the answer came
        elif message.HasField("daemonError"):
            self._connected = None
            future.set_exception(PeerUnreachable(message.daemonError.message))
        elif not message.HasField("callUnaryResponse"):
            future.set_result(b"")
        elif message.callUnaryResponse.HasField("response"):
            future.set_result(message.callUnaryResponse.response)
        elif message.callUnaryResponse.error == _NOT_ADMITTED:
            future.set_exception(NotAdmitted("the peer does not count us as a member"))
        else:
            future.set_exception(UnavailableError(f"the peer failed: {message.callUnaryResponse.error[:80]!r}"))

    def _serve_call(self, call_id: bytes, request: Any) -> None:
        if len(self._serving) >= MAX_UNARY_CALLS or call_id in self._serving:
            self._answer(call_id, p2pd_pb2.CallUnaryResponse(error=_BUSY))
            return
        task = asyncio.get_running_loop().create_task(self._run_call(call_id, request))
        self._serving[call_id] = task
        task.add_done_callback(lambda _: self._serving.pop(call_id, None))

    async def _run_call(self, call_id: bytes, request: Any) -> None:
        try:
            answer = await self._unary_handlers[request.proto](request.data, PeerID(request.peer))
            response = p2pd_pb2.CallUnaryResponse(response=answer)
            if len(answer) > MAX_MESSAGE_BYTES - 1024:
                response = p2pd_pb2.CallUnaryResponse(error=_TOO_LONG)
        except NotAdmitted:
            response = p2pd_pb2.CallUnaryResponse(error=_NOT_ADMITTED)
        except Exception as error:  # noqa: BLE001 - the border of handlers: a peer's call must not end the node
            logger.debug("a call of a peer failed: %r", error)
            response = p2pd_pb2.CallUnaryResponse(error=_FAILED)
        self._answer(call_id, response)

    def _answer(self, call_id: bytes, response: Any) -> None:
        message = p2pd_pb2.PersistentConnectionRequest(callId=call_id, unaryResponse=response)
        if self._writer is not None and not self._closed:
            self._writer.write(_framed(message.SerializeToString()))


def address_bytes(address: str) -> bytes:
    """Encode a multiaddr for p2pd.

    A peer id inside it (of a relay) is written as libp2p does, as a multihash; hivemind's codec would write a CID,
    which p2pd does not read.

    Raises:
        BadAddress: It is no multiaddr.
    """
    mend = "one looks like /ip4/0.0.0.0/tcp/31337"
    if not address.startswith("/") or len(address) < 2:
        raise BadAddress(f"{address[:100]!r} is no multiaddr: {mend}")
    packed = b""
    try:
        for index, part in enumerate(re.split(r"/p2p/([^/]+)", address)):
            if index % 2:
                packed += _P2P_CODE + peer_id_to_bytes(part)
            elif part:
                packed += Multiaddr(part).to_bytes()
    except (ValueError, LookupError, OSError) as error:
        raise BadAddress(f"{address[:100]!r} is no multiaddr ({error}): {mend}") from None
    return packed


async def close_writer(writer: asyncio.StreamWriter) -> None:
    """Close a stream's writer and wait for it; a peer that has gone already is no error."""
    writer.close()
    with contextlib.suppress(OSError, EOFError):
        await writer.wait_closed()


def _framed(data: bytes) -> bytes:
    """Prefix a control message with its length as a varint."""
    length, prefix = len(data), bytearray()
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + data


async def _read_framed(reader: asyncio.StreamReader) -> bytes:
    length = 0
    for shift in range(0, 35, 7):
        (byte,) = await reader.readexactly(1)
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    if length > 2 * MAX_MESSAGE_BYTES:
        raise ProtocolViolation("a control message is longer than p2pd sends")
    return await reader.readexactly(length)


def _peer_text(peer_id: bytes) -> str:
    """Write a peer's id; ours are remembered, foreign ones are of other kinds."""
    try:
        return peer_id_to_str(peer_id)
    except ValueError:
        return str(PeerID(peer_id).to_base58())
