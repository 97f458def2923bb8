"""The process in which vLLM runs: `python -m mrpo_pipeline.engines.vllm_process FD`, started by `engines.vllm`.

A process of its own gives all memory back when it ends, works whatever the caller's `__main__` looks like, and keeps
vLLM's environment variables, logging and signal handling away from the caller. It reads requests from the socket FD and
asks for more before it runs dry, so that the scheduler always has a full step to choose from.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrpo_pipeline.engines.base import refuse_unknown
from mrpo_pipeline.engines.context import context_length
from mrpo_pipeline.engines.messages import receive, send, split
from mrpo_pipeline.engines.vllm_arguments import UnsupportedError, engine_arguments, inspect_here, lora
from mrpo_pipeline.errors import RunError, UserError


class Scorer:
    """One vLLM engine, its requests in flight, and how prompt log-probs are asked for and read."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # vllm imports torch and much more: about ten seconds.
        from transformers import AutoConfig
        from vllm import EngineArgs, LLMEngine, ModelRegistry, SamplingParams

        remote_code = settings["trust_remote_code"]
        config = AutoConfig.from_pretrained(
            settings["model"], revision=settings["revision"], trust_remote_code=remote_code
        )
        options = settings["options"]
        names = config.architectures or []
        if "model_impl" not in options and not set(names) & set(ModelRegistry.get_supported_archs()):
            raise UnsupportedError(f"vLLM has no implementation of {', '.join(names) or 'this architecture'}")
        known = [field.name for field in fields(EngineArgs)]
        refuse_unknown(options, known, "vllm")
        inspect_here(ModelRegistry, names)
        self.context = context_length(config)
        chosen, self.notices = engine_arguments(settings, config, self.context)
        adapter, for_adapter = lora(settings["adapter"])
        arguments = chosen | for_adapter | options
        self.engine = LLMEngine.from_engine_args(
            EngineArgs(**{name: value for name, value in arguments.items() if name in known})
        )
        vllm_config = self.engine.vllm_config
        self.max_model_len = int(vllm_config.model_config.max_model_len)
        self.vocab_size = int(vllm_config.model_config.get_vocab_size())
        self.window_tokens = 4 * int(vllm_config.scheduler_config.max_num_batched_tokens)
        self.window_requests = 2 * int(vllm_config.scheduler_config.max_num_seqs)
        self.adapter = adapter
        accepted = set(SamplingParams.__struct_fields__)
        # One token is sampled whatever is asked, greedily: the cheapest there is.
        self._asked: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "detokenize": False, "ignore_eos": True}
        if "skip_reading_prefix_cache" in accepted:
            self._asked["skip_reading_prefix_cache"] = True
        # A dense answer over the completion only spares the prompt's share of the head.
        self.dense = {"prompt_logprob_token_ids", "prompt_logprob_start"} <= accepted and bool(
            getattr(vllm_config, "use_v2_model_runner", False)
        )
        if not self.dense:
            self._asked["prompt_logprobs"] = 0
            if "flat_logprobs" in accepted:
                self._asked["flat_logprobs"] = True
        self._parameters: Callable[..., Any] = SamplingParams
        self.in_flight: dict[str, tuple[int, NDArray[np.int32]]] = {}
        self.tokens_in_flight = 0
        self._added = 0

    def wants_more(self) -> bool:
        return self.tokens_in_flight < self.window_tokens and len(self.in_flight) < self.window_requests

    def add(self, index: int, ids: NDArray[np.int32], completion_tokens: int) -> None:
        completion = ids[len(ids) - completion_tokens :]
        asked = dict(self._asked)
        if self.dense:
            asked["prompt_logprob_token_ids"] = completion[:, None]
            asked["prompt_logprob_start"] = len(ids) - completion_tokens - 1
        self._added += 1
        name = str(self._added)
        self.in_flight[name] = (index, completion)
        self.tokens_in_flight += len(ids)
        prompt = {"prompt_token_ids": ids.tolist()}
        self.engine.add_request(name, prompt, self._parameters(**asked), lora_request=self.adapter)

    def step(self) -> list[tuple[int, NDArray[np.float32]]]:
        """Run the engine once; what has finished, as (index, log-probs)."""
        done = []
        for output in self.engine.step():
            if not output.finished:
                continue
            index, completion = self.in_flight.pop(output.request_id)
            self.tokens_in_flight -= len(output.prompt_token_ids)
            done.append((index, self._read(index, output, completion)))
        return done

    def _read(self, index: int, output: Any, completion: NDArray[np.int32]) -> NDArray[np.float32]:
        count = len(completion)
        if self.dense:
            scores = output.prompt_token_id_logprobs
            if scores is None or scores.shape != (count, 1):
                shape = None if scores is None else scores.shape
                raise RunError(f"request {index}: vLLM answered with scores of shape {shape} for {count} tokens.")
            return np.asarray(scores[:, 0], dtype=np.float32)
        answer = output.prompt_logprobs
        ids = getattr(answer, "token_ids", None)
        if ids is not None:  # FlatLogprobs: one entry a position, none for the first
            if len(ids) != len(answer) - 1 or not np.array_equal(ids[-count:], completion):
                raise RunError(
                    f"request {index}: vLLM's prompt log-probs do not line up with the tokens that were sent "
                    f"({len(ids)} entries for {len(answer)} positions)."
                )
            return np.asarray(answer.logprobs[-count:], dtype=np.float32)
        rows = answer[-count:]
        return np.asarray(
            [row[token].logprob for row, token in zip(rows, completion.tolist(), strict=True)], np.float32
        )


