"""Fake CPU devices, for trying a placement of many devices on a machine that has none."""

import jax

from jaxserve.errors import ConfigError


def use_cpu_devices(count: int | None) -> None:
    """Makes jax have `count` CPU devices; None leaves it as it is. Called before jax is used.

    Raises:
        ConfigError: not a positive number, or jax has begun with other devices.
    """
    if count is None:
        return
    if count < 1:
        raise ConfigError(f"--cpu-devices is {count}, but must be at least 1")
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise ConfigError(f"--cpu-devices {count}: jax has begun with other devices ({error})") from error
    if len(jax.devices()) != count:
        raise ConfigError(f"--cpu-devices {count}: jax has {len(jax.devices())}; unset XLA_FLAGS and try again")
