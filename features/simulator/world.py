"""The simulated world: items, users and the true click probability of showing one to the other.

Shapes: I items, U users, R rows, D latent width, J interests, T topics, C categories.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from features.calendar import DAY

START = int(datetime(2025, 3, 3, tzinfo=UTC).timestamp()) * 1_000_000
DAYS = 42
END = START + DAYS * DAY

CATEGORIES = (
    "animation", "cooking", "finance", "fitness", "gaming", "gardening",
    "history", "music", "news", "science", "sports", "travel",
)  # fmt: skip
AGE_GROUPS = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
COUNTRIES = ("US", "IN", "BR", "DE", "JP", "FR", "NG", "MX")
DEVICES = ("phone", "desktop", "tablet", "tv")

TOPICS_PER_CATEGORY = 4
TOPICS = TOPICS_PER_CATEGORY * len(CATEGORIES)
TAGS_PER_TOPIC = 6
MAX_TAGS = 5
MAX_POSITION = 8

LATENT_WIDTH = 16
MAX_INTERESTS = 4
TEXT_WIDTH = 64
IMAGE_WIDTH = 96

NEW_ITEM_SHARE = 0.35  # of all items are created inside the window
NO_PRICE_SHARE = 0.08
NO_IMAGE_SHARE = 0.12
NO_AGE_SHARE = 0.03
LATE_USER_SHARE = 0.1  # of all users join inside the window

MATCH_SHARPNESS = 6.0
MATCH_WEIGHT = 3.7


@dataclass(frozen=True)
class Items:
    """The catalogue, sorted by topic; positions in these arrays are the item indices of the simulation.

    All are [I], but `latent` [I, D] (unit vectors), `tags` [I, MAX_TAGS] (-1 where there are fewer), and
    `text` and `image` [I, width], which are what two encoders see of `latent`. `price` is NaN where
    unknown; `has_image` says which images exist.
    """

    id: np.ndarray
    topic: np.ndarray
    category: np.ndarray
    latent: np.ndarray
    tags: np.ndarray
    price: np.ndarray
    created: np.ndarray
    base_popularity: np.ndarray
    drift_phase: np.ndarray
    drift_days: np.ndarray
    text: np.ndarray
    image: np.ndarray
    has_image: np.ndarray

    def popularity(self, time: int) -> np.ndarray:
        """Log popularity of each item at a time: lasting, plus a drift that comes and goes over weeks."""
        turns = (time - START) / DAY / self.drift_days
        return self.base_popularity + 0.5 * np.sin(2 * np.pi * turns + self.drift_phase)

    def exposure(self, time: int) -> np.ndarray:
        """How often a popularity ranker shows each item (unnormalised): new ones more, unborn ones never."""
        age_days = (time - self.created) / DAY
        push = 1.3 * np.exp(-np.maximum(age_days, 0) / 5)
        return np.where(age_days >= 0, np.exp(self.popularity(time) + push), 0.0)


@dataclass(frozen=True)
class Users:
    """The users. All are [U], but their interests: topics and weights [U, J], unit vectors [U, J, D].

    An interest's weight is 0 where a user has fewer than `MAX_INTERESTS`. `age` is an index into
    `AGE_GROUPS`, or `len(AGE_GROUPS)` where unknown; `joined` is the share of the window's traffic that
    passed before a user's first possible visit.
    """

    id: np.ndarray
    age: np.ndarray
    country: np.ndarray
    device: np.ndarray
    activity: np.ndarray
    joined: np.ndarray
    interest_topic: np.ndarray
    interest_weight: np.ndarray
    interest: np.ndarray


@dataclass(frozen=True)
class Effects:
    """What moves the click logit besides the match: effects of two fields together, and plain ones.

    `item` [I] is a quality that content tells, and the price; `position` is indexed by position, from 1.
    """

    age_category: np.ndarray
    device_category: np.ndarray
    hour_category: np.ndarray
    country: np.ndarray
    position: np.ndarray
    item: np.ndarray


@dataclass(frozen=True)
class Tastes:
    """Where the interests of users go.

    Args:
        later: interests that they go towards, unit vectors [U, J, D].
        drift: share of the way that they have gone when the window ends, 0 to 1; half of it at half of the time.
    """

    later: np.ndarray
    drift: float


@dataclass(frozen=True)
class World:
    """Everything that is true and that a log shows only through impressions and clicks.

    Without `tastes` the interests of users stay as they are.
    """

    items: Items
    users: Users
    effects: Effects
    tastes: Tastes | None = None

    def probability(
        self,
        *,
        user: np.ndarray,
        item: np.ndarray,
        hour: np.ndarray,
        device: np.ndarray,
        position: np.ndarray,
        popularity: np.ndarray,
        passed: np.ndarray,
    ) -> np.ndarray:
        """The true click probability of each impression, float32 [R].

        All arguments are [R]: indices of users and items, hour 0..23, device index, position from 1,
        the item's log popularity at that time, and the share of the window that has passed.
        """
        effects, category = self.effects, self.items.category[item]
        logit = (
            -2.9
            + MATCH_WEIGHT * self.match(user, item, passed)
            + effects.age_category[self.users.age[user], category]
            + effects.device_category[device, category]
            + effects.hour_category[hour, category]
            + effects.country[self.users.country[user]]
            + effects.position[position]
            + effects.item[item]
            + 0.2 * popularity
        )
        return (1 / (1 + np.exp(-logit))).astype(np.float32)

    def match(self, user: np.ndarray, item: np.ndarray, passed: np.ndarray) -> np.ndarray:
        """Soft maximum over a user's weighted interests of the cosine to the item, about -0.3 to 1; [R]."""
        interest_RJD = self.users.interest[user]
        if self.tastes is not None:
            gone_R11 = (self.tastes.drift * passed)[:, None, None]
            interest_RJD = _unit((1 - gone_R11) * interest_RJD + gone_R11 * self.tastes.later[user])
        cosine_RJ = np.einsum("rjd,rd->rj", interest_RJD, self.items.latent[item])
        total_R = (self.users.interest_weight[user] * np.exp(MATCH_SHARPNESS * cosine_RJ)).sum(axis=1)
        return np.log(total_R) / MATCH_SHARPNESS


