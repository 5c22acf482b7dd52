"""Set-up that every test shares: jax on eight fake CPU devices, set before anything imports jax."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAXSERVE_PLANS"] = "off"  # so that every test solves its own problems
