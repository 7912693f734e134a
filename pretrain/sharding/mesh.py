"""The device mesh: how many ways each kind of parallelism is used, checked against the devices that are there."""

import dataclasses
import math
from collections.abc import Sequence

import gin
import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.sharding.rules import MESH_AXES


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Ways of parallelism; one of them may be -1, which takes all devices the others leave.

    Attributes:
        stage: pipeline stages.
        data: replicas of the parameters, each on its own part of the batch.
        fsdp: as data, with parameters and optimizer state split (ZeRO-3).
        context: parts of the sequence.
        expert: groups of experts.
        tensor: parts of each matrix product.
    """

    stage: int = 1
    data: int = 1
    fsdp: int = -1
    context: int = 1
    expert: int = 1
    tensor: int = 1

    def __post_init__(self):
        check_fields(self)
        ways = dataclasses.astuple(self)
        check(
            all(w >= 1 or w == -1 for w in ways),
            f"MeshConfig sizes are whole numbers >= 1, or -1 for the rest; got {dataclasses.asdict(self)}",
        )
        check(ways.count(-1) <= 1, f"MeshConfig: only one axis can be -1; got {dataclasses.asdict(self)}")

    def shape(self, device_count: int) -> tuple[int, ...]:
        """Sizes in the order of `MESH_AXES`, with -1 filled in.

        Raises:
            UserError: the sizes do not multiply to the number of devices.
        """
        ways = [getattr(self, axis) for axis in MESH_AXES]
        fixed = math.prod(w for w in ways if w != -1)
        shape = tuple(device_count // fixed if w == -1 else w for w in ways)
        check(
            math.prod(shape) == device_count,
            f"a mesh of {dict(zip(MESH_AXES, ways, strict=True))} does not fit {device_count} device(s): "
            "the sizes must multiply to the number of devices (set one to -1 to fill it in)",
        )
        return shape


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (or the given ones), axes as in `MESH_AXES`, ordered for the hardware's network.

    With several slices of TPUs the first of stage, data and fsdp that their number divides goes across them: it is the
    outer part of that axis, so only it uses the network between slices.
    """
    devices = list(devices) if devices is not None else jax.devices()
    shape = config.shape(len(devices))
    axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    ways = dict(zip(MESH_AXES, shape, strict=True))
    if slices == 1:
        try:
            return jax.make_mesh(shape, MESH_AXES, axis_types=axis_types, devices=devices)
        except NotImplementedError:  # a size is no product of the slice's sides: one side is divided among two axes
            placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
            return Mesh(placed, MESH_AXES, axis_types=axis_types)
    across = next((axis for axis in ("stage", "data", "fsdp") if ways[axis] % slices == 0), None)
    check(across is not None, f"{slices} slices need a multiple of {slices} ways of stage, data or fsdp; got {ways}")
    outer = [slices if axis == across else 1 for axis in MESH_AXES]
    inner = [size // factor for size, factor in zip(shape, outer, strict=True)]
    return Mesh(mesh_utils.create_hybrid_device_mesh(inner, outer, devices), MESH_AXES, axis_types=axis_types)
