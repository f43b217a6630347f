r"""One chunk as bytes: KV of up to 256 tokens, its layers as frames that can be read one by one, nothing trusted.

    0   8 bytes    magic "TGKV\r\n\x1a\n": a text-mode copy breaks it at once
    8   u32        version
    12  u32        bytes of the header that follows this preamble
    16  u64        bytes of the whole chunk
    24  u64        xxh3-64 of the header
    32  header     JSON: Header
    …   frames     each sealed on its own: nonce | ciphertext | tag of (u64 xxh3-64 of the payload | payload)

Frame 0 holds the token ids, frame 1 + n layer n. A frame is bound to the whole header and to its own place, so a frame
of another chunk, tenant, model or layer does not open (the failure that LMCache reports as #4385). The header says
where each frame lies, so a cold tier is read by ranges: first the head, then layer after layer.

Refuses to know tiers and what the payloads mean. Never unpickles; bounds are checked before anything is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import orjson
from xxhash import xxh3_64_intdigest

from sessioncache.identity import token_bytes
from sessioncache.problems import ChunkError
from sessioncache.vault import SEALED_EXTRA_BYTES, Secrets
from sessioncache.wire import Octets

MAGIC, VERSION = b"TGKV\r\n\x1a\n", 1
PREAMBLE = struct.Struct("<8sIIQQ")
LEAST_FRAME_BYTES = 8 + SEALED_EXTRA_BYTES
MOST_HEADER_BYTES, MOST_CHUNK_BYTES, MOST_LAYERS, MOST_TOKENS = 1 << 18, 1 << 30, 4096, 1 << 16


@dataclass(frozen=True, slots=True)
class Header:
    """What a chunk is. `sizes` are the bytes of its sealed frames, in order; `first` is its first token's position."""

    name: str
    model: str
    codec: str
    first: int
    tokens: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A header with the bytes that bind its frames, and where they begin."""

    header: Header
    bound: bytes

    def frames(self, stored: Octets) -> list[memoryview[int]]:
        """Return views of the sealed frames, of the whole chunk's bytes."""
        whole = memoryview(stored)
        ends = accumulate(self.header.sizes, initial=len(self.bound))
        return [whole[start:end] for start, end in pairwise(ends)]

    def open(self, frame: int, sealed: Octets, secrets: Secrets) -> memoryview[int]:
        """Return the payload of a frame; ChunkError when it is not exactly what was stored."""
        checked = secrets.open(sealed, _place(self.bound, frame))
        (digest,), payload = struct.unpack_from("<Q", checked), memoryview(checked)[8:]
        if xxh3_64_intdigest(payload) != digest:
            raise ChunkError(f"frame {frame} of {self.header.name} differs from what was written into it")
        return payload

    def check_tokens(self, sealed: Octets, tokens: Sequence[int], secrets: Secrets) -> None:
        """Compare the stored token ids with those that are wanted; ChunkError when one differs."""
        if self.open(0, sealed, secrets) != token_bytes(tokens):
            raise ChunkError(f"{self.header.name} holds other tokens than its name says")


def write(header: Header, tokens: Sequence[int], layers: Sequence[Octets], secrets: Secrets) -> bytes:
    """Return the bytes of a chunk; `header.sizes` is filled in here."""
    payloads = [token_bytes(tokens), *layers]
    sizes = tuple(len(payload) + LEAST_FRAME_BYTES for payload in payloads)
    bound = _head(Header(header.name, header.model, header.codec, header.first, len(tokens), sizes))
    frames = [
        secrets.seal(b"".join((_digest(payload), payload)), _place(bound, frame))
        for frame, payload in enumerate(payloads)
    ]
    return b"".join((bound, *frames))


def opened(stored: Octets, expected: Header, tokens: Sequence[int], secrets: Secrets) -> list[memoryview[int]]:
    """Return the layers of a whole chunk; ChunkError when it is not exactly the one of this header and these tokens."""
    chunk = read(stored, total=len(stored))
    if replace(chunk.header, sizes=()) != expected:
        raise ChunkError(f"{expected.name} is another chunk than it should be")
    tokens_frame, *layers = chunk.frames(stored)
    chunk.check_tokens(tokens_frame, tokens, secrets)
    return [chunk.open(frame, layer, secrets) for frame, layer in enumerate(layers, start=1)]


def head_bytes(start: Octets) -> int:
    """Return how many bytes the head of a chunk has that starts so; PREAMBLE.size bytes are enough to know."""
    return PREAMBLE.size + _preamble(start)[0]


def read(head: Octets, *, total: int) -> Chunk:
    """Read the head of a chunk of which `total` bytes exist; ChunkError when anything about it is not sound."""
    header_bytes, told_total, digest = _preamble(head)
    if told_total != total:
        raise ChunkError(f"the chunk has {total} bytes instead of {told_total}; it was cut off or mixed up")
    bound = bytes(head[: PREAMBLE.size + header_bytes])
    if len(bound) != PREAMBLE.size + header_bytes or xxh3_64_intdigest(bound[PREAMBLE.size :]) != digest:
        raise ChunkError("the header is damaged")
    header = _header(bound[PREAMBLE.size :])
    if len(bound) + sum(header.sizes) != total:
        raise ChunkError("the frames do not fill the chunk")
    return Chunk(header, bound)


def _head(header: Header) -> bytes:
    body = orjson.dumps(asdict(header))
    total = PREAMBLE.size + len(body) + sum(header.sizes)
    return PREAMBLE.pack(MAGIC, VERSION, len(body), total, xxh3_64_intdigest(body)) + body


def _digest(payload: Octets) -> bytes:
    return xxh3_64_intdigest(payload).to_bytes(8, "little")


def _place(bound: bytes, frame: int) -> bytes:
    return bound + frame.to_bytes(4, "little")


def _preamble(start: Octets) -> tuple[int, int, int]:
    if len(start) < PREAMBLE.size:
        raise ChunkError(f"{len(start)} bytes are too few for a chunk")
    magic, version, header_bytes, total, digest = PREAMBLE.unpack_from(start)
    if magic != MAGIC:
        raise ChunkError("this is not a chunk")
    if version != VERSION:
        raise ChunkError(f"the chunk has version {version}; this program reads version {VERSION}")
    if header_bytes > MOST_HEADER_BYTES or total > MOST_CHUNK_BYTES:
        raise ChunkError(f"a header of {header_bytes} or a chunk of {total} bytes is more than any of ours")
    return header_bytes, total, digest


def _header(body: bytes) -> Header:
    try:
        told: Any = orjson.loads(body)
        header = Header(**{**told, "sizes": tuple(told["sizes"])})
    except (ValueError, TypeError, KeyError) as exc:
        raise ChunkError("the header does not have the expected form") from exc
    texts = (header.name, header.model, header.codec)
    numbers = (header.first, header.tokens, *header.sizes)
    if not all(isinstance(each, str) for each in texts) or not all(type(each) is int for each in numbers):
        raise ChunkError("the header does not have the expected types")
    if header.first < 0 or min(header.sizes, default=0) < LEAST_FRAME_BYTES:
        raise ChunkError("the header's numbers are out of range")
    if not 1 <= header.tokens <= MOST_TOKENS or len(header.sizes) > MOST_LAYERS + 1:
        raise ChunkError("the header's numbers are out of range")
    return header