def build_world(rng: np.random.Generator, users: int, items: int) -> World:
    """Draw a world. The same generator state gives the same world."""
    category_centre = _unit(rng.normal(size=(len(CATEGORIES), LATENT_WIDTH)))
    topic_centre_TD = _unit(
        category_centre.repeat(TOPICS_PER_CATEGORY, axis=0) + _noise(rng, (TOPICS, LATENT_WIDTH), 0.9)
    )
    topic_share = rng.permutation(1 / (np.arange(TOPICS) + 8.0))
    topic_share /= topic_share.sum()
    catalogue = _items(rng, items, topic_centre_TD, topic_share)
    return World(catalogue, _users(rng, users, topic_centre_TD, topic_share), _effects(rng, catalogue))


def with_changing_tastes(world: World, rng: np.random.Generator, drift: float) -> World:
    """The world in which each interest of a user goes towards that of some item, drawn at random."""
    items = rng.integers(len(world.items.id), size=world.users.interest_topic.shape)
    return replace(world, tastes=Tastes(world.items.latent[items], drift))


def repeated(values_RK: np.ndarray) -> np.ndarray:
    """Which entries repeat an earlier entry of their own row, bool [R, K]."""
    order_RK = np.argsort(values_RK, axis=1, kind="stable")
    sorted_RK = np.take_along_axis(values_RK, order_RK, axis=1)
    again_RK = np.zeros(values_RK.shape, dtype=bool)
    again_RK[:, 1:] = sorted_RK[:, 1:] == sorted_RK[:, :-1]
    result_RK = np.empty_like(again_RK)
    np.put_along_axis(result_RK, order_RK, again_RK, axis=1)
    return result_RK


def tag_names() -> list[str]:
    """The tag vocabulary; tag k belongs to topic `k // TAGS_PER_TOPIC`."""
    per_category = TAGS_PER_TOPIC * TOPICS_PER_CATEGORY
    return [f"{category}-{k + 1:02d}" for category in CATEGORIES for k in range(per_category)]


def _items(rng: np.random.Generator, count: int, topic_centre_TD: np.ndarray, topic_share: np.ndarray) -> Items:
    topic = np.sort(rng.choice(TOPICS, size=count, p=topic_share))
    latent_ID = _unit(topic_centre_TD[topic] + _noise(rng, (count, LATENT_WIDTH), 0.6)).astype(np.float32)
    category = topic // TOPICS_PER_CATEGORY
    price = np.exp(rng.normal(2.5, 0.5, size=len(CATEGORIES))[category] + rng.normal(0, 0.7, size=count))
    price = np.where(rng.random(count) < NO_PRICE_SHARE, np.nan, price.round(2))
    new = rng.permutation(count) < int(NEW_ITEM_SHARE * count)
    age = np.where(new, -rng.random(count) * DAYS, rng.random(count) * 365)
    # Part of the popularity can be read from content, so that a new item's is not wholly unknown.
    appeal = latent_ID @ _unit(rng.normal(size=LATENT_WIDTH)) * np.sqrt(LATENT_WIDTH)
    return Items(
        id=_ids(rng, count, 200_000),
        topic=topic,
        category=category,
        latent=latent_ID,
        tags=_tags(rng, topic),
        price=price,
        created=START - (age * DAY).astype(np.int64),
        base_popularity=0.5 * appeal + rng.normal(0, 0.9, size=count),
        drift_phase=rng.uniform(0, 2 * np.pi, size=count),
        drift_days=rng.uniform(20, 60, size=count),
        text=_encode(rng, latent_ID, TEXT_WIDTH, noise=0.5, offset=0.0, scale=1 / np.sqrt(TEXT_WIDTH)),
        image=_encode(rng, latent_ID, IMAGE_WIDTH, noise=1.2, offset=1.5, scale=0.2),
        has_image=rng.random(count) >= NO_IMAGE_SHARE,
    )


