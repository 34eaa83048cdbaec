"""Make a network namespace translate addresses, as a router at home does: out under its own address, nothing in.

Speaks nf_tables' netlink protocol itself (linux/netfilter/nf_tables.h), so that neither ``nft`` nor ``iptables`` is
needed. The kernel acts on the namespace of the thread that opens the socket.
"""

import errno
import socket
import struct

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 3, 6
_ERROR = 2
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_NESTED = 0x8000
_HOOK_FORWARD, _HOOK_POSTROUTING = 2, 4
_PRIORITY_FILTER, _PRIORITY_SOURCE_NAT = 0, 100
_REGISTER, _REGISTER_VERDICT = 1, 0
_META_IN_NAME, _META_OUT_NAME = 6, 7
_TRACKED_STATE, _STATE_NEW = 0, 8
_DROP = 0


def translate(outside: str) -> None:
    """Translate what leaves through the device ``outside`` of this thread's namespace; drop what comes in unasked.

    Raises:
        OSError: The kernel cannot do it, or does not let us.
    """
    _send(
        _message(_NEW_TABLE, _text(1, "home")),
        _chain("out", "nat", _HOOK_POSTROUTING, _PRIORITY_SOURCE_NAT),
        _rule("out", _device(_META_OUT_NAME, outside), _expression("masq")),
        _chain("in", "filter", _HOOK_FORWARD, _PRIORITY_FILTER),
        _rule("in", _device(_META_IN_NAME, outside), _is_new(), _drop()),
    )


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">i", value))


def _nested(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(parts))


def _message(kind: int, *attributes: bytes) -> tuple[int, bytes]:
    return _SUBSYSTEM << 8 | kind, struct.pack(">BBH", socket.AF_INET, 0, 0) + b"".join(attributes)


def _chain(name: str, kind: str, hook: int, priority: int) -> tuple[int, bytes]:
    where = _nested(4, _number(1, hook), _number(2, priority))
    return _message(_NEW_CHAIN, _text(1, "home"), _text(3, name), where, _text(7, kind))


def _rule(chain: str, *expressions: bytes) -> tuple[int, bytes]:
    return _message(_NEW_RULE, _text(1, "home"), _text(2, chain), _nested(4, *expressions))


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nested(1, _text(1, name), _nested(2, *attributes))


def _equals(value: bytes) -> bytes:
    return _expression("cmp", _number(1, _REGISTER), _number(2, 0), _nested(3, _attribute(1, value)))


def _device(key: int, name: str) -> bytes:
    return _expression("meta", _number(1, _REGISTER), _number(2, key)) + _equals(name.encode().ljust(16, b"\0"))


def _is_new() -> bytes:
    state = _expression("ct", _number(1, _REGISTER), _number(2, _TRACKED_STATE))
    return state + _equals(struct.pack("=I", _STATE_NEW))


def _drop() -> bytes:
    return _expression("immediate", _number(1, _REGISTER_VERDICT), _nested(2, _nested(2, _number(1, _DROP))))


def _send(*messages: tuple[int, bytes]) -> None:
    """Send all messages as one batch, which the kernel takes whole or not at all."""
    border = struct.pack(">BBH", socket.AF_UNSPEC, 0, _SUBSYSTEM)
    batch = [_packed(_BATCH_BEGIN, _REQUEST, border)]
    batch += [_packed(kind, _REQUEST | _ACK | _CREATE | _APPEND, payload) for kind, payload in messages]
    batch.append(_packed(_BATCH_END, _REQUEST, border))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as channel:
        channel.settimeout(5.0)
        channel.bind((0, 0))
        channel.send(b"".join(batch))
        answered = 0
        while answered < len(messages):
            answered += _read_answers(channel.recv(65536))


def _packed(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, 0, 0) + payload


def _read_answers(data: bytes) -> int:
    num_answers = 0
    while data:
        length, kind = struct.unpack_from("=IH", data)
        (code,) = struct.unpack_from("=i", data, 16)
        if kind != _ERROR:
            raise OSError(errno.EPROTO, f"netlink message {kind}")
        if code:
            raise OSError(-code, f"nf_tables: {errno.errorcode.get(-code, code)}")
        num_answers += 1
        data = data[(length + 3) & ~3 :]
    return num_answers
