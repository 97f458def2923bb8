"""The process in which vLLM runs: `python -m mrpo_pipeline.engines.vllm.process FD`, started by `engines.vllm`.

A process of its own gives all memory back when it ends, works whatever the caller's `__main__` looks like, and keeps
vLLM's environment variables, logging and signal handling away from the caller. It reads requests from the socket FD and
asks for more before it runs dry, so that the scheduler always has a full step to choose from.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrpo_pipeline.engines.base import refuse_unknown
from mrpo_pipeline.engines.vllm.adapters import UnsupportedError, adapt
from mrpo_pipeline.engines.vllm.arguments import engine_arguments, inspect_here
from mrpo_pipeline.engines.vllm.errors import plain
from mrpo_pipeline.engines.vllm.ipc import receive, send, split
from mrpo_pipeline.engines.vllm.logprobs import Answers, Dense, Listed, MisalignedError
from mrpo_pipeline.engines.vllm.options import checked, vllm_quantization
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.context_length import context_length
from mrpo_pipeline.models.merging import probe_ids

# How far two ways through one model may be apart, mean over the tokens of a probe, in nats. A part of the model left out, or
# a row too far, is further.
_SAME = {"float32": 0.01, "float64": 0.01}
_SAME_IN_16_BIT = 0.25


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that vLLM works on: (T,) ids, of which the last `count` are the completion, and how it was asked."""

    index: int
    ids: NDArray[np.int32]
    count: int
    answers: Answers

    def read(self, output: Any) -> NDArray[np.float32]:
        return self.answers.read(output, self.ids[len(self.ids) - self.count :])


