"""The ranker: ranks the candidates of raw requests with a verified bundle, without torch.

Shapes: H history items of one request, N candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail as OrtFail
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from ctr.serving.bundle import ITEM_DELTA, RANKER, SCORE, Bundle, GoldenRequest, open_bundle
from ctr.serving.items.delta import ItemDelta
from ctr.serving.order import best_first
from ctr.serving.pasts.source import Pasts, RequestPasts
from features.contract.relative import CANDIDATES
from features.encoding.encoder import EncodedRequest, Encoder
from features.encoding.past import PastEvent
from features.encoding.request import Limits, Request, parse_request
from features.errors import ConfigError, DataError, NumericalError
from features.requests.past_columns import RequestEncoder
from features.store.schema import UNKNOWN

NAMED = 5  # ids named in one message
FAR = 100.0  # of numbers in standard deviations: what may be at fault where a score is not finite
CANDIDATE_ITEM = "candidate_item"
ITEM_INPUTS = (CANDIDATE_ITEM, "history_item")
OF_CANDIDATES = "candidate_"  # begins the names of the inputs that have a value a candidate
AT_ONCE = 256  # candidates in a run of the graph, a thread: of more, what layers pass on leaves a core's cache
log = logging.getLogger("quadrank.rank")


@dataclass(frozen=True)
class Ranked:
    """One candidate: its raw id, the probability of a positive label, and those of further labels, by name."""

    item: Any
    score: float
    tasks: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """`item` and `score`; `tasks` where there are any."""
        return {"item": self.item, "score": self.score} | ({"tasks": self.tasks} if self.tasks else {})


@dataclass(frozen=True)
class RankResult:
    """The answer to one request.

    Args:
        model_version: of the bundle that scored it.
        ranked: by score, highest first; equal scores keep the request's order.
        unknown_candidates: raw ids of candidates that were scored as the unknown item.
        unknown_history: number of history items that were read as the unknown item.
        missing: how many values the request lacks of each column that the model was trained on.
        unusual: as `Ranker.unusual`.
    """

    model_version: str
    ranked: tuple[Ranked, ...]
    unknown_candidates: tuple[Any, ...]
    unknown_history: int
    missing: dict[str, int] = field(default_factory=dict)
    unusual: dict[str, int] = field(default_factory=dict)


class Ranker:
    """Ranks the candidates of one request with the model of a bundle. Safe to share between threads.

    `threads` threads compute one request, 1 by default: a server answers several requests at once, and the threads of
    one request would take cores from another. `counters` may be replaced by fresher ones, `pasts` by a source of
    users' pasts, which is empty by default.

    Args:
        bundle: a verified one.
        encoder: turns raw requests into the graph's inputs.
        session: of `ranker.onnx`.
        limits: of requests.
        later_KD: rows of items behind those of the item table, float32 [K, D]; default none.
        exported: the encoder as it was exported, for the golden requests; default `encoder`.
        at_once: how many candidates a run of the graph has at most.

    Example:
        >>> ranker = Ranker.load(Path("bundles/simulated/CURRENT"))
        >>> ranker.rank({"user": 7, "history": [1, 2], "candidates": [3, 4, 5]}, top=1).ranked
        (Ranked(item=4, score=0.31),)
    """

    def __init__(
        self,
        bundle: Bundle,
        encoder: Encoder,
        session: Any,
        limits: Limits,
        later_KD: np.ndarray | None = None,
        exported: Encoder | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        self.bundle = bundle
        self.encoder = encoder
        self._exported = exported or encoder
        self._later = {} if later_KD is None else {ITEM_DELTA: later_KD}
        self.limits = limits
        self.counters = encoder.snapshot
        self.pasts: Pasts = RequestPasts()
        self.requests = RequestEncoder(encoder)
        self._session = session
        self._at_once = at_once
        self.inputs = tuple(session.get_inputs())
        self.outputs = tuple(session.get_outputs())
        self._inputs = [node.name for node in self.inputs]
        self._outputs = [node.name for node in self.outputs]
        self._reads = self._read_keys()

    @classmethod
    def load(cls, path: Path, threads: int = 1, limits: Limits | None = None) -> Ranker:
        """Verify a bundle, load it and replay its golden requests.

        Raises:
            DataError: a file of the bundle is missing, changed, or not listed in its manifest.
            NumericalError: a golden request gets other scores on this machine.
        """
        return cls.of(open_bundle(path), threads, limits)

    @classmethod
    def of(cls, bundle: Bundle, threads: int = 1, limits: Limits | None = None) -> Ranker:
        """Load a bundle whose files were compared with their hashes, and replay its golden requests.

        Raises:
            DataError, NumericalError: as `load`.
        """
        session = open_session(bundle.path / RANKER, threads)
        exported, limits = Encoder.load(bundle.path), limits or Limits()
        later = ItemDelta.load(bundle.path, delta_width(session))
        at_once = AT_ONCE * threads
        if later is None:
            ranker = cls(bundle, exported, session, limits, at_once=at_once)
        else:
            ranker = cls(bundle, later.onto(exported), session, limits, later.rows_KD, exported, at_once)
        ranker.replay()
        return ranker

    @property
    def row_width(self) -> int:
        """Width of a row of the item table."""
        return delta_width(self._session)

    def with_rows(self, encoder: Encoder, later_KD: np.ndarray) -> Ranker:
        """A ranker with the same graph that reads other rows behind those of the item table.

        Args:
            encoder: whose schema has as many items more.
            later_KD: float32 [K, D].
        """
        return Ranker(self.bundle, encoder, self._session, self.limits, later_KD, at_once=self._at_once)

    @property
    def model_version(self) -> str:
        """The model's name in each answer."""
        return self.bundle.manifest.model_version

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the further labels that the model predicts."""
        return tuple(name.removeprefix(f"{SCORE}_") for name in self._outputs[1:])

    def rank(self, raw_request: dict[str, Any], *, strict: bool = False, top: int | None = None) -> RankResult:
        """Rank the candidates of one raw request.

        Args:
            raw_request: `user`, `context`, `history`, `candidates` by raw ids; see MODEL_CARD.md.
            strict: refuse unknown ids instead of scoring them as the unknown item, and requests that lack what the
                model was trained on.
            top: return only the best so many.

        Raises:
            ConfigError: malformed request, a limit exceeded, `top` below 1, or (strict) unknown ids or missing values.
        """
        if top is not None and top < 1:
            raise ConfigError(f"top: must be at least 1, got {top}. Leave it out for all candidates.")
        request = parse_request(raw_request, self.encoder.contract, self.limits)
        encoded = self.encode(request)
        if strict:
            _refuse_unknown(encoded)
            refuse_missing(encoded)
        scores_NH = self.scores(encoded)
        order = best_first(scores_NH[:, 0], top)
        tasks = {name: scores_NH[:, place] for place, name in enumerate(self.tasks, start=1)}
        return RankResult(
            model_version=self.model_version,
            ranked=tuple(
                Ranked(
                    request.candidates[i], float(scores_NH[i, 0]), {name: float(of[i]) for name, of in tasks.items()}
                )
                for i in order
            ),
            unknown_candidates=encoded.unknown_candidates,
            unknown_history=encoded.unknown_history,
            missing=encoded.missing,
            unusual=self.unusual(encoded),
        )

    def encode(self, request: Request, past: Sequence[PastEvent] | None = None) -> EncodedRequest:
        """As `RequestEncoder.encode`: a parsed request, and what a source of pasts knows of its user, for the graph.

        `user` and `history` count as missing where the request has no such key, the model reads something of them, and
        no source was asked for the past (`past` is None).
        """
        encoded = self.requests.encode(request, past or (), self.counters)
        lacking = {key: 1 for key in request.absent if key in self._reads and (key == "user" or past is None)}
        return replace(encoded, missing=encoded.missing | lacking) if lacking else encoded

    def unusual(self, encoded: EncodedRequest) -> dict[str, int]:
        """`candidates`, how many there are, where the model compares them and never saw a request of so few or many."""
        sizes, candidates = self.bundle.manifest.list_sizes, len(encoded.candidate_item)
        is_usual = sizes is None or sizes.least <= candidates <= sizes.greatest
        return {} if is_usual else {CANDIDATES: candidates}

    def score(self, encoded: EncodedRequest) -> np.ndarray:
        """Click probabilities float32 [N]: the first column of `scores`."""
        return self.scores(encoded)[:, 0]

    def scores(self, encoded: EncodedRequest) -> np.ndarray:
        """Probabilities float32 [N, 1 + tasks] of a click and of further labels, in the order of the candidates.

        Raises:
            ConfigError: an item row outside the table, or a number so large that a score is not finite.
            NumericalError: a score is not finite.
        """
        items = self.encoder.schema.items
        _check_rows("candidates", encoded.candidate_item, items)
        _check_rows("history", encoded.history_item, items)
        feed = graph_inputs(encoded)
        return self._outputs_of({name: feed[name] for name in self._inputs})

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Scores of inputs that a client encoded itself: each output by name, float32 [N].

        Raises:
            ConfigError: an input that is missing, unknown, of another type or shape, or an index outside its table.
            NumericalError: a score is not finite.
        """
        unknown, lacking = sorted(set(feed) - set(self._inputs)), sorted(set(self._inputs) - set(feed))
        if unknown or lacking:
            what = f"the model has no input {unknown[0]!r}" if unknown else f"{lacking[0]!r} is missing"
            raise ConfigError(f"inputs: {what}; it reads {', '.join(self._inputs)}.")
        for name, values in feed.items():
            # ONNX Runtime reads index -1 as the last row; what is too large it refuses itself.
            if values.dtype.kind == "i" and values.size and values.min() < 0:
                raise ConfigError(f"inputs: {name!r} holds {values.min()}; indices begin with 0.")
            if name in ITEM_INPUTS:
                _check_rows(f"inputs: {name}", values.ravel(), self.encoder.schema.items)
        if not feed[CANDIDATE_ITEM].size:
            raise ConfigError("inputs: 'candidate_item' is empty: there is nothing to score.")
        shape = feed[CANDIDATE_ITEM].shape
        for name in self._inputs:
            if name.startswith(OF_CANDIDATES) and (feed[name].shape != shape or len(shape) != 1):
                raise ConfigError(
                    f"inputs: {name!r} has shape {list(feed[name].shape)}, and 'candidate_item' {list(shape)}: each is "
                    "a list of one value a candidate."
                )
        try:
            scores_NH = self._outputs_of(feed)
        except (OrtFail, InvalidArgument, RuntimeException) as error:
            log.warning("encoded inputs that the graph does not read: %s", error)
            raise ConfigError(
                "inputs: the model cannot read them together. Compare types and shapes with GET /v2/models/NAME, "
                "lengths of `candidate_…` and `history_…` with each other, and indices with the tables of the bundle."
            ) from None
        return dict(zip(self._outputs, scores_NH.T, strict=True))

    def _outputs_of(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """All outputs of the graph, float32 [N, 1 + tasks], each finite: a candidate's depend on no other candidate."""
        runs = -(-len(feed[CANDIDATE_ITEM]) // self._at_once)
        own = [name for name in feed if name.startswith(OF_CANDIDATES)]
        parts = zip(*(np.array_split(feed[name], runs) for name in own), strict=True) if runs > 1 else ()
        feeds = [feed | dict(zip(own, part, strict=True)) for part in parts] or [feed]
        scores = [np.stack(self._session.run(None, part | self._later), axis=-1) for part in feeds]
        return self._finite(np.concatenate(scores), feed)

    def _read_keys(self) -> frozenset[str]:
        """Which of `user` and `history` the graph reads something of; counters of a user are such a thing."""
        contract = self.encoder.contract
        sides = contract.counter_sides
        of_users = {
            f"{part}_{name}"
            for name, counter in contract.counters.items()
            if any(sides[key] == "user" for key in counter.keys)
            for part in ("context", "candidate")
        }
        reads_user = any(name.startswith("user_") or name in of_users for name in self._inputs)
        reads = {"user": reads_user, "history": "history_item" in self._inputs}
        return frozenset(key for key, is_read in reads.items() if is_read)

    def _finite(self, scores_NH: np.ndarray, feed: dict[str, np.ndarray]) -> np.ndarray:
        if not np.isfinite(scores_NH).all():
            _refuse_far(feed)
            raise NumericalError(
                f"{self.model_version}: {int((~np.isfinite(scores_NH)).sum())} of {scores_NH.size} scores are "
                "not finite. Roll back to the bundle before this one."
            )
        return scores_NH

    def replay(self) -> float:
        """Score the golden requests and return the largest `logit_difference` from their recorded scores.

        Raises:
            NumericalError: it exceeds the tolerance that `golden.json` states.
        """
        exported = RequestEncoder(self._exported)

        def score(cases: Sequence[GoldenRequest]) -> Iterator[np.ndarray]:
            for case in cases:
                # A server's own limits may be tighter than a golden request is long.
                request = parse_request(case.request, self._exported.contract, Limits())
                # With the items as they were when the scores were recorded.
                yield self.scores(exported.encode(request))

        return self.bundle.replay(self.tasks, score)


def open_session(graph: Path | bytes, threads: int = 1) -> Any:
    """An ONNX Runtime CPU session for many small requests: threads do not spin, memory is returned after each.

    Raises:
        DataError: the graph cannot be loaded; it refers to a file outside its folder, for example.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3  # it warns of each graph that has a default for an input, as ours for the delta
    return load_graph(graph, options)


def load_graph(graph: Path | bytes, options: ort.SessionOptions) -> Any:
    """A session of ONNX Runtime, which reads a graph's tables from its own folder alone.

    Raises:
        DataError: the graph cannot be loaded; it refers to a file outside its folder, for example.
    """
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Each kind of its errors is a class of its own, below none that it names.
        name = "a graph" if isinstance(graph, bytes) else str(graph)
        raise DataError(f"{name}: ONNX Runtime does not load it: {error}. Export the bundle again.") from None


def delta_width(session: Any) -> int:
    """Width of a row of the item table."""
    (delta,) = session.get_overridable_initializers()
    return int(delta.shape[1])


def graph_inputs(encoded: EncodedRequest) -> dict[str, np.ndarray]:
    """All columns of a request by the names of the graph's inputs; the graph may read fewer."""
    return {
        **{f"user_{name}": values for name, values in encoded.user.items()},
        **{f"context_{name}": values for name, values in encoded.context.items()},
        "history_item": encoded.history_item,
        **{f"history_{name}": values for name, values in encoded.history_events.items()},
        **{f"candidate_{name}": values for name, values in encoded.candidate.items()},
        "candidate_item": encoded.candidate_item,
    }


def refuse_missing(encoded: EncodedRequest) -> None:
    """Raise ConfigError for a request that lacks values of columns that the model was trained on."""
    if encoded.missing:
        lacking = ", ".join(f"{name} ({count})" for name, count in encoded.missing.items())
        raise ConfigError(
            f"missing: {lacking}. The model was trained on these values: send them, as MODEL_CARD.md shows. `strict` "
            "refuses a request without them."
        )


def _refuse_unknown(encoded: EncodedRequest) -> None:
    history = [encoded.history[place] for place in np.flatnonzero(encoded.history_item == UNKNOWN)]
    unknown = {"candidates": encoded.unknown_candidates, "history": history}
    problems = [f"{name}: {_some(ids)}" for name, ids in unknown.items() if ids]
    if problems:
        raise ConfigError(
            f"{'; '.join(problems)}. Leave them out, or rank without strict to score them as the unknown item."
        )


def _some(ids: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, ids[:NAMED]))
    return f"unknown ids {shown}" + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")


def _refuse_far(feed: dict[str, np.ndarray]) -> None:
    """Raise ConfigError for a number far from all that a model sees; NaN stands for a missing one."""
    for name, values in feed.items():
        if name != ITEM_DELTA and values.dtype.kind == "f" and (far := values[np.abs(values) > FAR]).size:
            raise ConfigError(
                f"{name}: {far[0]:.3g} (encoded) is so far from what the model was trained on that it gives no score. "
                "Send the value in the unit that the log has, or leave it out."
            )


def _check_rows(name: str, rows: np.ndarray, items: int) -> None:
    """Refuse rows outside the item table: ONNX Runtime reads row -1 as the last row without an error."""
    if len(rows) and not (rows.min() >= 0 and rows.max() < items):
        wrong = rows[(rows < 0) | (rows >= items)][0]
        raise ConfigError(f"{name}: item row {wrong} is outside the item table of {items} rows. Encode raw ids.")
