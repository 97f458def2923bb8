"""A vLLM engine that scores: requests in, log-probs of their completions out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrpo_pipeline.engines.base import refuse_unknown
from mrpo_pipeline.engines.vllm.adapters import UnsupportedError, adapt
from mrpo_pipeline.engines.vllm.arguments import caching_if_dense, engine_arguments, inspect_here
from mrpo_pipeline.engines.vllm.logprobs import Answers, Dense, Listed, MisalignedError, UnwrittenError
from mrpo_pipeline.engines.vllm.options import checked, vllm_quantization
from mrpo_pipeline.engines.vllm.request_trial import SAME, SAME_IN_16_BIT, try_out, try_prefix_cache
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.context_length import context_length
from mrpo_pipeline.models.merging import probe_ids


@dataclass(frozen=True, slots=True)
class Asked:
    """A request in flight: (T,) ids, of which the last `count` are the completion, and how it was asked."""

    index: int
    ids: NDArray[np.int32]
    count: int
    answers: Answers

    def read(self, output: Any) -> NDArray[np.float32]:
        return self.answers.read(output, self.ids[len(self.ids) - self.count :])


class Scorer:
    """One vLLM engine, its requests in flight, and how prompt log-probs are asked for and read.

    Attributes:
        usual: the way to ask that every vLLM has. answers: the way in use (see `trial`).
    """

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
        arguments = {k: v for k, v in (chosen | adapted.arguments | options).items() if k in known}
        if Dense.may_read_cache(accepted) and "enable_prefix_caching" not in options:
            arguments["enable_prefix_caching"] = caching_if_dense(EngineArgs, arguments)
        self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        vllm_config = self.engine.vllm_config
        self.max_model_len = int(vllm_config.model_config.max_model_len)
        self.vocab_size = int(vllm_config.model_config.get_vocab_size())
        self.window_tokens = 4 * int(vllm_config.scheduler_config.max_num_batched_tokens)
        self.window_requests = 2 * int(vllm_config.scheduler_config.max_num_seqs)
        # vLLM samples at least one token; greedy sampling is the cheapest.
        self._asked: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "detokenize": False, "ignore_eos": True}
        if "skip_reading_prefix_cache" in accepted:
            self._asked["skip_reading_prefix_cache"] = True
        self._parameters: Callable[..., Any] = SamplingParams
        self.in_flight: dict[str, Asked] = {}
        self.tokens_in_flight = 0
        self._added = 0
        self.usual: Answers = Listed(accepted)
        self.answers: Answers = self.usual
        self.same = SAME.get(settings["dtype"], SAME_IN_16_BIT)
        short = probe_ids(adapted.vocab_size or config.get_text_config().vocab_size)
        try_out(self, short, adapted.expected, Dense.known(accepted))
        cache = vllm_config.cache_config
        if Dense.may_read_cache(accepted) and cache.enable_prefix_caching and isinstance(self.answers, Dense):
            try_prefix_cache(self, short, int(cache.block_size))

    @property
    def reads_cache(self) -> bool:
        """Whether prompts are read from the prefix cache, so that each is computed once for its completions."""
        return isinstance(self.answers, Dense) and self.answers.reads_cache

    def wants_more(self) -> bool:
        return self.tokens_in_flight < self.window_tokens and len(self.in_flight) < self.window_requests

    def add(self, index: int, ids: NDArray[np.int32], count: int, answers: Answers | None = None) -> None:
        """Ask for the log-probs of the last `count` of (T,) ids, in the way in use. vLLM raises where it refuses the request."""
        answers = answers or self.answers
        self._added += 1
        name = str(self._added)
        asked = self._parameters(**self._asked | answers.asked(ids, count))
        self.engine.add_request(name, {"prompt_token_ids": ids.tolist()}, asked, lora_request=self.adapter)
        self.in_flight[name] = Asked(index, ids, count, answers)
        self.tokens_in_flight += len(ids)

    def step(self) -> list[tuple[int, NDArray[np.float32]]]:
        """Run the engine once; returns (index, (C,) log-probs in nats) of each finished request.

        A request with more than its prompt in the prefix cache is repeated without the cache. After a dense answer that does
        not match the request, this request and all later ones are asked in the usual way.

        Raises:
            RunError: a usual answer that does not match.
        """
        done = []
        for asked, output in self.finished():
            try:
                done.append((asked.index, asked.read(output)))
            except UnwrittenError:
                self.add(asked.index, asked.ids, asked.count, Dense() if self.reads_cache else None)
            except MisalignedError as error:
                if asked.answers is self.usual:
                    raise RunError(
                        f"request {asked.index}: vLLM's prompt log-probs do not line up with what was sent: {error}."
                    ) from None
                self.leave_dense(str(error))
                self.add(asked.index, asked.ids, asked.count)
        return done

    def finished(self) -> list[tuple[Asked, Any]]:
        """Run the engine once; returns the finished requests, with vLLM's `RequestOutput`."""
        finished = [(self.in_flight.pop(one.request_id), one) for one in self.engine.step() if one.finished]
        self.tokens_in_flight -= sum(len(asked.ids) for asked, _ in finished)
        return finished

    def leave_dense(self, why: str) -> None:
        if self.answers is not self.usual:
            self.answers = self.usual
            self.notices.append(f"vLLM's dense prompt log-probs are not used: {why}")