def serve(connection: Connection) -> None:
    """Build the engine from the first message, then score blocks of requests until the other side is gone."""
    settings, _ = receive(connection)
    scorer = Scorer(settings)
    send(
        connection,
        {
            "event": "ready",
            "context_length": scorer.context,
            "max_model_len": scorer.max_model_len,
            "vocab_size": scorer.vocab_size,
            "dense": scorer.dense,
            "notices": scorer.notices,
        },
    )
    asked = True  # the parent opens a run by sending its first block unasked
    last = False
    while True:
        while not scorer.in_flight or connection.poll():
            header, numbers = receive(connection)
            asked, last = False, header["last"]
            for index, ids, count in zip(
                header["index"], split(numbers, header["length"]), header["count"], strict=True
            ):
                scorer.add(index, ids, count)
            if last and not scorer.in_flight:
                send(connection, {"event": "done"})
        if not last and not asked and scorer.wants_more():
            send(connection, {"event": "more"})
            asked = True
        finished = scorer.step()
        if finished:
            header = {"event": "results", "index": [i for i, _ in finished], "length": [len(x) for _, x in finished]}
            send(connection, header, np.concatenate([logps for _, logps in finished]))
        if last and not scorer.in_flight:
            send(connection, {"event": "done"})
            asked = True
            last = False


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    code = 0
    try:
        serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the caller closed its end, or is gone
        pass
    except Exception as error:
        code = 1
        kind = {UserError: "user", UnsupportedError: "unsupported"}.get(type(error), "run")
        message = str(error) if kind != "run" else f"{type(error).__name__}: {error}"
        if kind == "run":
            traceback.print_exc()
            sys.stderr.flush()
        with suppress(OSError):
            send(connection, {"event": "error", "kind": kind, "message": message})
    sys.stdout.flush()
    sys.stderr.flush()
    _end_engine_processes()
    # Tearing down torch and vLLM takes seconds and gives nothing back that the end of the process does not.
    os._exit(code)


def _end_engine_processes() -> None:
    """Engine core and workers, where vLLM runs them apart (GPUs): they are children of this process."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        child.terminate()
    _, alive = psutil.wait_procs(children, timeout=10)
    for child in alive:
        child.kill()


if __name__ == "__main__":
    main()