def _users(rng: np.random.Generator, count: int, topic_centre_TD: np.ndarray, topic_share: np.ndarray) -> Users:
    topic_UJ = rng.choice(TOPICS, size=(count, MAX_INTERESTS), p=topic_share)
    interest_UJD = topic_centre_TD[topic_UJ] + _noise(rng, (*topic_UJ.shape, LATENT_WIDTH), 0.2)
    weight_UJ = rng.exponential(size=topic_UJ.shape) + 1.0
    weight_UJ[np.arange(MAX_INTERESTS) >= rng.integers(2, MAX_INTERESTS + 1, size=(count, 1))] = 0
    age = rng.choice(len(AGE_GROUPS), size=count, p=[0.2, 0.27, 0.2, 0.15, 0.1, 0.08])
    joined = np.where(rng.random(count) < LATE_USER_SHARE, rng.uniform(0, 0.6, size=count), 0.0)
    return Users(
        id=_ids(rng, count, 1_000_000),
        age=np.where(rng.random(count) < NO_AGE_SHARE, len(AGE_GROUPS), age),
        country=rng.choice(len(COUNTRIES), size=count, p=[0.3, 0.2, 0.13, 0.1, 0.1, 0.07, 0.05, 0.05]),
        device=rng.choice(len(DEVICES), size=count, p=[0.6, 0.25, 0.1, 0.05]),
        activity=np.exp(rng.normal(0, 0.4, size=count)) * (1 - joined),
        joined=joined,
        interest_topic=topic_UJ,
        interest_weight=(weight_UJ / weight_UJ.sum(axis=1, keepdims=True)).astype(np.float32),
        interest=_unit(interest_UJD).astype(np.float32),
    )


def _effects(rng: np.random.Generator, items: Items) -> Effects:
    categories = len(CATEGORIES)
    age_category = _centred(rng.normal(0, 0.65, size=(len(AGE_GROUPS) + 1, categories)))
    age_category[-1] = 0
    hours = np.arange(24)[:, None] - rng.uniform(0, 24, size=categories)
    quality = items.latent @ _unit(rng.normal(size=LATENT_WIDTH)) * np.sqrt(LATENT_WIDTH)
    log_price = np.log(items.price)
    dearness = (log_price - np.nanmean(log_price)) / np.nanstd(log_price)
    return Effects(
        age_category=age_category,
        device_category=_centred(rng.normal(0, 0.45, size=(len(DEVICES), categories))),
        hour_category=0.4 * np.cos(2 * np.pi * hours / 24),
        country=rng.normal(0, 0.12, size=len(COUNTRIES)),
        position=-0.45 * np.log(np.maximum(np.arange(MAX_POSITION + 1), 1)),
        item=0.65 * (quality - quality.mean()) - 0.15 * np.nan_to_num(dearness),
    )


def _tags(rng: np.random.Generator, topic: np.ndarray) -> np.ndarray:
    """Tags mostly of the item's topic, some of its category, some of any; -1 where there is none; [I, M]."""
    shape = (len(topic), MAX_TAGS)
    neighbour = topic[:, None] // TOPICS_PER_CATEGORY * TOPICS_PER_CATEGORY + rng.integers(
        0, TOPICS_PER_CATEGORY, size=shape
    )
    kind = rng.random(shape)
    source = np.where(kind < 0.65, topic[:, None], neighbour)
    source = np.where(kind >= 0.85, rng.integers(0, TOPICS, size=shape), source)
    tags_IM = source * TAGS_PER_TOPIC + rng.integers(0, TAGS_PER_TOPIC, size=shape)
    count = rng.choice(MAX_TAGS + 1, size=(len(topic), 1), p=[0.03, 0.12, 0.2, 0.3, 0.2, 0.15])
    return np.where(repeated(tags_IM) | (np.arange(MAX_TAGS) >= count), -1, tags_IM)


def _encode(
    rng: np.random.Generator, latent_ID: np.ndarray, width: int, *, noise: float, offset: float, scale: float
) -> np.ndarray:
    """What an encoder sees of the latent vectors: a linear map, noise, another scale; [I, width]."""
    seen = latent_ID @ rng.normal(size=(LATENT_WIDTH, width)) + rng.normal(0, noise, size=(len(latent_ID), width))
    return (offset + scale * seen).astype(np.float32)


def _ids(rng: np.random.Generator, count: int, above: int) -> np.ndarray:
    """Distinct ids with gaps, in no order that says anything."""
    return rng.permutation(above + np.cumsum(rng.integers(1, 10, size=count)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], length: float) -> np.ndarray:
    """Normal vectors of about the given length."""
    return rng.normal(0, length / np.sqrt(shape[-1]), size=shape)


def _centred(effects: np.ndarray) -> np.ndarray:
    """Without row and column means: only what the two fields do together."""
    return effects - effects.mean(axis=0) - effects.mean(axis=1, keepdims=True) + effects.mean()
