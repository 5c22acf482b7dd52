"""Set-up that every test shares: jax on eight fake CPU devices, set before anything imports jax."""

import os

import hypothesis

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAXSERVE_PLANS"] = "off"  # so that every test solves its own problems

hypothesis.settings.register_profile("jaxserve", deadline=None)  # no test is about how long something takes
hypothesis.settings.load_profile("jaxserve")
