"""Meshes and the table from logical axes to mesh axes; placement over 8 devices is in `eight_devices.py`."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from tiny import abstract_mesh

from pretrain.core.batch import ArraySpec
from pretrain.core.errors import UserError
from pretrain.sharding.mesh import MeshConfig, make_mesh
from pretrain.sharding.placement import batch_shardings, place_batch
from pretrain.sharding.rules import MESH_AXES, RULES, constrain, partition_spec, use_mesh


@pytest.mark.parametrize(
    ("ways", "devices", "shape"),
    [
        ({}, 8, (1, 1, 8, 1, 1, 1)),
        ({"data": 2, "tensor": 2}, 8, (1, 2, 2, 1, 1, 2)),
        ({"data": -1, "fsdp": 2}, 8, (1, 4, 2, 1, 1, 1)),
        ({"data": 8, "fsdp": 1}, 8, (1, 8, 1, 1, 1, 1)),
        ({}, 1, (1, 1, 1, 1, 1, 1)),
    ],
)
def test_one_axis_takes_the_devices_that_are_left(ways, devices, shape):
    assert MeshConfig(**ways).shape(devices) == shape


@pytest.mark.parametrize("ways", [{"data": 3}, {"fsdp": 4}, {"fsdp": 16}, {"data": 16, "fsdp": -1}])
def test_a_mesh_that_does_not_fit_is_refused(ways):
    with pytest.raises(UserError, match=r"does not fit 8 device\(s\)"):
        MeshConfig(**ways).shape(8)


@pytest.mark.parametrize("ways", [{"data": 0}, {"data": -2}, {"data": -1}, {"tensor": 1.5}, {"data": True}])
def test_sizes_are_whole_numbers_and_one_may_be_left_open(ways):
    with pytest.raises(UserError, match="MeshConfig"):
        MeshConfig(**ways)


def test_the_table_names_mesh_axes_that_exist():
    assert {axis for axes in RULES.values() for axis in axes} == set(MESH_AXES)
    assert tuple(field.name for field in dataclasses.fields(MeshConfig)) == MESH_AXES


def test_partitions_of_known_arrays():
    mesh = abstract_mesh(data=2, fsdp=2, tensor=2)
    cases = {
        (("batch", "length"), (8, 16)): PartitionSpec(("data", "fsdp"), None),
        (("batch", "length"), (2, 16)): PartitionSpec("data", None),  # fsdp does not divide what data left
        (("embed", "mlp"), (32, 48)): PartitionSpec(None, ("tensor", "fsdp")),  # an MLP's hidden values choose first
        (("mlp", "embed"), (48, 32)): PartitionSpec(("tensor", "fsdp"), None),
        (("embed", "mlp"), (32, 50)): PartitionSpec("fsdp", "tensor"),  # where fsdp divides what tensor left
        (("embed", "mlp"), (32, 49)): PartitionSpec("fsdp", None),
        (("embed", "embed"), (32, 32)): PartitionSpec("fsdp", None),  # a mesh axis once per array
        (("norm",), (32,)): PartitionSpec(None),
        ((None, "vocab"), (4, 64)): PartitionSpec(None, "tensor"),
        ((), ()): PartitionSpec(),
    }
    for (axes, shape), expected in cases.items():
        assert partition_spec(axes, shape, mesh) == expected, (axes, shape)


def test_a_name_that_is_not_in_the_table_is_an_error():
    for call in (
        lambda: partition_spec(("batch", "activation_embed"), (8, 32), abstract_mesh(tensor=2)),
        lambda: constrain(np.ones((8, 32)), "batch", "activation_embed"),  # outside a mesh too
    ):
        with pytest.raises(ValueError, match="no logical axis 'activation_embed'"):
            call()


@given(data=st.data(), ways=st.fixed_dictionaries({axis: st.sampled_from([1, 2, 3, 4]) for axis in MESH_AXES}))
@settings(max_examples=100, deadline=None)
def test_every_partition_is_one_the_mesh_can_hold(data, ways):
    axes = tuple(data.draw(st.lists(st.sampled_from([*RULES, None]), max_size=4)))
    shape = tuple(data.draw(st.lists(st.integers(1, 48), min_size=len(axes), max_size=len(axes))))
    used = []
    for dimension, entry in zip(shape, partition_spec(axes, shape, abstract_mesh(**ways)), strict=True):
        names = () if entry is None else (entry,) if isinstance(entry, str) else entry
        assert dimension % math.prod(ways[name] for name in names) == 0
        used += names
    assert len(used) == len(set(used))


def test_constrain_is_for_traces_on_a_mesh_of_several_devices():
    x = np.ones((4, 8))
    assert constrain(x, "batch", "length") is x
    with use_mesh(make_mesh(MeshConfig(), jax.devices()[:1])) as mesh:
        assert constrain(x, "batch", "length") is x
        with use_mesh(None):
            assert constrain(x, "batch", "length") is x
        assert mesh.size == 1
    assert constrain(x, "batch", "length") is x


def test_a_batch_is_placed_as_it_is():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    specs = {"tokens": ArraySpec((4, 8), "int32", ("batch", "length"))}
    batch = {"tokens": np.arange(32, dtype=np.int32).reshape(4, 8), "not in the spec": np.zeros(3)}
    placed = place_batch(batch, batch_shardings(specs, mesh))
    assert placed.keys() == {"tokens"}
    np.testing.assert_array_equal(placed["tokens"], batch["tokens"])
    assert placed["tokens"].dtype == np.int32


def test_parameters_and_their_moments_lie_alike(eight_devices):
    for name, layout in eight_devices["layouts"].items():
        for moment in ("mu", "nu"):
            moments = {
                k.partition(f"{moment}/")[2]: spec for k, spec in layout["opt_state"].items() if f"/{moment}/" in k
            }
            assert moments == layout["params"], (name, moment)
        counters = [spec for k, spec in layout["opt_state"].items() if "/mu/" not in k and "/nu/" not in k]
        assert counters and counters == [[]] * len(counters)


def test_a_device_holds_its_share(eight_devices):
    """Under ZeRO-3 an eighth of the state, under 2 x 2 x 2 a quarter (data replicates); norms are replicated."""
    layouts = eight_devices["layouts"]
    assert layouts["fsdp"]["held"] < 0.15 * layouts["fsdp"]["total"]
    assert layouts["data x fsdp x tensor"]["held"] < 0.35 * layouts["data x fsdp x tensor"]["total"]
    specs = layouts["data x fsdp x tensor"]["params"]
    assert specs["embedding"] == ["tensor", "fsdp"]
    assert specs["decoder/blocks/attention/query/kernel"] == [None, "fsdp", "tensor", None]


def test_initial_parameters_do_not_depend_on_the_mesh(eight_devices):
    first, second = (np.array(layout["embedding"]) for layout in eight_devices["layouts"].values())
    np.testing.assert_array_equal(first, second)


def test_a_checkpoint_goes_from_one_kind_of_parallelism_to_the_next(eight_devices):
    """Parameters and 8-bit moments stay the same to the bit; only on one device is nothing split."""
    chain = eight_devices["chain"]
    assert list(chain) == ["fsdp 8", "tensor 2 x data 2", "1", "stage 4 x data 2"]
    for name, entry in chain.items():
        assert entry["equal"] and entry["laid out"] and (entry["split"] > 0.5) == (name != "1"), (name, entry)


def test_a_checkpoint_moves_between_meshes(eight_devices):
    assert set(eight_devices["checkpoints"]) == {"8", "2 x 4", "1"}
    for name, entry in eight_devices["checkpoints"].items():
        assert entry == {"equal": True, "laid out": True, "params equal": True, "position": {"step": 7}}, name
