"""Links that send tensors between two processes, in threads and through queues, until an end message or a failure."""

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

DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
MOST_AXES = 8
MOST_TENSORS = 2
HEADER = 2 + MOST_TENSORS * (2 + MOST_AXES)
END = -1
"""The step of the last message."""
POLL = 0.02
"""Seconds between two checks for failures of other threads."""


@dataclass
class Message:
    """A message: the number of a batch and its tensors."""

    step: int
    tensors: list[Tensor] = field(default_factory=list)


class Failure:
    """The first failure of a thread of this process; every wait of the other threads then raises it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.error: str | None = None

    def report(self, text: str) -> None:
        with self._lock:
            self.error = self.error or text

    def check(self) -> None:
        if self.error is not None:
            raise RuntimeError(f"Pipeline failed: {self.error}")


class Link(ABC):
    """One direction between this process and a neighbour, served by one thread.

    Args:
        peer: rank of the neighbour.
        group: a process group of the two processes, used by this link only.
        room: length of the queue; 0 is unlimited.
        failure: the failure that all links of a process share.
        timeout: seconds after which a silent neighbour counts as dead.
    """

    def __init__(self, peer: int, group: Any, room: int, failure: Failure, timeout: float) -> None:
        self.peer, self.group, self.failure, self.timeout = peer, group, failure, timeout
        self.messages: queue.Queue[Message] = queue.Queue(room)
        self.waited = 0.0  # seconds that the main thread waited here
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait until the end message has been sent or received."""
        self._wait(self._ended, "the end of the stream")

    def _ended(self) -> bool:
        self._thread.join(POLL)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            self.failure.report(f"rank {self.peer} is gone or silent for {self.timeout:g} s ({text})")

    @abstractmethod
    def _work(self) -> None:
        """The work of the thread, until the end message."""

    def _wait(self, attempt: Callable[[], bool], what: str) -> None:
        """Repeat the attempt, which itself waits for POLL seconds, until it succeeds."""
        start = time.monotonic()
        while not attempt():
            self.failure.check()
            if time.monotonic() - start > self.timeout:
                raise RuntimeError(
                    f"Pipeline failed: waited {self.timeout:g} s for rank {self.peer} ({what}); raise timeout= if it "
                    "is slow"
                )
        self.waited += time.monotonic() - start


class Outbox(Link):
    """Sends messages in order."""

    def put(self, step: int, tensors: Sequence[Tensor] = ()) -> None:
        """Queue a message; waits while the queue is full."""
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
            dist.send(_encode_header(message), self.peer, group=self.group)
            for tensor in message.tensors:
                dist.send(_as_supported_dtype(tensor.cpu()), self.peer, self.group)
            if message.step == END:
                return


class Inbox(Link):
    """Receives messages into a queue until the end message, which is the last one."""

    def get(self) -> Message:
        """Wait for the next message and return it."""
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
        """Wait for each message up to the end message."""
        while (message := self.get()).step != END:
            yield message

    def arrived(self) -> list[Message]:
        """The messages that have arrived; does not wait."""
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
            for dtype, shape in _decode_header(header.tolist()):
                tensor = torch.empty(shape, dtype=dtype)
                dist.recv(_as_supported_dtype(tensor), self.peer, group=self.group)
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


def _as_supported_dtype(tensor: Tensor) -> Tensor:
    """View bool and bfloat16, which gloo does not support, as bytes."""
    return tensor.view(torch.uint8) if tensor.dtype in (torch.bool, torch.bfloat16) else tensor


def _encode_header(message: Message) -> Tensor:
    numbers = [message.step, len(message.tensors)]
    for tensor in message.tensors:
        if tensor.dim() > MOST_AXES or tensor.dtype not in DTYPES:
            raise ValueError(
                f"A tensor between stages must have at most {MOST_AXES} axes and a real dtype, got "
                f"shape {tuple(tensor.shape)} and {tensor.dtype}"
            )
        numbers += [DTYPES.index(tensor.dtype), tensor.dim(), *tensor.shape, *[0] * (MOST_AXES - tensor.dim())]
    return torch.tensor(numbers + [0] * (HEADER - len(numbers)))


def _decode_header(header: list[int]) -> list[tuple[torch.dtype, list[int]]]:
    found = []
    for i in range(header[1]):
        dtype, axes, *shape = header[2 + i * (2 + MOST_AXES) : 2 + (i + 1) * (2 + MOST_AXES)]
        found.append((DTYPES[dtype], shape[:axes]))
    return found
