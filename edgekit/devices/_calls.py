"""Coroutines run from plain code, in whatever thread, and ended from any other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Calls:
    """The calls that are under way."""

    def __init__(self) -> None:
        self._ended = False
        self._working: set[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = set()

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run it to its end, whether or not this thread has an event loop already (a notebook's has).

        Raises:
            KeyboardInterrupt: of Ctrl-C in the main thread, and in any other after `interrupt`.
        """

        async def noted() -> T:
            task = asyncio.current_task()
            assert task is not None
            mine = asyncio.get_running_loop(), task
            self._working.add(mine)
            try:
                if self._ended:  # between two calls
                    raise asyncio.CancelledError
                return await work()
            finally:
                self._working.discard(mine)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return _run(noted)
        return self._beside(noted)

    def interrupt(self) -> None:
        """End all calls, as Ctrl-C does one in the main thread, for good. Returns at once; they end soon."""
        self._ended = True
        for loop, task in tuple(self._working):
            with suppress(RuntimeError):  # it ended by itself meanwhile
                loop.call_soon_threadsafe(task.cancel)

    def _beside(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        found: list[T] = []
        failed: list[BaseException] = []
        mine: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []
        ended = threading.Event()  # Ctrl-C in Thread.join() would take a thread that runs for one that ended

        async def noted() -> T:
            task = asyncio.current_task()
            assert task is not None
            mine.append((asyncio.get_running_loop(), task))
            return await work()

        def run() -> None:
            try:
                found.append(_run(noted))
            except BaseException as error:
                failed.append(error)
            ended.set()

        threading.Thread(target=run).start()
        try:
            ended.wait()
        except KeyboardInterrupt:
            for loop, task in mine:
                with suppress(RuntimeError):  # it ended by itself meanwhile
                    loop.call_soon_threadsafe(task.cancel)
            ended.wait()
            raise
        if failed:
            raise failed[0]
        return found[0]


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        return asyncio.run(work())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
