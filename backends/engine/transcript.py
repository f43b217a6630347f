"""What is left of an answer when it ends: whose it was, its tokens, and the names of the blocks that hold their KV.

Refuses to know where KV is kept.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from hashlib import blake2b

from backends.api import Call
from backends.engine.answer import Answer
from backends.engine.kvcodec import CHUNK_TOKENS
from batching.blocks import Blocks


@dataclass(frozen=True, slots=True, eq=False)
class Transcript:
    """Whole chunks of a session's tokens, prompt and answer; `chain` names their blocks."""

    tenant: str
    session: str
    tokens: array[int] = field(repr=False)
    chain: list[bytes] = field(repr=False)

    @property
    def chunks(self) -> int:
        """How many whole chunks there are."""
        return len(self.tokens) // CHUNK_TOKENS

    def goes_on_from(self, other: Transcript) -> bool:
        """Whether all of another one's tokens begin this one."""
        return self.chain[: len(other.chain)][-1:] == other.chain[-1:]


def transcript_of(answer: Answer, blocks: Blocks) -> Transcript | None:
    """Make one of an answer whose KV is in blocks; None for less than a chunk, and for a prompt's further answers."""
    sequence, call = answer.sequence, answer.answering.call
    chunks = sequence.published * blocks.block_tokens // CHUNK_TOKENS
    if sequence.leader is not None or not chunks:
        return None
    tokens = array("I", sequence.tokens[: chunks * CHUNK_TOKENS])
    chain = sequence.chain[: chunks * CHUNK_TOKENS // blocks.block_tokens]
    return Transcript(call.tenant, session_of(call) or f"prefix:{chain[0].hex()}", tokens, chain)


def session_of(call: Call) -> str | None:
    """Name the session of a call: as its client does, else by its beginning up to the first word of the user."""
    if call.session is not None or not call.messages:
        return call.session
    first = next((at for at, message in enumerate(call.messages) if message.role == "user"), 0)
    said = repr([(message.role, message.text) for message in call.messages[: first + 1]])
    return "beginning:" + blake2b(said.encode(errors="surrogatepass"), digest_size=16).hexdigest()
