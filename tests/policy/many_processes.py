"""Script that test_processes starts under torchrun: small runs, one after another, or one in which a process is killed.

torchrun --nproc-per-node 2 many_processes.py MODEL FOLDER whole | killed | resumed
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from pathlib import Path

import step_scoped_run
from training_run import run

# One pair at a time in each of two processes is the same as two at a time in one.
TWO = {"per_device_train_batch_size": 1}
# State carried from step to step must be the same on every process.
CARRYING = ("sliding-window", "thompson", "mpo")
SHARDED = {"fsdp": True, "save_total_limit": None}


def main() -> None:
    faulthandler.dump_traceback_later(90, exit=True)
    model, folder, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    from mrpo_pipeline.policy.trainer import PreferenceTrainer

    if mode == "whole":
        run(model, folder / "ddp", dropout=0.0, **TWO)
        run(model, folder / "dropout", **TWO)
        for kind in CARRYING:
            step_scoped_run.run(model, folder / kind, kind, dropout=0.0, max_steps=4, **TWO)
        place = PreferenceTrainer.save_model

        def save_model(self, *args, **kwargs):
            # Embeddings and head stay gathered after a forward pass, as in accelerate.
            layers = [p for name, p in self.model.named_parameters() if ".layers." in name]
            sizes = [[p.numel(), p.to_local().numel()] for p in layers]
            here = sum(local for _, local in sizes) / sum(whole for whole, _ in sizes)
            (folder / f"share-{self.args.process_index}.json").write_text(json.dumps(here))
            return place(self, *args, **kwargs)

        PreferenceTrainer.save_model = save_model
        run(model, folder / "fsdp", dropout=0.0, **TWO, **SHARDED)
    elif mode == "killed":
        original = PreferenceTrainer._micro_step

        def micro_step(self, *args, **kwargs):
            if self.state.global_step == 5 and self.args.process_index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, *args, **kwargs)

        PreferenceTrainer._micro_step = micro_step
        from mrpo_pipeline.errors import RunError

        try:
            run(model, folder / "killed", **TWO)
        except RunError as error:
            (folder / "told.txt").write_text(str(error))
            raise SystemExit(1) from None
    else:
        run(model, folder / "killed", resume=True, **TWO)
        run(model, folder / "fsdp", resume=True, dropout=0.0, **TWO, **SHARDED)


if __name__ == "__main__":
    main()
