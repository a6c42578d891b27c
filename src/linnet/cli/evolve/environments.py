"""Gymnasium environments for populations: every being plays episodes of its own, all at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Policy = Callable[[Tensor], Tensor]
"""(episodes, beings, observation) -> (episodes, beings, outputs)."""

_NO_LIMIT = 1000


def word(*keys: int) -> int:
    """A seed of 31 bits, a function of these numbers alone."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0]) & 0x7FFFFFFF


@dataclass
class Normalizer:
    """Running mean and variance of what the population has seen, element by element."""

    count: float  # of observations
    mean: np.ndarray
    square: np.ndarray  # the sum of the squared distances from the mean

    @classmethod
    def fresh(cls, size: int) -> "Normalizer":
        return cls(0.0, np.zeros(size), np.zeros(size))

    def add(self, count: float, total: np.ndarray, squares: np.ndarray) -> None:
        """Take in ``count`` observations by their sum and the sum of their squares, about 0 (Chan et al., 1979)."""
        if count == 0:
            return
        # Σ(x − x̄)² = Σx² − n x̄², and the squares of two parts add up with δ² n₁ n₂ / (n₁ + n₂), δ between their means
        mean = total / count
        own = np.maximum(squares - count * mean**2, 0.0)
        both, delta = self.count + count, mean - self.mean
        self.square = self.square + own + delta**2 * (self.count * count / both)
        self.mean = self.mean + delta * (count / both)
        self.count = both

    def scale(self) -> np.ndarray:
        """The standard deviation; 1 where nothing varied or nothing was seen."""
        if self.count < 2:
            return np.ones_like(self.mean)
        deviation = np.sqrt(self.square / self.count)
        return np.where(deviation > 1e-6, deviation, 1.0)

    def fold(self, policy: nn.Module) -> nn.Module:
        """Let a policy take observations as they are: its first W ← W / σ, its first b ← b − W μ / σ, in place."""
        first = next(module for module in policy.modules() if isinstance(module, nn.Linear))
        with torch.no_grad():
            scale, mean = (torch.from_numpy(x).to(first.weight) for x in (self.scale(), self.mean))
            first.weight.div_(scale)
            first.bias.sub_(first.weight @ mean)
        return policy


@dataclass(frozen=True)
class Outcome:
    """What a block of beings has done."""

    returns: np.ndarray  # (beings, episodes), the sum of rewards of each
    steps: int  # environment steps that counted
    seen: tuple[float, np.ndarray, np.ndarray]  # count, sum and sum of squares of the observations


@dataclass(frozen=True)
class Arena:
    """One kind of environment."""

    name: str  # its Gymnasium id
    vectorized: bool  # whether it has a vectorized entry point; if not, its copies run one after another
    observations: int  # size of what a policy sees
    outputs: int  # size of what it gives
    target: float | None  # the return at which it counts as solved
    limit: int  # steps of an episode at most
    _action: Any  # outputs -> actions

    def play(
        self, policy: Policy, beings: int, episodes: int, seed: int, normalizer: Normalizer | None = None
    ) -> Outcome:
        """Let beings play, with observations normalized if there is a ``normalizer``.

        All episodes of all beings are played side by side, until the last has ended.
        """
        copies = beings * episodes
        environment = self._make(copies)
        try:
            observed, _ = environment.reset(seed=seed)
            shift = None if normalizer is None else (normalizer.mean, normalizer.scale())
            returns, alive = np.zeros(copies), np.ones(copies, dtype=bool)
            total, squares = np.zeros((2, self.observations))
            steps = 0
            for _ in range(self.limit + 1):
                x = observed.reshape(copies, self.observations)
                if shift is not None:
                    seen = x[alive].astype(np.float64)
                    total, squares = total + seen.sum(0), squares + (seen**2).sum(0)
                    x = (x - shift[0]) / shift[1]
                outputs = policy(torch.from_numpy(np.asarray(x, np.float32)).view(episodes, beings, -1))
                observed, rewards, ended, cut, _ = environment.step(self._action(outputs.reshape(copies, -1)))
                steps += int(alive.sum())
                returns += np.where(alive, rewards, 0.0)
                alive &= ~(ended | cut)
                if not alive.any():
                    break
        finally:
            environment.close()
        return Outcome(returns.reshape(episodes, beings).T, steps, (float(steps), total, squares))

    def _make(self, copies: int) -> Any:
        import gymnasium

        mode = "vector_entry_point" if self.vectorized else "sync"
        return gymnasium.make_vec(self.name, num_envs=copies, vectorization_mode=mode)


def arena_of(name: str) -> Arena:
    """The environment of a Gymnasium id.

    Raises:
        ValueError: there is no such environment, what it needs is not installed, or a population cannot play it; the
            message says which.
    """
    import gymnasium

    try:
        spec = gymnasium.spec(name)
        environment = gymnasium.make(name)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ValueError(f"env must be one that Gymnasium can make, got {name!r}: {error}") from error
    try:
        observation, action = environment.observation_space, environment.action_space
    finally:
        environment.close()
    if not isinstance(observation, gymnasium.spaces.Box):
        raise ValueError(f"env must have numbers as observations (a Box space), got {observation} of {name}")
    if isinstance(action, gymnasium.spaces.Discrete):
        outputs, convert = int(action.n), _choice(int(action.start))
    elif isinstance(action, gymnasium.spaces.Box) and len(action.shape) == 1:
        outputs, convert = action.shape[0], _push(action.low, action.high)
    else:
        raise ValueError(f"env must have one of n or a vector of numbers as action, got {action} of {name}")
    size = int(np.prod(observation.shape))
    limit = spec.max_episode_steps or _NO_LIMIT
    return Arena(spec.id, spec.vector_entry_point is not None, size, outputs, spec.reward_threshold, limit, convert)


def _choice(start: int) -> Callable[[Tensor], np.ndarray]:
    """The largest output is the action."""
    return lambda outputs: outputs.argmax(-1).numpy() + start


def _push(low: np.ndarray, high: np.ndarray) -> Callable[[Tensor], np.ndarray]:
    """tanh, scaled to the bounds; where there are none, the output itself."""
    bounded = np.isfinite(low) & np.isfinite(high)
    middle, half = np.where(bounded, (low + high) / 2, 0.0), np.where(bounded, (high - low) / 2, 1.0)

    def action(outputs: Tensor) -> np.ndarray:
        y = outputs.numpy()
        return (middle + half * np.where(bounded, np.tanh(y), y)).astype(low.dtype)

    return action
