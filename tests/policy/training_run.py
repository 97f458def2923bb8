"""One small training run; as a script it is killed at a given place, or reports the modules it loaded.

python training_run.py MODEL OUTPUT kill-in-step 5
python training_run.py MODEL OUTPUT kill-in-save 6
python training_run.py MODEL OUTPUT count
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_policy import make_examples

from mrpo_pipeline.policy.train import train_policy
from mrpo_pipeline.recipe import Lora, Method, Policy

TRAINING = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "micro_batch_tokens": 60,  # several micro-batches in a step
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_steps": 2,
    "save_total_limit": 1,
    "eval_strategy": "steps",
    "eval_steps": 3,
}
STEPS = 9


def run(
    model: str | Path, output_dir: str | Path, *, resume: bool = False, dropout: float = 0.3, **training
) -> dict[str, float]:
    """Ten pairs, three epochs of three steps (the last of each with two pairs), dropout in the adapter."""
    return train_policy(
        Policy(model=str(model), lora=Lora(r=4, alpha=8, dropout=dropout, target_modules="all-linear")),
        make_examples(10, references=2),
        make_examples(5, seed=3, references=2),
        Method(beta=0.3, sft_weight=0.1),
        TRAINING | training,
        output_dir,
        resume=resume,
    )


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    model, output_dir, mode, *place = sys.argv[1:]
    from mrpo_pipeline.policy.trainer import PreferenceTrainer

    def broken(original, *, when):
        def method(self, *args, **kwargs):
            if self.state.global_step == int(place[0]) and when(self):
                _kill()
            return original(self, *args, **kwargs)

        return method

    if mode == "kill-in-step":
        PreferenceTrainer._micro_step = broken(PreferenceTrainer._micro_step, when=lambda self: self._watch._batches)
    elif mode == "kill-in-save":
        PreferenceTrainer._save_rng_state = broken(PreferenceTrainer._save_rng_state, when=lambda self: True)
    elif mode == "count":
        from transformers import PreTrainedModel

        loaded = []
        original = PreTrainedModel.from_pretrained.__func__

        def counted(cls, name, *args, **kwargs):
            loaded.append(str(name))
            return original(cls, name, *args, **kwargs)

        PreTrainedModel.from_pretrained = classmethod(counted)
        results = run(model, output_dir)
        heavy = [n for n in sys.modules if n.startswith(("mrpo_pipeline.engines", "mrpo_pipeline.cache", "vllm"))]
        print(json.dumps({"loaded": loaded, "modules": heavy, "results": results}))
        return
    run(model, output_dir)


if __name__ == "__main__":
    main()
