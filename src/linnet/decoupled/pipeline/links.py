"""Tensors between two processes: sent and received in threads, through queues, with an end and a clear failure."""

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Failure", "Inbox", "Message", "Outbox"]

DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
MOST_AXES = 8
MOST_TENSORS = 2
HEADER = 2 + MOST_TENSORS * (2 + MOST_AXES)
END = -1
"""The number of the message after which nothing comes."""
POLL = 0.02
"""Seconds between two looks at whether a thread has failed."""


@dataclass
class Message:
    """What travels: the number of a batch and tensors that belong to it."""

    step: int
    tensors: list[Tensor] = field(default_factory=list)


class Failure:
    """The first thing that went wrong in any thread of this process; waiting for something else ends with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.error: str | None = None

    def tell(self, text: str) -> None:
        with self._lock:
            self.error = self.error or text

    def check(self) -> None:
        if self.error is not None:
            raise RuntimeError(f"A pipeline needs all its stages, got {self.error}")


class Link(ABC):
    """One direction between this process and a neighbour, worked on by one thread.

    Args:
        peer: the neighbour's rank.
        group: a process group of the two, used by nobody else.
        room: length of the queue; 0: unlimited.
        failure: shared by the links of a process.
        timeout: seconds after which a silent neighbour is taken for dead.
    """

    def __init__(self, peer: int, group: Any, room: int, failure: Failure, timeout: float) -> None:
        self.peer, self.group, self.failure, self.timeout = peer, group, failure, timeout
        self.messages: queue.Queue[Message] = queue.Queue(room)
        self.waited = 0.0  # seconds that the main thread waited here
        self._thread = threading.Thread(target=self._guarded, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Until the end has gone through."""
        self._wait(self._ended, "the end of the stream")

    def _ended(self) -> bool:
        self._thread.join(POLL)
        return not self._thread.is_alive()

    def _guarded(self) -> None:
        try:
            self._work()
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            self.failure.tell(f"rank {self.peer} is gone or silent for {self.timeout:g} s ({text})")

    @abstractmethod
    def _work(self) -> None:
        """What the thread does, until the end."""

    def _wait(self, attempt: Callable[[], bool], what: str) -> None:
        """Until the attempt succeeds; each one waits a little by itself."""
        start = time.monotonic()
        while not attempt():
            self.failure.check()
            if time.monotonic() - start > self.timeout:
                raise RuntimeError(
                    f"A pipeline needs all its stages, got rank {self.peer} kept this one waiting for {what} for "
                    f"{self.timeout:g} s"
                )
        self.waited += time.monotonic() - start


class Outbox(Link):
    """Sends what is put in, in order."""

    def put(self, step: int, tensors: Sequence[Tensor] = ()) -> None:
        """Returns at once while the queue has room."""
        message = Message(step, [tensor.detach().contiguous() for tensor in tensors])

        def attempt() -> bool:
            try:
                self.messages.put(message, timeout=POLL)
            except queue.Full:
                return False
            return True

        self._wait(attempt, "room in its queue")

    def _work(self) -> None:
        while True:
            try:
                message = self.messages.get(timeout=POLL)
            except queue.Empty:
                if self.failure.error is not None:
                    return
                continue
            dist.send(_header(message), self.peer, group=self.group)
            for tensor in message.tensors:
                dist.send(_plain(tensor.cpu()), self.peer, self.group)
            if message.step == END:
                return


class Inbox(Link):
    """Receives into a queue until the end; the end itself is the last message."""

    def get(self) -> Message:
        """The next message; waits for it."""
        found: list[Message] = []

        def attempt() -> bool:
            try:
                found.append(self.messages.get(timeout=POLL))
            except queue.Empty:
                return False
            return True

        self._wait(attempt, "a batch")
        return found[0]

    def __iter__(self) -> Iterator[Message]:
        """The messages, up to the end; waits for each."""
        while (message := self.get()).step != END:
            yield message

    def arrived(self) -> list[Message]:
        """What is there by now; never waits."""
        self.failure.check()
        found = []
        while True:
            try:
                found.append(self.messages.get_nowait())
            except queue.Empty:
                return found

    def _work(self) -> None:
        while True:
            header = torch.empty(HEADER, dtype=torch.int64)
            dist.recv(header, self.peer, group=self.group)
            message = Message(int(header[0]))
            for dtype, shape in _described(header.tolist()):
                tensor = torch.empty(shape, dtype=dtype)
                dist.recv(_plain(tensor), self.peer, group=self.group)
                message.tensors.append(tensor)
            self._wait_for_room(message)
            if message.step == END:
                return

    def _wait_for_room(self, message: Message) -> None:
        while self.failure.error is None:
            try:
                self.messages.put(message, timeout=POLL)
                return
            except queue.Full:
                continue


def _plain(tensor: Tensor) -> Tensor:
    """gloo knows neither bool nor bfloat16: the same bytes as it knows them."""
    return tensor.view(torch.uint8) if tensor.dtype in (torch.bool, torch.bfloat16) else tensor


def _header(message: Message) -> Tensor:
    numbers = [message.step, len(message.tensors)]
    for tensor in message.tensors:
        if tensor.dim() > MOST_AXES or tensor.dtype not in DTYPES:
            raise ValueError(
                f"A tensor between stages must have at most {MOST_AXES} axes and a plain dtype, got "
                f"{tuple(tensor.shape)} of {tensor.dtype}"
            )
        numbers += [DTYPES.index(tensor.dtype), tensor.dim(), *tensor.shape, *[0] * (MOST_AXES - tensor.dim())]
    return torch.tensor(numbers + [0] * (HEADER - len(numbers)))


def _described(header: list[int]) -> list[tuple[torch.dtype, list[int]]]:
    found = []
    for i in range(header[1]):
        dtype, axes, *shape = header[2 + i * (2 + MOST_AXES) : 2 + (i + 1) * (2 + MOST_AXES)]
        found.append((DTYPES[dtype], shape[:axes]))
    return found