class Scorer:
    """One vLLM engine, its requests in flight, and how prompt log-probs are asked for and read."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # vllm imports torch and much more: about ten seconds.
        from transformers import AutoConfig
        from vllm import EngineArgs, LLMEngine, ModelRegistry, SamplingParams
        from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

        remote_code = settings["trust_remote_code"]
        config = AutoConfig.from_pretrained(
            settings["model"], revision=settings["revision"], trust_remote_code=remote_code
        )
        known = [field.name for field in fields(EngineArgs)]
        refuse_unknown(settings["options"], known, "vllm")
        options = checked(settings["options"], EngineArgs)
        names = config.architectures or []
        if "model_impl" not in options and not set(names) & set(ModelRegistry.get_supported_archs()):
            raise UnsupportedError(f"vLLM has no implementation of {', '.join(names) or 'this architecture'}")
        accepted = frozenset(SamplingParams.__struct_fields__)
        if options.get("enable_prefix_caching") and "skip_reading_prefix_cache" not in accepted:
            raise UserError(
                "scoring.enable_prefix_caching: the vLLM installed cannot keep prompt log-probs from reading the cache, and gives "
                "wrong ones for what it reads. Leave it out."
            )
        inspect_here(ModelRegistry, names)
        self.context = context_length(config)
        settings = settings | {"quantization": vllm_quantization(settings["quantization"], QUANTIZATION_METHODS)}
        adapted = adapt(settings, config)
        self.adapter = adapted.request
        settings = settings | {"model": adapted.model, "revision": adapted.revision}
        chosen, told = engine_arguments(settings, options, config, self.context)
        self.notices = [*adapted.notices, *told]
        arguments = chosen | adapted.arguments | options
        self.engine = LLMEngine.from_engine_args(
            EngineArgs(**{name: value for name, value in arguments.items() if name in known})
        )
        vllm_config = self.engine.vllm_config
        self.max_model_len = int(vllm_config.model_config.max_model_len)
        self.vocab_size = int(vllm_config.model_config.get_vocab_size())
        self.window_tokens = 4 * int(vllm_config.scheduler_config.max_num_batched_tokens)
        self.window_requests = 2 * int(vllm_config.scheduler_config.max_num_seqs)
        # One token is sampled whatever is asked, greedily: the cheapest there is.
        self._asked: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "detokenize": False, "ignore_eos": True}
        if "skip_reading_prefix_cache" in accepted:
            self._asked["skip_reading_prefix_cache"] = True
        self._parameters: Callable[..., Any] = SamplingParams
        self.in_flight: dict[str, Asked] = {}
        self.tokens_in_flight = 0
        self._added = 0
        self.usual: Answers = Listed(accepted)
        self.answers: Answers = self.usual
        self._same = _SAME.get(settings["dtype"], _SAME_IN_16_BIT)
        short = probe_ids(adapted.vocab_size or config.get_text_config().vocab_size)
        self._try_out(short, adapted.expected, Dense.known(accepted))

    def wants_more(self) -> bool:
        return self.tokens_in_flight < self.window_tokens and len(self.in_flight) < self.window_requests

    def add(self, index: int, ids: NDArray[np.int32], count: int) -> None:
        """Ask for the log-probs of the last `count` of (T,) ids. vLLM raises where it refuses the request."""
        self._added += 1
        name = str(self._added)
        asked = self._parameters(**self._asked, **self.answers.asked(ids, count))
        self.engine.add_request(name, {"prompt_token_ids": ids.tolist()}, asked, lora_request=self.adapter)
        self.in_flight[name] = Asked(index, ids, count, self.answers)
        self.tokens_in_flight += len(ids)

    def step(self) -> list[tuple[int, NDArray[np.float32]]]:
        """Run the engine once; what has finished, as (index, log-probs).

        A dense answer that does not fit what was sent is asked for again in the usual way, as all that follows is.

        Raises:
            RunError: a usual answer that does not fit.
        """
        done = []
        for asked, output in self._finished():
            try:
                done.append((asked.index, asked.read(output)))
            except MisalignedError as error:
                if asked.answers is self.usual:
                    raise RunError(
                        f"request {asked.index}: vLLM's prompt log-probs do not line up with what was sent: {error}."
                    ) from None
                self._leave_dense(str(error))
                self.add(asked.index, asked.ids, asked.count)
        return done

    def _finished(self) -> list[tuple[Asked, Any]]:
        finished = [(self.in_flight.pop(one.request_id), one) for one in self.engine.step() if one.finished]
        self.tokens_in_flight -= sum(len(asked.ids) for asked, _ in finished)
        return finished

    def _try_out(self, ids: NDArray[np.int32], expected: list[float] | None, dense: bool) -> None:
        """Score a short text: what fails, fails at the start; and the dense way is taken where it gives the same numbers.

        Args:
            ids: (T,) the text. expected: (T - 1,) its log-probs by transformers, where the adapter was merged.
            dense: whether this vLLM has the words for the dense way.

        Raises:
            UnsupportedError: vLLM leaves out part of what was merged.
        """
        self._add_text(ids)
        try:
            usual = self._text_answered()
        except MisalignedError as error:
            raise RunError(f"vLLM's prompt log-probs of a short text cannot be right: {error}.") from None
        if expected is not None and (apart := float(np.abs(usual - np.array(expected)).mean())) > self._same:
            raise UnsupportedError(
                f"with the adapter merged, vLLM and transformers are {apart:.2g} nats per token apart on a short text: vLLM "
                "leaves part of the merged model out (a head that differs from the embeddings, say)"
            )
        if not dense:
            return
        self.answers = Dense()
        try:
            self._add_text(ids)
        except Exception:  # refused, by a class that differs between versions: the model runner in use does not do it
            self.answers = self.usual
            return
        try:
            apart = float(np.abs(self._text_answered() - usual).mean())
        except MisalignedError as error:
            self._leave_dense(str(error))
        else:
            if apart > self._same:
                self._leave_dense(f"it is {apart:.2g} nats per token away from the usual answer")

    def _add_text(self, ids: NDArray[np.int32]) -> None:
        """The text and its first half: two requests in one step, as later."""
        self.add(0, ids, len(ids) - 1)
        self.add(1, ids[: len(ids) // 2], len(ids) // 2 - 1)

    def _text_answered(self) -> NDArray[np.float32]:
        """(T - 1,) log-probs of the text. Raises MisalignedError, also where its half got other ones."""
        found: dict[int, NDArray[np.float32]] = {}
        while self.in_flight:
            found |= {asked.index: asked.read(output) for asked, output in self._finished()}
        whole, half = found[0], found[1]
        apart = float(np.abs(whole[: len(half)] - half).mean())
        if not apart <= self._same:
            raise MisalignedError(
                f"those of its first half, scored beside it, are {apart:.2g} nats per token away, as where a model sees what follows "
                "(a masked or bidirectional one) or log-probs are given to other tokens than theirs"
            )
        return whole

    def _leave_dense(self, why: str) -> None:
        if self.answers is not self.usual:
            self.answers = self.usual
            self.notices.append(f"vLLM's dense prompt log-probs are not used: {why}")


def serve(connection: Connection) -> None:
    """Build the engine from the first message, then score blocks of requests until the other side is gone."""
    settings, _ = receive(connection)
    try:
        scorer = Scorer(settings)
    finally:  # vLLM has read the weights, or will not
        if settings["merged_folder"] is not None:
            shutil.rmtree(settings["merged_folder"], ignore_errors=True)
    ready = {
        "event": "ready",
        "context_length": scorer.context,
        "max_model_len": scorer.max_model_len,
        "vocab_size": scorer.vocab_size,
        "dense": scorer.answers is not scorer.usual,
        "notices": scorer.notices,
    }
    send(connection, ready)
    told = len(scorer.notices)
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
            if len(scorer.notices) > told:
                header["notices"], told = scorer.notices[told:], len(scorer.notices)
            send(connection, header, np.concatenate([logps for _, logps in finished]))
        if last and not scorer.in_flight:
            send(connection, {"event": "done"})
            asked = True
            last = False


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    threading.Thread(target=_end_with_the_caller, args=(connection.fileno(),), daemon=True).start()
    code = 0
    try:
        serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the caller closed its end, or is gone
        pass
    except Exception as error:
        code = 1
        kind = {UserError: "user", UnsupportedError: "unsupported"}.get(type(error), "run")
        message = str(error) if kind != "run" else plain(str(error)) or type(error).__name__
        if kind == "run" and not isinstance(error, RunError):
            traceback.print_exc()
            sys.stderr.flush()
        with suppress(OSError):
            send(connection, {"event": "error", "kind": kind, "message": message})
    sys.stdout.flush()
    sys.stderr.flush()
    _end_engine_processes()
    # Tearing down torch and vLLM takes seconds and gives nothing back that the end of the process does not.
    os._exit(code)


def _end_with_the_caller(descriptor: int) -> None:
    """End this process when the other side of the socket is gone: loading takes minutes, and nobody waits for it then."""
    hang_up = select.poll()
    hang_up.register(descriptor, 0)
    hang_up.poll()
    _end_engine_processes()
    os._exit(0)


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
