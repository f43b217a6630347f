"""The cold tier in an S3 bucket, or in anything that speaks S3. Objects are immutable, whole, and read by ranges.

Refuses to know what is stored. aiobotocore's errors end here, as TierError; credentials come from its usual chain
(environment, profile, instance) and are never told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from sessioncache.problems import TierError
from sessioncache.tiers import Entry

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Which bucket, where, and how patient we are. An empty `endpoint` is Amazon's own."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = "us-east-1"
    connect_timeout_s: float = 2.0
    timeout_s: float = 20.0
    most_connections: int = 32
    keep_alive_s: float = 90.0
    attempts: int = 2


@dataclass(frozen=True, slots=True)
class S3Tier:
    """See `Tier`."""

    settings: S3Settings
    client: Any

    async def put(self, key: str, stored: bytes) -> None:
        """See `Tier`."""
        await self._run(
            lambda: self.client.put_object(
                Bucket=self.settings.bucket, Key=self._name(key), Body=stored, ContentType="application/octet-stream"
            )
        )

    async def get(self, key: str, first: int = 0, end: int | None = None) -> bytes | None:
        """See `Tier`; an answer that was cut off is a TierError, not fewer bytes."""
        if end is not None and end <= first:
            return b""
        span = {} if first == 0 and end is None else {"Range": f"bytes={first}-{'' if end is None else end - 1}"}
        try:
            return (await self._run(lambda: self._read(self._name(key), span)))[0]
        except _MissingError:
            return None
        except _PastEndError:
            return b""

    async def size(self, key: str) -> int | None:
        """See `Tier`."""
        name = {"Bucket": self.settings.bucket, "Key": self._name(key)}
        try:
            return int((await self._run(lambda: self.client.head_object(**name)))["ContentLength"])
        except _MissingError:
            return None

    async def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """See `Tier`; as many at once as there are connections."""
        return await asyncio.gather(*map(self.size, keys))

    async def tagged(self, key: str) -> tuple[bytes, str] | None:
        """See `ColdTier`; the tag is the object's ETag."""
        try:
            return await self._run(lambda: self._read(self._name(key), {}))
        except _MissingError:
            return None

    async def swap(self, key: str, stored: bytes, tag: str | None) -> bool:
        """See `ColdTier`; the server compares. False, too, when an answer was lost and the call was made again."""
        asked = {"Bucket": self.settings.bucket, "Key": self._name(key), "Body": stored}
        asked |= {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            await self._run(lambda: self.client.put_object(**asked))
        except (_MissingError, _ChangedError):
            return False
        return True

    async def delete(self, key: str) -> None:
        """See `Tier`."""
        await self._run(lambda: self.client.delete_object(Bucket=self.settings.bucket, Key=self._name(key)))

    async def entries(self, prefix: str) -> AsyncIterator[Entry]:
        """See `Tier`."""
        request = {"Bucket": self.settings.bucket, "Prefix": self._name(prefix)}
        while True:
            page = await self._run(lambda: self.client.list_objects_v2(**request))
            for found in page.get("Contents", ()):
                key = found["Key"].removeprefix(self.settings.prefix)
                yield Entry(key, found["Size"], found["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    async def _read(self, name: str, span: dict[str, str]) -> tuple[bytes, str]:
        answer = await self.client.get_object(Bucket=self.settings.bucket, Key=name, **span)
        async with answer["Body"] as body:
            stored: bytes = await body.read()
        if len(stored) != answer["ContentLength"]:
            raise TierError(f"S3: {name} ended after {len(stored)} of {answer['ContentLength']} bytes")
        return stored, str(answer["ETag"])

    def _name(self, key: str) -> str:
        return self.settings.prefix + key

    async def _run(self, act: Callable[[], Awaitable[Result]]) -> Result:
        try:
            async with asyncio.timeout(self.settings.timeout_s * self.settings.attempts):
                return await act()
        except ClientError as exc:
            raise _told(exc) from exc
        except (BotoCoreError, HTTPClientError, HttpError, OSError, TimeoutError) as exc:
            raise TierError(f"S3: {exc or type(exc).__name__}") from exc


class _MissingError(TierError):
    """There is no such object."""


class _PastEndError(TierError):
    """The range begins behind the object's last byte."""


class _ChangedError(TierError):
    """The object is not as the writer had read it."""


def _told(exc: ClientError) -> TierError:
    """Say what the server said: its code, never its body, which may repeat the request."""
    code = exc.response.get("Error", {}).get("Code", "unknown")
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    kinds: dict[str, type[TierError]] = {
        "NoSuchKey": _MissingError,
        "404": _MissingError,
        "InvalidRange": _PastEndError,
        "416": _PastEndError,
    }
    kinds |= {"PreconditionFailed": _ChangedError, "412": _ChangedError, "ConditionalRequestConflict": _ChangedError}
    return kinds.get(str(code), TierError)(f"S3 answered {status} {code} to {exc.operation_name}")


@asynccontextmanager
async def open_s3(settings: S3Settings) -> AsyncIterator[S3Tier]:
    """Give a tier on one pool of connections; nothing is asked of the server yet."""
    config = AioConfig(
        s3={"addressing_style": "path"},
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.timeout_s,
        max_pool_connections=settings.most_connections,
        connector_args={"keepalive_timeout": settings.keep_alive_s},
        retries={"total_max_attempts": settings.attempts, "mode": "standard"},
    )
    session = get_session()
    async with session.create_client(
        "s3", region_name=settings.region, endpoint_url=settings.endpoint or None, config=config
    ) as client:
        yield S3Tier(settings, client)
