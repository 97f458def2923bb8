"""Every loss that TRL has, against TRL's own code on the same numbers, with π̃ as its one reference.

The installed ``DPOTrainer._compute_loss`` and ``CPOTrainer.cpo_loss`` are called with a model that returns the log-probs
of the test.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flat_loss import preference_loss

from mrpo_pipeline.losses.functional import LOSSES

trl = pytest.importorskip("trl", reason="trl is not installed")

PAIRS, LONGEST = 5, 7

# TRL's name, ours, and settings other than the defaults.
SAME: list[tuple[str, str, dict[str, Any]]] = [
    ("sigmoid", "sigmoid", {}),
    ("hinge", "hinge", {}),
    ("ipo", "ipo", {}),
    ("sigmoid_norm", "sigmoid-norm", {}),
    ("robust", "robust", {"label_smoothing": 0.1}),
    ("exo_pair", "exo", {"label_smoothing": 1e-3}),
    ("nca_pair", "nca", {}),
    ("bco_pair", "bco", {"bco_shift": "zero"}),
    ("sppo_hard", "sppo", {}),
    ("aot", "aot", {}),
    ("aot", "aot", {"label_smoothing": 0.2}),
    ("aot_unpaired", "aot-unpaired", {"label_smoothing": 0.2}),
    ("apo_zero", "apo-zero", {}),
    ("apo_down", "apo-down", {}),
    ("discopop", "discopop", {"discopop_tau": 0.07}),
    ("sft", "sft", {}),
]
OF_DIFFERENCE = [row for row in SAME if LOSSES[row[1]].of_difference]
DIVERGENCES: list[dict[str, Any]] = [
    {"f_divergence_type": "forward_kl"},
    {"f_divergence_type": "js_divergence"},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.7},
]


class Batch:
    """Log-probs of both sides' tokens, right-padded as in TRL, and the sums of TRL's reference."""

    def __init__(self, seed: int, *, of_one_length: bool = False) -> None:
        random = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(2, LONGEST + 1, (2 * PAIRS,), generator=random)
        if of_one_length:
            self.lengths[:] = LONGEST
        mask = torch.arange(LONGEST)[None] < self.lengths[:, None]
        self.logps = -4 * torch.rand(2 * PAIRS, LONGEST, generator=random, dtype=torch.float64) * mask
        self.sums = self.logps.sum(dim=1)
        self.reference = self.sums + 3 * torch.randn(2 * PAIRS, generator=random, dtype=torch.float64)
        # Behind a prompt of one token.
        self.mask = torch.cat([torch.zeros(2 * PAIRS, 1), mask], dim=1).long()

    def theirs(self, losses: dict[str, float], beta: float, settings: dict[str, Any], dtype: torch.dtype) -> float:
        logps = self.logps.to(dtype)
        blank = torch.zeros_like(logps)
        given = SimpleNamespace(log_probs=logps, entropy=blank, mean_logits=blank, is_top1=blank.bool())
        usual = {"label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5}
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x),
            aux_loss_enabled=False,
            precompute_ref_logps=True,
            ld_alpha=None,
            use_weighting=False,
            _tp_size=1,
            _total_train_tokens=0,
            _metrics=defaultdict(lambda: defaultdict(list)),
            beta=beta,
            loss_types=list(losses),
            loss_weights=list(losses.values()),
            args=SimpleNamespace(discopop_tau=settings.get("discopop_tau", 0.05)),
            **{key: settings.get(key, value) for key, value in usual.items()},
        )
        reference = self.reference.to(dtype)
        inputs = {
            "input_ids": torch.zeros_like(self.mask),
            "attention_mask": torch.ones_like(self.mask),
            "completion_mask": self.mask,
            "ref_chosen_logps": reference[:PAIRS],
            "ref_rejected_logps": reference[PAIRS:],
        }
        return float(trl.DPOTrainer._compute_loss(trainer, lambda **_: given, inputs, False))

    def ours(self, loss: Any, beta: float, settings: dict[str, Any]) -> float:
        chosen, rejected = self.sums.chunk(2)
        references = self.reference[:, None].chunk(2)
        lengths = self.lengths.chunk(2)
        result = preference_loss(
            chosen, rejected, *references, torch.ones(PAIRS, 1), beta=beta, loss=loss,
            chosen_lengths=lengths[0], rejected_lengths=lengths[1], **settings,
        )  # fmt: skip
        return float(result.losses.mean())


@pytest.mark.parametrize(("theirs", "ours", "settings"), SAME)
@pytest.mark.parametrize("seed", range(3))
def test_a_loss_of_trl_is_trls(theirs: str, ours: str, settings: dict[str, Any], seed: int) -> None:
    # TRL's SFT loss is a mean over the batch's tokens, ours over each completion: the same if all have the same length.
    batch = Batch(seed, of_one_length=ours == "sft")
    expected = batch.theirs({theirs: 1.0}, 0.3, settings, torch.float64)
    assert batch.ours(ours, 0.3, settings) == pytest.approx(expected, rel=0, abs=1e-6)
    assert batch.ours(theirs, 0.3, settings) == batch.ours(ours, 0.3, settings), "TRL's spelling is taken"


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(("theirs", "ours", "settings"), OF_DIFFERENCE)
def test_a_divergence_of_trl_is_trls(
    theirs: str, ours: str, settings: dict[str, Any], divergence: dict[str, Any]
) -> None:
    batch = Batch(1, of_one_length=ours == "sft")
    # TRL casts this one to float32, and knows no float64.
    dtype = torch.float32 if divergence["f_divergence_type"] == "alpha_divergence" else torch.float64
    expected = batch.theirs({theirs: 1.0}, 0.05, settings | divergence, dtype)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-6 * max(1, abs(expected))
    assert batch.ours(ours, 0.05, settings | divergence) == pytest.approx(expected, rel=0, abs=tolerance)


def test_a_sum_of_trl_is_trls() -> None:
    batch = Batch(2, of_one_length=True)
    settings = {"bco_shift": "zero"}
    expected = batch.theirs({"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}, 0.1, settings, torch.float64)
    assert batch.ours({"sigmoid": 0.8, "bco": 0.2, "sft": 1.0}, 0.1, settings) == pytest.approx(expected, abs=1e-6)
    assert batch.ours("mpo", 0.1, settings) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.6])
def test_simpo_is_trls(gamma: float) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo", reason="this trl has no CPOTrainer")
    batch = Batch(3)
    means = (batch.sums / batch.lengths).chunk(2)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"),
        beta=2.0,
        loss_type="simpo",
        simpo_gamma=gamma,
        label_smoothing=0.0,
        alpha=0.0,
    )
    losses, *_ = cpo.CPOTrainer.cpo_loss(trainer, *means)
    assert batch.ours("simpo", 2.0, {"simpo_gamma": gamma}) == pytest.approx(float(losses.mean()), rel=0, abs=1e-6)


def test_every_loss_is_trls_or_is_known_to_be_our_own() -> None:
    from trl import DPOConfig

    told = DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    theirs = set(told.split("values are: ")[1].split(". If")[0].replace("`", "").replace("'", "").split(", "))
    assert theirs == {name for name, _, _ in SAME}, "TRL has other losses than those that are compared here"
    own = {"minor-dpo", "hypo", "hypo-each", "anchored", "modpo", "simpo"}
    assert LOSSES.keys() == {name for _, name, _ in SAME} | own
