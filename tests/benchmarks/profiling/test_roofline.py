"""The profile of a training step: operations and bytes counted by hand, and whose time each event is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.inputs import mmctr_shaped
from benchmarks.jobs.train import batches, built
from benchmarks.profiling import step_profile
from benchmarks.profiling.roofline import (
    COPIED,
    Product,
    Reference,
    Sizes,
    gathered_bytes,
    optimizer_bytes,
    products,
    references,
    seconds_by_part,
)
from benchmarks.profiling.step_profile import BACKWARD, part_milliseconds, sizes_of
from ctr.kernels import bag_products
from ctr.training.train_step import TrainStep

MODEL = {"embedding_dim": 4, "vector_dim": 4, "attention_dim": 8, "layers": 2, "rows": 3}
ROWS, USERS, ITEMS, MAX_LEN, BATCH = 3_000, 20, 300, 8, 64
SIZES = Sizes(
    batch=2,
    positions=3,
    item_dim=4,
    tower_dim=3,
    rows=2,
    layers=5,
    distinct_items=5,
    vector_dim=6,
    projected_dim=7,
    dense_parameters=10,
)


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("profile") / "mmctr")
    return str(mmctr_shaped.build(out, ROWS, USERS, ITEMS, MAX_LEN)["feature_set"])


def preset(model: dict[str, Any] | None = None, train: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"model": {**MODEL, **(model or {})}, "train": {"device": "cpu", **(train or {})}}


class TestCounts:
    def test_operations(self):
        operations = dict.fromkeys(("quadratic", "attention", "items"), 0.0)
        for product in products(SIZES):
            operations[product.part] += product.gflop * 1e9
        # 2 B R X^2 L and its two gradients; two products [2, 4] x [4, 4] and theirs; [5, 6] x [6, 7] and one gradient.
        assert operations == pytest.approx(
            {"quadratic": 3 * 2 * 2 * 2 * 9 * 5, "attention": 3 * 2 * (2 * 2 * 4 * 4), "items": 2 * (2 * 5 * 6 * 7)}
        )
        assert Product("items", "forward", 10, 10, 10, times=5).gflop == pytest.approx(1e-5)

    def test_bytes(self):
        assert gathered_bytes(SIZES, 2) == 6 * 2 * 3 * 4 * 2
        assert optimizer_bytes(SIZES) == 7 * 4 * 10

    def test_references_do_the_work_of_each_part(self):
        some = references(SIZES, torch.float32, torch.device("cpu"))
        assert [(one.part, one.times, tuple(one.run().shape)) for one in some] == [
            ("quadratic", 5, (2, 6)),  # [B, X] x [X, R X], and a gradient by each side
            ("quadratic", 5, (2, 3)),
            ("quadratic", 5, (6, 3)),
            ("attention", 2, (2, 4)),
            ("attention", 2, (2, 4)),
            ("attention", 2, (4, 4)),
            ("items", 1, (5, 7)),
            ("items", 1, (7, 6)),
            ("attention", 6, (2, 4)),  # six gathers of histories
            ("optimizer", 7 * 4 * 10 / (2 * 4 * COPIED), (COPIED,)),
        ]

    def test_seconds_of_a_part_add_up(self, monkeypatch: pytest.MonkeyPatch):
        clock = iter([0, 5, 10, 12, 20, 23, 30, 39, 40, 47, 50, 51])
        monkeypatch.setattr("benchmarks.profiling.roofline.time.perf_counter", lambda: next(clock))
        some = [Reference(part, lambda: torch.zeros(1), times) for part, times in (("a", 2), ("b", 1), ("a", 10))]
        # The faster of two each: 2 of 5 and 2, 3 of 3 and 9, 1 of 7 and 1.
        assert seconds_by_part(some, torch.device("cpu")) == {"a": 2 * 2 + 10 * 1, "b": 3}

    def test_sizes_are_those_of_the_model(self, feature_set: str):
        settings, model, data = built(feature_set, BATCH, preset())
        source = batches(data, BATCH, torch.device("cpu"))
        batch = next(source)
        source.close()
        TrainStep(model, settings.train, torch.device("cpu"))
        sizes = sizes_of(model, batch)
        # An item is id, tags and projected vector, 4 each; the tower two levels of 4, the target and the interest.
        assert (sizes.batch, sizes.positions, sizes.item_dim, sizes.tower_dim) == (BATCH, MAX_LEN, 12, 32)
        assert (sizes.rows, sizes.layers, sizes.vector_dim, sizes.projected_dim) == (3, 2, 128, 4)
        assert sizes.distinct_items == len(set(batch.items_U.tolist()))
        assert sizes.dense_parameters == sum(parameter.numel() for parameter in model.parameters())

    @pytest.mark.parametrize("change", [{"merge_rows": True}, {"dropout": 0.0}])
    def test_rows_multiplied_as_one_count_as_one(self, feature_set: str, change: dict[str, Any]):
        _, model, data = built(feature_set, BATCH, preset(change))
        source = batches(data, BATCH, torch.device("cpu"))
        assert sizes_of(model, next(source)).rows == 1
        source.close()

    def test_adam_does_not_read_tables_moved_by_row(self, feature_set: str):
        settings, model, data = built(feature_set, BATCH, preset(train={"table_optimizer": "lazy_adam"}))
        source = batches(data, BATCH, torch.device("cpu"))
        TrainStep(model, settings.train, torch.device("cpu"))
        tables = model.item_encoder.columns.tables  # of ids and tags, each of more than 256 rows
        by_row = sum(table.weight.numel() for table in tables)
        assert by_row > 4 * 2 * 256
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert sizes_of(model, next(source)).dense_parameters == parameters - by_row
        source.close()


def event(name: str, start: float, number: int = -1, parent: Any = None, on_cpu: float = 0, on_cuda: float = 0) -> Any:
    """An event of the profiler; microseconds."""
    made = SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=start),
        sequence_nr=number,
        cpu_parent=parent,
        cpu_children=[],
        cpu_time_total=on_cpu,
        device_time_total=on_cuda,
        device_type=DeviceType.CPU,
    )
    if parent is not None:
        parent.cpu_children.append(made)
    return made


def events() -> list[Any]:
    """Two products of attention, the concatenation behind it, a loss, then their gradients, and a step of Adam."""
    attention = event("part: attention", 0, on_cpu=1_000, on_cuda=99_000)
    backward = [
        event(BACKWARD + "LossBackward", 100, number=4, on_cpu=64_000),
        event(BACKWARD + "CatBackward", 110, number=3, on_cpu=32_000),
        event(BACKWARD + "MmBackward", 120, number=2, on_cpu=2_000),
        event(BACKWARD + "torch::autograd::AccumulateGrad", 130, on_cpu=4_000),
    ]
    adam = event("Optimizer.step#Adam.step", 200, on_cpu=8_000)
    return [
        attention,
        event("aten::mm", 1, number=2, parent=attention, on_cuda=10_000),
        # Makes no node, and so has the number of the next one: the concatenation's.
        event("aten::ge", 2, number=3, parent=attention, on_cuda=20_000),
        event("aten::cat", 20, number=3),
        event("aten::loss", 30, number=4),
        *backward,
        event("MmBackward", 121, number=2, parent=backward[2], on_cuda=40_000),
        event("aten::fused_adam", 201, parent=adam, on_cuda=80_000),
        adam,
    ]


class TestWhoseTimeItIs:
    def test_gradients_are_of_the_part_that_made_their_node(self):
        # 1 forward, 2 gradient, 4 adding it up. Loss and concatenation, 64 and 32, are of no part.
        expected = {"quadratic": 0, "attention": 1 + 2 + 4, "items": 0, "optimizer": 8}
        assert part_milliseconds(events(), on_cuda=False) == expected

    def test_on_cuda_it_is_the_time_of_what_was_called(self):
        range_again = event("part: attention", 0, on_cuda=77_000)
        range_again.device_type = DeviceType.CUDA
        expected = {"quadratic": 0, "attention": 10 + 20 + 40, "items": 0, "optimizer": 80}
        assert part_milliseconds([*events(), range_again], on_cuda=True) == expected

    def test_each_gradient_of_a_real_step(self, feature_set: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(bag_products, "FEW_ROWS", 0)  # as in a batch of many items
        settings, model, data = built(feature_set, BATCH, preset())
        source = batches(data, BATCH, torch.device("cpu"))
        take_step = TrainStep(model.train(), settings.train, torch.device("cpu"))
        modules = {"items": model.item_encoder, "quadratic": model.network, "attention": model.attention}
        with step_profile._ranges(modules), torch_profile(activities=[ProfilerActivity.CPU]) as profiler:
            take_step([next(source)], 1e-3, 0)
        source.close()
        recorded = list(profiler.events())
        gradients = [one for one in recorded if one.name.startswith(BACKWARD)]
        others = [one for one in recorded if one not in gradients]
        without = part_milliseconds(others, on_cuda=False)
        assert all(milliseconds > 0 for milliseconds in without.values())

        def parts_of(node: str) -> set[str]:
            some = [one for one in gradients if one.name == BACKWARD + node]
            assert some, node
            return {
                part
                for part, grown in part_milliseconds([*others, *some], on_cuda=False).items()
                if grown > without[part]
            }

        assert parts_of("_QuadraticStepBackward") == parts_of("AddmmBackward0") == {"quadratic"}
        assert parts_of("_DotsBackward") == {"attention"}
        assert parts_of("_SumsBackward") == {"attention", "items"}  # of histories, and of tags
        assert parts_of("MmBackward0") == {"attention", "items"}  # of queries and interests, and of vectors
        assert parts_of("EmbeddingBackward0") == {"items"}
        assert parts_of("BinaryCrossEntropyWithLogitsBackward0") == set()


def test_the_share_is_the_median_of_turns_in_which_step_and_least_time_are_of_one_moment():
    of_parts = {"quadratic": 3.0, "attention": 1.0, "items": 1.0, "optimizer": 100.0}
    slow = {part: 4 * seconds for part, seconds in of_parts.items()}
    # A machine of a quarter of the speed in two turns; one step that was held up.
    assert step_profile.share_of_roofline([(of_parts, 10), (slow, 40), (slow, 200), (of_parts, 8)]) == 0.5


def test_the_parts_do_not_overlap(feature_set: str):
    done = step_profile.profile_one(feature_set, BATCH, preset())
    *parts, step = done["parts"]
    names = [row["name"] for row in parts]
    assert names == ["quadratic", "attention", "items", "optimizer", "loader", "other"]
    # `other` is what the parts leave of the step: were a millisecond counted twice, little or less than nothing.
    assert min(row["ms"] for row in parts) >= 0
    assert done["share"] > 0
    assert step["gflop"] == pytest.approx(sum(row["gflop"] or 0 for row in parts), abs=0.2)
