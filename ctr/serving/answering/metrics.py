"""What a Prometheus server scrapes at `/metrics`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ctr.serving.answering.assignment import CHALLENGER, CHAMPION
from ctr.serving.ranker import Ranker
from features.contract.columns import Gap
from features.contract.contract import Contract
from features.encoding.encoder import EncodedRequest
from features.encoding.request import Request
from features.store.schema import UNKNOWN

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
SEVERAL_PROCESSES = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus_client adds the processes up

# Ages, each with the moment that it is counted from: what a process exports does not grow while others are asked.
AGES = {
    "quadrank_model_age_seconds": ("quadrank_model_created_seconds", "Now less the export of the model."),
    "quadrank_counters_age_seconds": (
        "quadrank_counters_newest_seconds",
        "Now less the newest event counted, or the end of the log.",
    ),
    "quadrank_pointer_age_seconds": (
        "quadrank_pointer_read_seconds",
        "Now less when the pointer or alias was last read.",
    ),
}


class ServerMetrics:
    """Counters, gauges and histograms of one process; `text` adds up those of all processes of a server."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._registry = own
        self.requests = Counter("quadrank_requests_total", "Answers by status.", ["route", "status"], registry=own)
        self.shed = Counter("quadrank_shed_total", "Requests answered 503, by reason.", ["reason"], registry=own)
        self.seconds = Histogram("quadrank_seconds", "Time by stage.", ["stage"], buckets=SECONDS, registry=own)
        self.took = Histogram("quadrank_request_seconds", "Time from body to answer.", buckets=SECONDS, registry=own)
        self.waiting = Gauge(
            "quadrank_waiting", "Requests that run or wait.", multiprocess_mode="livesum", registry=own
        )
        self.candidates = Counter("quadrank_candidates_total", "Candidates ranked.", registry=own)
        self.unknown = Counter(
            "quadrank_unknown_total", "Ids and values that the model never saw.", ["of"], registry=own
        )
        self.missing = Counter(
            "quadrank_missing_total", "Values that a request did not give.", ["column"], registry=own
        )
        self.unusual = Counter(
            "quadrank_unusual_total", "Requests unlike those of training, by what is unusual.", ["of"], registry=own
        )
        self.score_sum = Counter("quadrank_scores_sum", "Sum of the scores; over candidates, their mean.", registry=own)
        self.variant_requests = Counter(
            "quadrank_variant_requests_total", "Requests that a variant ranked.", ["variant"], registry=own
        )
        self.variant_candidates = Counter(
            "quadrank_variant_candidates_total", "Candidates that a variant ranked.", ["variant"], registry=own
        )
        self.variant_score_sum = Counter(
            "quadrank_variant_scores_sum", "Sum of a variant's scores; over its candidates, their mean.", ["variant"],
            registry=own,
        )  # fmt: skip
        self.fallbacks = Counter("quadrank_fallbacks_total", "Answers by popularity.", ["reason"], registry=own)
        self.challenger_failed = Counter(
            "quadrank_challenger_failed_total", "Requests that the challenger could not rank.", registry=own
        )
        self.challenger_refused = Counter(
            "quadrank_challenger_refused_total", "Challengers that failed their checks.", registry=own
        )
        self.challenger_loaded = Gauge(
            "quadrank_challenger_loaded", "Processes that have a challenger.", multiprocess_mode="livesum", registry=own
        )
        self.shadow_dropped = Counter(
            "quadrank_shadow_dropped_total", "Requests that the shadow had no time for.", registry=own
        )
        self.log_dropped = Counter("quadrank_log_dropped_total", "Answers that the log had no place for.", registry=own)
        self.pasts = Counter(
            "quadrank_pasts_total", "Pasts asked for at their source, by what came of it.", ["outcome"], registry=own
        )
        self.events = Counter("quadrank_events_total", "Reported events, by outcome.", ["outcome"], registry=own)
        self.counters_newest = Gauge(
            "quadrank_counters_newest_seconds", "The newest event counted, or the end of the log (Unix time).",
            multiprocess_mode="livemin", registry=own,
        )  # fmt: skip
        self.refused = Counter(
            "quadrank_versions_refused_total", "New versions that failed their checks.", registry=own
        )
        self.pointer_errors = Counter(
            "quadrank_pointer_errors_total", "Looks at a pointer or alias that named no bundle.", ["of"], registry=own
        )
        for variant in (CHAMPION, CHALLENGER):
            self.pointer_errors.labels(variant)  # 0 before the first, whose increase is seen then
        self.swaps = Counter("quadrank_swaps_total", "Versions that began to answer.", registry=own)
        self._looked = Gauge(
            "quadrank_pointer_read_seconds", "When the pointer or alias was last read (Unix time).",
            multiprocess_mode="livemin", registry=own,
        )  # fmt: skip
        self.swap_seconds = Gauge(
            "quadrank_swap_seconds",
            "Time to verify, load and warm up the version.",
            multiprocess_mode="livemax",
            registry=own,
        )
        self._created = Gauge(
            "quadrank_model_created_seconds", "When the model was exported (Unix time).", multiprocess_mode="livemin",
            registry=own,
        )  # fmt: skip
        self._data_end = Gauge(
            "quadrank_model_data_end_seconds", "End of the data the model saw (Unix time).",
            multiprocess_mode="livemin", registry=own,
        )  # fmt: skip

    def past(self, outcome: str) -> None:
        """Note what came of asking for a past."""
        self.pasts.labels(outcome).inc()

    def unknown_values(self, contract: Contract, request: Request, encoded: EncodedRequest) -> None:
        """Count ids and values of a request that the model never saw, by column; one look a column, none a value."""
        # The first pause of a user has the index too, and is neither missing nor unknown.
        pauses = {name for name, spec in contract.history.columns.items() if isinstance(spec, Gap)}
        events = {name: values for name, values in encoded.history_events.items() if name not in pauses}
        self._unknown("candidates", len(encoded.unknown_candidates))
        self._unknown("history", encoded.unknown_history)
        self._unknown("user", int(encoded.unknown_user))
        of_user = {name: encoded.user[name] for name, value in request.user_columns.items() if value is not None}
        sides = {"context": encoded.context, "user_columns": of_user, "history": events}
        for side, columns in sides.items():
            for name, values in columns.items():
                if values.dtype.kind == "i":  # a missing value has the same index, and is counted as missing
                    self._unknown(
                        f"{side}.{name}", int(np.count_nonzero(values == UNKNOWN)) - encoded.missing.get(name, 0)
                    )

    def _unknown(self, of: str, values: int) -> None:
        if values > 0:
            self.unknown.labels(of).inc(values)

    def looked(self) -> None:
        """Note that the source has said which bundle is wanted."""
        self._looked.set_to_current_time()

    def swapped(self, ranker: Ranker, seconds: float) -> None:
        """Note the version that answers from now on."""
        self.swaps.inc()
        self.swap_seconds.set(seconds)
        manifest = ranker.bundle.manifest
        self._created.set(_unix(manifest.created))
        self._data_end.set(max(window.last_time for window in manifest.windows.values()) / 1e6)

    def text(self) -> bytes:
        """The exposition text."""
        registry = self._registry
        if SEVERAL_PROCESSES in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        ages = CollectorRegistry()
        ages.register(_Ages(registry))
        return generate_latest(registry) + generate_latest(ages)


class _Ages(Collector):
    """Ages of the moments of a registry; of several processes the oldest."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Any]:
        """One for each moment that is known."""
        for name, (moment, text) in AGES.items():
            since = self._registry.get_sample_value(moment)
            if since:  # 0 is a moment that was never set
                yield GaugeMetricFamily(name, text, value=time.time() - since)


def _unix(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
