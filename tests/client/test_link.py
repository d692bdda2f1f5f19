"""A member's connection: what the library under it forgets is not forgotten here."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

import aiomqtt
import pytest

from gateway.bus.link import MqttLink


class AnswersJustThen:
    """A broker whose answer comes together with a cancellation, of which nothing is left then (Python 3.11)."""

    async def publish(self, topic: str, payload: bytes, qos: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    async def subscribe(self, topic: str, qos: int) -> list[int]:
        await self.publish(topic, b"", qos)
        return [qos]


@pytest.mark.parametrize("words", [("publish", "topic", b""), ("subscribe", "topic", 1)])
async def test_a_cancellation_that_comes_with_the_broker_s_answer_is_heeded(words: tuple[Any, ...]):
    link = MqttLink(cast("aiomqtt.Client", AnswersJustThen()))
    call = asyncio.create_task(getattr(link, words[0])(*words[1:]))
    with pytest.raises(asyncio.CancelledError):
        await call
