"""The engine of a served reference: a bounded number of concurrent requests to a running vLLM, and a probe that identifies the model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from mrpo_pipeline.engines.base import LogProbs, ScoringRequest, TokenIds, check_finite, check_requests, longest_first
from mrpo_pipeline.engines.served.answers import Completions, Dense, Generate, MisreadError, Way
from mrpo_pipeline.engines.served.client import Client, LostError, RefusedError
from mrpo_pipeline.engines.served.precision import apart, computes_in_16_bits, is_distribution
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.source import AS_SERVED, ModelSource

# Nats per token, on average, within which two answers to one text are of one model: a server batches a text with other requests,
# uses other kernels for other batches, and may have another GPU after a restart. Engines differ by 0.03-0.04 in bfloat16 and by at
# most 0.002 in float32.
SAME, SAME_IN_16_BITS = 5e-3, 5e-2
_ANY_ID = 2**31 - 1  # the server alone knows its vocabulary, and refuses what lies outside
_ROUTES: tuple[type[Completions], ...] = (Generate, Completions)


class ServedEngine:
    """See `Engine`. The way to ask the server is found by trying it, never by its version.

    Attributes:
        model: the model's name as served. root: what the server reports to have loaded; None if it does not report it.
        texts: the probe's. probe: their log-probs at the start.
        tolerance: mean difference in nats per token by which later log-probs of the probe may differ.
    """

    name = "served"
    dtype = AS_SERVED

    def __init__(self, source: ModelSource, texts: Sequence[ScoringRequest]) -> None:
        """
        Args:
            source: the reference; it has a server.
            texts: the probe's, in the reference's token ids; the first has four tokens or more.

        Raises:
            UserError: no server answers, or not as vLLM; or it does not know the model or the key.
        """
        assert source.served is not None
        self._server = source.served
        self._name = source.name
        self.texts = list(texts)
        self._client = Client(source.name, self._server)
        self._asked_again = threading.Lock()
        self.notices: list[str] = []
        try:
            card = _choose(self._client, source)
            self.model, self.root = str(card["id"]), card.get("root")
            length = card.get("max_model_len")
            self.context_length: int | None = length if isinstance(length, int) and length > 0 else None
            self._way, coarse = self._try_out()
            self.probe = self._answers()
        except BaseException:
            self._client.close()
            raise
        self._known_losses = self._client.losses
        self.tolerance = SAME_IN_16_BITS if coarse else SAME
        self.notices.append(
            f"{source.name}: {self.model} at {self._server.address}, by POST {self._way.route}, {self._server.concurrency} completions "
            "at once"
        )

    def score(self, requests: Sequence[ScoringRequest]) -> Iterator[tuple[int, LogProbs]]:
        """See `Engine.score`. When the server is lost, requests in flight are awaited and their results yielded.

        Raises:
            UserError: as `Engine.score`, and if another model answers after the server was down.
        """
        check_requests(requests, self.context_length, _ANY_ID)
        for index, logps in self._each(requests, self._scored):
            check_finite(index, requests[index], logps)
            yield index, logps

    def confirm(self) -> None:
        """Score the probe's texts again.

        Raises:
            UserError: the server gives other log-probs than at the start.
            RunError: it does not answer.
        """
        far = apart(self.probe, self._answers())
        if not far <= self.tolerance:
            raise self._client.user_error(
                f"gives other log-probs than when this run began ({far:.2g} nats a token apart on fixed texts, {self.tolerance:g} "
                f"expected at most): another model is served as {self.model} now. What it gave since the last shard was not cached. "
                f"Serve the first model again, or give this one another name under `references:`"
            )

    @property
    def address(self) -> str:
        return self._server.address

    def versions(self) -> dict[str, str]:
        """The server's version, if it reports one, and the model that it reports to have loaded."""
        found = {"served model": self.model}
        if isinstance(self.root, str):
            found["loaded from"] = self._client.plain(self.root)
        with suppress(LostError, RefusedError, UserError, KeyError, TypeError):
            found["vllm (the server's)"] = self._client.plain(str(self._client.once("GET", "/version")["version"]))
        return found

    def close(self) -> None:
        self._client.close()

    def _try_out(self) -> tuple[Way, bool]:
        """The way to ask the server, and whether it seems to compute in 16 bits.

        Raises:
            UserError: no way returns log-probs of the tokens sent.
        """
        whole, count = _ids(self.texts[0]), len(_ids(self.texts[0])) - 1
        failures = []
        for way in _ROUTES:
            try:
                logps, coarse = self._try_listed(way, whole, count)
            except (RefusedError, LostError, MisreadError) as error:
                failures.append(f"POST {way.route}: {error}")
                continue
            return self._try_dense(way(), logps, whole, count), coarse
        raise self._client.user_error(
            f"gives no log-probs of a prompt's tokens ({'; '.join(failures)}): expected a vLLM server. Correct "
            f"references.{self._name}.server"
        )

    def _try_listed(self, way: type[Completions], ids: TokenIds, count: int) -> tuple[LogProbs, bool]:
        """(count,) log-probs of the text's last tokens, checked against those of its first half; and whether they are 16-bit."""
        try:
            asked = way(others=1)
            rows = asked.listed(self._once(asked, ids, count), ids, count)
        except RefusedError:  # --max-logprobs 0
            asked, rows = way(), []
        if not all(map(is_distribution, rows)):
            raise self._client.user_error(
                "gives numbers that are not log-probs (they sum to more than 1): expected --logprobs-mode raw_logprobs, vLLM's own "
                "default. Start it with that"
            )
        logps = asked.read(self._once(asked, ids, count), ids, count)
        half = ids[: len(ids) // 2]
        first = asked.read(self._once(asked, half, len(half) - 1), half, len(half) - 1)
        far = apart([first], [logps[: len(first)]])
        if not far <= SAME_IN_16_BITS:
            raise MisreadError(
                f"the log-probs of a text's first half are {far:.2g} nats a token away from those in the whole text"
            )
        return logps, not rows or computes_in_16_bits(rows) or far > SAME

    def _try_dense(self, usual: Completions, logps: LogProbs, ids: TokenIds, count: int) -> Way:
        """The dense way if the server has it and it gives the same numbers; else the usual one."""
        if usual.route != Dense.route:
            return usual
        with suppress(RefusedError, LostError, MisreadError):
            dense = Dense()
            if apart([dense.read(self._once(dense, ids, count), ids, count)], [logps]) <= SAME_IN_16_BITS:
                return dense
        return usual

    def _once(self, way: Way, ids: TokenIds, count: int) -> Any:
        return self._client.once("POST", way.route, way.body(self.model, ids, count))

    def _answers(self) -> list[LogProbs]:
        """The probe's current log-probs."""
        found = dict(self._each(self.texts, self._asked))
        return [found[index] for index in range(len(self.texts))]

    def _scored(self, request: ScoringRequest) -> LogProbs:
        logps = self._asked(request)
        self._require_the_same_after_a_loss()
        return logps

    def _require_the_same_after_a_loss(self) -> None:
        """After the server was down, check the probe before any of its answers is used."""
        with self._asked_again:
            losses = self._client.losses
            if losses > self._known_losses:
                self.confirm()
                self._known_losses = losses

    def _asked(self, request: ScoringRequest) -> LogProbs:
        ids, count = _ids(request), len(request.completion_ids)
        try:
            answer = self._client.post(self._way.route, self._way.body(self.model, ids, count))
            logps = self._way.read(answer, ids, count)
        except RefusedError as error:
            raise RunError(f"reference {self._name}: the server refused {len(ids)} token ids ({error}).") from None
        except MisreadError as error:
            raise RunError(
                f"reference {self._name}: the server's log-probs do not line up with what was sent: {error}."
            ) from None
        return logps if request.scored is None else logps[request.scored]

    def _each(self, requests: Sequence[ScoringRequest], ask: Any) -> Iterator[tuple[int, LogProbs]]:
        """(index, answer) as they arrive, longest first; raises the first error when all requests in flight have ended."""
        todo = iter(longest_first(requests))
        taking, stop = threading.Lock(), threading.Event()
        done: queue.SimpleQueue[tuple[int | None, LogProbs | None, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            while not stop.is_set():
                with taking:
                    index = next(todo, None)
                if index is None:
                    break
                try:
                    done.put((index, ask(requests[index]), None))
                except BaseException as error:
                    done.put((index, None, error))
                    break
            done.put((None, None, None))

        threads = min(self._server.concurrency, len(requests))
        for _ in range(threads):
            threading.Thread(target=work, daemon=True).start()
        failure: BaseException | None = None
        try:
            while threads:
                index, logps, error = done.get()
                if logps is not None and index is not None:
                    yield index, logps
                elif error is not None:
                    failure = failure or error
                    stop.set()
                    self._client.give_up()
                else:
                    threads -= 1
        finally:
            stop.set()
        if failure is not None:
            raise failure


def _ids(request: ScoringRequest) -> TokenIds:
    return np.concatenate([request.prompt_ids, request.completion_ids])


def _choose(client: Client, source: ModelSource) -> dict[str, Any]:
    """The server's entry of the reference's model in `GET /v1/models`.

    Raises:
        UserError: it serves no model of that name, or several and the recipe names none.
    """
    assert source.served is not None
    answer = client.first("/v1/models")
    listed = answer.get("data") if isinstance(answer, dict) else None
    cards = {str(card["id"]): card for card in listed or [] if isinstance(card, dict) and "id" in card}
    if not cards:
        raise client.user_error("lists no model under GET /v1/models: expected a running vLLM (`vllm serve MODEL`)")
    only = next(iter(cards)) if len(cards) == 1 else None
    wanted = source.served.model or (source.model if source.model in cards else only)
    if wanted not in cards:
        told = f"serves no model {client.plain(wanted)}" if wanted else "serves several models"
        raise client.user_error(
            f"{told}: there are {client.plain(', '.join(cards))}. Name one of them as references.{source.name}.server.model"
        )
    found: dict[str, Any] = cards[wanted]
    return found
