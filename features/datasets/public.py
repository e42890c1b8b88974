"""The table of public data sets: owner, terms, address, and which contract reads them."""

from __future__ import annotations

from dataclasses import dataclass

from features.contract.settings import unknown_key
from features.errors import ConfigError


@dataclass(frozen=True)
class Archive:
    """A zip file that anyone may fetch who keeps to the terms.

    Args:
        url: where it is.
        folder: the one folder inside it.
        size: of the zip file in bytes, or None where its owner replaces it now and then.
        sha256: of the zip file, or None likewise.
    """

    url: str
    folder: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Dataset:
    """One public data set.

    Args:
        title: what it is, in a few words.
        owner: whose it is.
        terms: what they allow, in short; the page says all of it.
        page: the owner's page.
        size: how large it is, for people.
        contract: the YAML that reads it.
        archive: what can be fetched at once; None where its owner wants to know who takes it.
        steps: what to do by hand otherwise, one line each.
    """

    title: str
    owner: str
    terms: str
    page: str
    size: str
    contract: str
    archive: Archive | None = None
    steps: tuple[str, ...] = ()


GROUPLENS = "GroupLens, University of Minnesota"
GROUPLENS_TERMS = (
    "research use with acknowledgement; no redistribution, and no commercial use without permission; cite Harper and "
    "Konstan 2015, doi.org/10.1145/2827872"
)
MOVIELENS = "https://files.grouplens.org/datasets/movielens"

DATASETS: dict[str, Dataset] = {
    "movielens": Dataset(
        title="MovieLens 100K as parquet, with film details, sentence vectors and poster vectors",
        owner=GROUPLENS,
        terms=GROUPLENS_TERMS,
        page="https://grouplens.org/datasets/movielens/100k/",
        size="4 MB",
        contract="conf/data/movielens.yaml",
        steps=(
            "Nobody publishes it in this form: the header of the contract lists the five files and their columns.",
            "Without vectors of your own, take movielens_100k: `quadrank download movielens_100k`.",
        ),
    ),
    "movielens_100k": Dataset(
        title="MovieLens 100K: 100,000 ratings of 1,682 films by 943 users",
        owner=GROUPLENS,
        terms=GROUPLENS_TERMS,
        page="https://grouplens.org/datasets/movielens/100k/",
        size="4.9 MB, 15 MB unpacked",
        contract="conf/data/movielens_100k.yaml",
        archive=Archive(
            url=f"{MOVIELENS}/ml-100k.zip",
            folder="ml-100k",
            size=4_924_029,
            sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        ),
    ),
    "movielens_1m": Dataset(
        title="MovieLens 1M: 1,000,209 ratings of 3,883 films by 6,040 users",
        owner=GROUPLENS,
        terms=GROUPLENS_TERMS,
        page="https://grouplens.org/datasets/movielens/1m/",
        size="5.9 MB, 24 MB unpacked",
        contract="conf/data/movielens_1m.yaml",
        archive=Archive(
            url=f"{MOVIELENS}/ml-1m.zip",
            folder="ml-1m",
            size=5_917_549,
            sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        ),
    ),
    "movielens_latest": Dataset(
        title="MovieLens latest, small: about 100,000 ratings of 9,700 films by 610 users",
        owner=GROUPLENS,
        terms=GROUPLENS_TERMS,
        page="https://grouplens.org/datasets/movielens/latest/",
        size="1 MB, 3 MB unpacked; its owner replaces it now and then, so there is no fixed hash",
        contract="conf/data/movielens_latest.yaml",
        archive=Archive(url=f"{MOVIELENS}/ml-latest-small.zip", folder="ml-latest-small"),
    ),
    "mind": Dataset(
        title="MIND, Microsoft News: impressions of a news page with all articles shown",
        owner="Microsoft",
        terms="Microsoft Research License Terms: research only, not commercial, no redistribution",
        page="https://msnews.github.io",
        size="MIND-small 80 MB, MIND-large 1.3 GB, zipped",
        contract="conf/data/mind.yaml",
        steps=(
            "Accept the terms on the page and fetch MINDsmall_train.zip (and MINDsmall_dev.zip).",
            "Unpack each into a folder of its own: behaviors.tsv and news.tsv are read, the other files are not.",
            "One of them: --root FOLDER. Both: docs/datasets/mind.md has the command.",
        ),
    ),
    "mmctr": Dataset(
        title="MicroLens_1M_MMCTR, the WWW 2025 multimodal CTR challenge: 3.6 million rows, 91,717 videos with vectors",
        owner="the MicroLens authors (Westlake University) and the organisers of the EReL@MIR workshop",
        terms="those of the challenge and of MicroLens: academic research; read them on the page",
        page="https://erel-mir.github.io/challenge/mmctr-track2",
        size="about 1 GB without the pictures",
        contract="conf/data/mmctr.yaml",
        steps=(
            "Register for the challenge (https://www.codabench.org/competitions/5372/), accept its terms, and follow "
            "its link to the data (https://recsys.westlake.edu.cn/MicroLens_1M_MMCTR/).",
            "Put {train,valid,test}.parquet, item_info.parquet and item_feature.parquet into one folder.",
            "Name it: data/MicroLens_1M_MMCTR is the default, --root FOLDER any other.",
        ),
    ),
    "ebnerd": Dataset(
        title="EB-NeRD, Ekstra Bladet: impressions of a Danish news site (RecSys Challenge 2024)",
        owner="JP/Politikens Hus",
        terms="EB-NeRD's own agreement: research, not commercial, no redistribution",
        page="https://recsys.eb.dk",
        size="demo 20 MB, small 80 MB, large 3 GB, zipped",
        contract="conf/data/ebnerd.yaml",
        steps=(
            "Accept the agreement on the page with your mail address and fetch ebnerd_small.zip (or _demo, _large).",
            "Unpack it: train/ and validation/ each hold behaviors.parquet and history.parquet, articles.parquet lies "
            "beside them.",
            "Name the folder: data/ebnerd_small is the default, --root FOLDER any other.",
        ),
    ),
}


def find_dataset(name: str) -> Dataset:
    """The data set of this name. Raises ConfigError naming the nearest one, or all."""
    if name not in DATASETS:
        raise ConfigError(f"{name}: no such data set. {unknown_key(name, list(DATASETS)).replace('keys', 'names')}")
    return DATASETS[name]
