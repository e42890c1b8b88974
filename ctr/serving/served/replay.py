"""Logged answers computed again: their features from the raw log as of each request's time, their scores from inputs.

The past of a user is what the raw log holds strictly before the request, whatever the server knew of it; counters are
those of the build's formula at that instant. What a request said of either is not believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from ctr.serving.agreement import TOLERANCE, logit_differences
from ctr.serving.ranker import Ranker, graph_inputs
from ctr.serving.served.logged import LoggedAnswer
from ctr.serving.served.shares import Shares
from features.encoding.past import Past
from features.encoding.request import Request
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.requests.as_logged import Asked, AsLogged, Known
from features.store.served_schema import history_hash

AT_ONCE = 2_000  # answers for which the raw log is read once
HISTORY, SCORE = "history", "score"  # columns beside the model's inputs


@dataclass
class Replayed:
    """What came of it.

    Args:
        answers: that were read.
        compared: of them; the others are of other versions.
        other_versions: answers by version.
        without_user: compared ones whose user is unknown or hashed: of them, nothing that depends on the user.
        without_score: compared ones of hashed users whose index the model reads: the log does not hold it.
        features: shares of the model's inputs, of the ids of the history, and of its hash.
        scores: share of the scores.
    """

    answers: int = 0
    compared: int = 0
    other_versions: Counter[str] = field(default_factory=Counter)
    without_user: int = 0
    without_score: int = 0
    features: Shares = field(default_factory=Shares)
    scores: Shares = field(default_factory=Shares)


def replay(answers: Iterable[LoggedAnswer], ranker: Ranker, raw_log: AsLogged | None) -> Replayed:
    """Compute answers again.

    Args:
        answers: of the served log.
        ranker: of a bundle; answers of other versions are counted alone.
        raw_log: of the bundle's contract; None to compute scores alone.

    Raises:
        DataError: an id of the log that cannot be one of the bundle's.
        ConfigError: an answer whose inputs are not the bundle's.
    """
    found = Replayed()
    left = _of_version(answers, ranker, found)
    while some := list(islice(left, AT_ONCE)):
        for answer in some:
            if _hides_input(answer, ranker):
                found.without_score += 1
            else:
                _compare_scores(answer, ranker, found.scores)
        if raw_log is not None:
            asked = [_asked(answer, ranker) for answer in some]
            for answer, question, known in zip(some, asked, raw_log.known(asked), strict=True):
                found.without_user += question.user is None
                _compare_features(answer, question, known, ranker, found.features)
    return found


def _of_version(answers: Iterable[LoggedAnswer], ranker: Ranker, found: Replayed) -> Iterator[LoggedAnswer]:
    for answer in answers:
        found.answers += 1
        if answer.version == ranker.model_version:
            found.compared += 1
            yield answer
        else:
            found.other_versions[answer.version] += 1


def _hides_input(answer: LoggedAnswer, ranker: Ranker) -> bool:
    """Whether the log left out, with a hashed user's id, what the model reads of it."""
    name = f"user_{ranker.encoder.contract.user_field}"
    return answer.user_hashed and name not in answer.inputs and any(node.name == name for node in ranker.inputs)


def _compare_scores(answer: LoggedAnswer, ranker: Ranker, shares: Shares) -> None:
    feed = {}
    for node in ranker.inputs:
        if node.name not in answer.inputs:
            raise DataError(f"request {answer.request!r}: the log lacks the input {node.name!r}. Its part is damaged.")
        values = answer.inputs[node.name]
        feed[node.name] = values.reshape(1, -1) if len(node.shape) == 2 else values
    again = ranker.run(feed)[ranker.outputs[0].name]
    shares.add_equal(SCORE, answer.request, logit_differences(answer.scores, again) <= TOLERANCE, answer.scores, again)


def _asked(answer: LoggedAnswer, ranker: Ranker) -> Asked:
    encoder, where = ranker.encoder, f"request {answer.request!r}"
    user = None if answer.user is None or answer.user_hashed else _id(where, answer.user, encoder.users)
    sides = encoder.contract.counter_sides
    inputs = {key: f"{side}_{key}" for key, side in sides.items() if side != "item" and key != "user"}
    columns = {key: answer.inputs[name].reshape(-1) for key, name in inputs.items() if name in answer.inputs}
    candidates = tuple(_id(where, item, encoder.items) for item in answer.candidates)
    return Asked(user, answer.time, candidates, columns)


def _id(where: str, text: str, ids: Vocabulary) -> Any:
    """An id of the log in the type that the bundle has it."""
    if not ids.whole_numbers:
        return text
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{where}: the id {text!r} is no whole number, as those of the bundle are.") from None


def _compare_features(answer: LoggedAnswer, asked: Asked, known: Known, ranker: Ranker, shares: Shares) -> None:
    contract = ranker.encoder.contract
    context = {name: value for name, value in answer.context.items() if name not in contract.counters}
    request = Request(
        candidates=asked.candidates,
        past=Past.of(known.past),
        time=answer.time,
        user=asked.user,
        user_columns=answer.user_columns,
        context=context | known.users,
        candidate_columns={name: tuple(values.tolist()) for name, values in known.items.items()},
    )
    encoded = ranker.requests.encode(request)
    offline = {name: values.reshape(-1) for name, values in graph_inputs(encoded).items()}
    hidden = {f"context_{name}" for name in known.users}
    for name in dict.fromkeys((*answer.inputs, *offline)):
        if asked.user is None and (name.startswith(("user_", "history_")) or name in hidden):
            continue
        none = np.empty(0, np.float32)
        shares.add(name, answer.request, answer.inputs.get(name, none), offline.get(name, none))
    if asked.user is not None:
        ids = [np.array([str(item) for item in each], object) for each in (answer.history, encoded.history)]
        shares.add(HISTORY, answer.request, *ids)
        hashes = [np.array([one], object) for one in (answer.history_hash, history_hash(graph_inputs(encoded)))]
        shares.add("history_hash", answer.request, *hashes)
