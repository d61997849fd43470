"""Rewards: what a policy's latency and answer are worth.

Source: InstaNAS, arXiv 1811.10201, sections 3.3 and 3.4, and its official code.
"""

from __future__ import annotations

from keras import ops

from instanas_tf.errors import InputError


def window(l_max_ms, l_base_ms, l_min_ms, progress, *, start=0.7, end=0.5, guard=0.5):
    """The published window of latencies that earn a reward.

    ub falls from start·L_max to end·L_base; lb = L_min, but never above guard·ub: where a
    full convolution is slower than a depthwise one, L_min can exceed ub.

    Args:
        l_max_ms: latency with every op on, in ms.
        l_base_ms: latency of the reference op in every cell, in ms.
        l_min_ms: latency of the default ops alone, in ms.
        progress: of the search, 0 to 1.
        start: share of `l_max_ms` at progress 0.
        end: share of `l_base_ms` at progress 1.
        guard: κ, largest share of ub that lb may be; below 1.

    Returns:
        (lower_ms, upper_ms).

    Raises:
        InputError: the window is empty.
    """
    upper_ms = start * l_max_ms - (start * l_max_ms - end * l_base_ms) * progress
    lower_ms = min(l_min_ms, guard * upper_ms)
    if not 0.0 <= lower_ms < upper_ms:
        raise InputError(
            f"the latency window ({lower_ms:.4g}, {upper_ms:.4g}) ms is empty; set "
            "config.search.published.lower_guard below 1 and upper_start and upper_end above 0"
        )
    return lower_ms, upper_ms


def latency_reward(latency_ms, lower_ms, upper_ms):
    """A parabola over the window: 1 in the middle, 0 at and outside its ends.

    r = max(0, (ub - lat)(lat - lb) / ((ub - lb)² / 4))

    Args:
        latency_ms: [B], in ms.
        lower_ms: lb; below `upper_ms` (see `window`).
        upper_ms: ub.

    Returns:
        [B], 0 to 1.

    Raises:
        ValueError: the ends are numbers and lower is not below upper.
    """
    if isinstance(lower_ms, (int, float)) and isinstance(upper_ms, (int, float)):
        if not lower_ms < upper_ms:
            raise ValueError(
                "`lower_ms` must be below `upper_ms`. "
                f"Received: lower_ms={lower_ms}, upper_ms={upper_ms}"
            )
    height = (upper_ms - lower_ms) ** 2 / 4.0
    return ops.maximum(0.0, (upper_ms - latency_ms) * (latency_ms - lower_ms) / height)


def gated_reward(correct, latency_value, *, positive=30.0, negative=0.0, gamma=1.0):
    """The published reward: latency counts only where the answer is right.

    R = w_pos · r_lat^γ if the prediction is right, else w_neg

    Args:
        correct: 0/1 [B].
        latency_value: r_lat, [B].
        positive: w_pos.
        negative: w_neg.
        gamma: γ.

    Returns:
        [B].
    """
    return correct * positive * ops.power(latency_value, gamma) + (1.0 - correct) * negative


def advantage(sampled_reward, greedy_reward):
    """Self-critical baseline: A = R(a) - R(greedy), without gradient.

    Args:
        sampled_reward: [B].
        greedy_reward: [B].

    Returns:
        [B].
    """
    return ops.stop_gradient(sampled_reward - greedy_reward)


def policy_gradient_loss(log_probability, advantages):
    """REINFORCE: mean over images of -A log p'(a).

    Args:
        log_probability: Σ log p'(a), [B].
        advantages: [B], no gradient flows into them.

    Returns:
        Scalar.
    """
    return -ops.mean(ops.stop_gradient(advantages) * log_probability)


def next_price(price, latency_ratio, target_ratio, rate):
    """One step of dual ascent on the price of latency: λ ← max(0, λ + rate (lat - target)).

    Args:
        price: λ, scalar.
        latency_ratio: mean latency of the greedy policies, controller included, as a share
            of the reference network's.
        target_ratio: the mean latency wanted, likewise.
        rate: step size.

    Returns:
        The next λ, scalar.
    """
    return ops.maximum(0.0, price + rate * (latency_ratio - target_ratio))
