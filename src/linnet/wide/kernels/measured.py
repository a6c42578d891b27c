"""Which way of evaluating a population was measured to be faster: rules by sizes alone, never a timing at run time.

Version 1, 2026-11: AMD EPYC (Zen 5), torch 2.13, float32, one thread. ``strategy=`` of :class:`linnet.Wide` overrides
them.
"""

__all__ = ["VERSION", "few_calls", "lstm_one_by_one"]

VERSION = 1


def few_calls(beings: int, leaves: int) -> bool:
    """Whether a loop over the beings costs less than torch.vmap, which costs about as much as 16 calls of a leaf."""
    return beings * leaves <= 16


def lstm_one_by_one(beings: int, batch: int, hidden: int) -> bool:
    """Whether torch's own LSTM, a kernel for one net, beats the batched steps: few nets, or steps that are large."""
    return beings < 12 or batch * hidden >= 2048
