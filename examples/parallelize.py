"""Shard a module and cut it into stages, without saying how.

    python examples/parallelize.py                                       # on four fake CPU devices
    jaxserve explain examples.parallelize:model --intra-op 2 --inter-op 2      # what becomes of it, and why

`jaxserve.parallelize` decides how each operation is split over the devices of a stage, and where the module is cut. The
module itself knows nothing of it.
"""

import jax
import numpy as np
from flax import linen as nn

import jaxserve

DEVICES = 4


class Block(nn.Module):
    """A dense layer to four times the width and back, beside the way past it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Values of the shape of `x`, float32 [batch, width]."""
        wide = nn.gelu(nn.Dense(4 * x.shape[-1], name="up")(nn.LayerNorm(name="norm")(x)))
        return x + nn.Dense(x.shape[-1], name="down")(wide)


class Blocks(nn.Module):
    """Six blocks and a head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores [batch, 10] of `x`, float32 [batch, 256]."""
        for number in range(6):
            x = Block(name=f"layers_{number}")(x)
        return nn.Dense(10, name="head")(x)


def model() -> jaxserve.Model:
    """The module with random weights."""
    module = Blocks()
    variables = module.init(jax.random.key(0), np.zeros((1, 256), np.float32))
    return jaxserve.Model.from_linen(
        "blocks",
        module,
        variables,
        inputs={"x": jaxserve.TensorSpec(("batch", 256), "float32")},
        batch_sizes=(1, 8),
    )


def main() -> None:
    """Runs it whole on one device and in two stages of two, and compares."""
    jax.config.update("jax_num_cpu_devices", DEVICES)  # on a machine with accelerators, leave this out
    blocks = model()
    x = np.random.default_rng(0).normal(size=(5, 256)).astype(np.float32)

    whole = jaxserve.parallelize(blocks)
    expected = whole({"x": x})
    whole.close()

    pipeline = jaxserve.parallelize(blocks, jaxserve.ParallelConfig(intra_op=2, inter_op=2))
    for number, stage in enumerate(pipeline.plan.stages[-1]):  # at the largest bucket
        collectives = ", ".join(f"{count} {each.kind}" for each, count in stage.transfers.items())
        print(
            f"stage {number}: {len(stage.steps)} operations on {pipeline.config.intra_op} devices with "
            f"{stage.weight_bytes / 1e6:.2f} MB of weights each, {collectives or 'no collectives'}"
        )
    found = pipeline({"x": x})
    pipeline.close()

    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    print(f"equal: {found.shape} within {np.abs(found - expected).max():.0e}")


if __name__ == "__main__":
    main()
