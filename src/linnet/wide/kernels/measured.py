"""Measured rules that choose the faster evaluation of a population: functions of sizes alone, no timing at run time.

Version 1, 2026-11: AMD EPYC (Zen 5), torch 2.13, float32, one thread. ``strategy=`` of :class:`linnet.Wide` overrides
these rules.
"""

VERSION = 1


def loop_is_cheaper(beings: int, leaves: int) -> bool:
    """Whether a loop over the beings is cheaper than torch.vmap, whose overhead is about 16 calls of a leaf."""
    return beings * leaves <= 16


def lstm_one_by_one(beings: int, batch: int, hidden: int) -> bool:
    """Whether torch's LSTM kernel, called for each net, is faster than batched steps: few nets, or large steps."""
    return beings < 12 or batch * hidden >= 2048
