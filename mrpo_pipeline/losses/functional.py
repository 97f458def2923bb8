"""The shape of each preference loss: log-ratios u = ℓ_θ − log π̃ in, losses out, every argument (B, R) and float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid(z: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """−(1 − s)·log σ(z) − s·log σ(−z) (arXiv 2305.18290; s: conservative DPO)."""
    losses = -F.logsigmoid(z)
    return losses if not label_smoothing else (1 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-z)


def hinge(z: Tensor) -> Tensor:
    """max(0, 1 − z) (SLiC, arXiv 2305.10425)."""
    return torch.relu(1 - z)


def ipo(mean_chosen: Tensor, mean_rejected: Tensor, beta: float) -> Tensor:
    """(z/β − 1/(2β))², z/β from means per policy token as in TRL (arXiv 2310.12036, eq. 17)."""
    return (mean_chosen - mean_rejected - 1 / (2 * beta)) ** 2


def minor_dpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """−log σ(β·[u_w − max(0, u_l)]) (MinorDPO, arXiv 2408.09834).

    Once the policy likes the rejected completion less than the reference does, it is pushed down no further.
    """
    return -F.logsigmoid(beta * (chosen - torch.relu(rejected)))


def quality(chosen: Tensor, rejected: Tensor, beta: float, shift: float) -> Tensor:
    """−log σ(β·u_w − δ) − log σ(−(β·u_l − δ)): each completion on its own, good or bad (BCO, arXiv 2404.04656).

    Args:
        shift: δ, the running mean of the rewards.
    """
    return -F.logsigmoid(beta * chosen - shift) - F.logsigmoid(shift - beta * rejected)


def mpo(
    chosen: Tensor, rejected: Tensor, beta: float, shift: float, preference: float, quality_weight: float
) -> Tensor:
    """Preference and quality terms of MPO (arXiv 2411.10442), weighted; its third term is the SFT loss, added elsewhere."""
    terms = preference * sigmoid(beta * (chosen - rejected))
    return terms + quality_weight * quality(chosen, rejected, beta, shift)


def modpo(z: Tensor, margins: Tensor, first: float) -> Tensor:
    """−log σ((1/w_1)·[z − Σ_{j≥2} w_j·(r_j(y_w) − r_j(y_l))]) (MODPO, arXiv 2310.03708).

    Args:
        margins: (B, 1), the sum over the other objectives. first: w_1, the preference's own weight, above 0.
    """
    return -F.logsigmoid((z - margins) / first)
