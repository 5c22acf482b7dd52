"""Package metadata. Tool configuration lives in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

DEMO = ["safetensors>=0.4", "tokenizers>=0.20"]
PLOT = ["matplotlib>=3.9"]
OTEL = ["opentelemetry-sdk>=1.25", "opentelemetry-exporter-otlp-proto-http>=1.25"]
TEST = [
    *DEMO,
    *PLOT,
    *OTEL,
    "grpcio-tools>=1.65",
    "hypothesis>=6.100",
    "openai>=1.50",
    "playwright>=1.45",
    "pytest>=8.2",
    "pytest-xdist>=3.6",
    "schemathesis>=4",
    "tritonclient[all]>=2.60",
    "trustme>=1.1",
]
DOCS = ["pdoc>=15"]
# pyright[nodejs] brings Node.js as a wheel; without it pyright downloads one at its first run.
DEV = [*TEST, *DOCS, "pre-commit>=4", "pyright[nodejs]>=1.1.380", "ruff>=0.12"]

setup(
    name="jaxserve",
    version="0.1.0",
    description="Serve many Flax models on few accelerators within latency deadlines",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["jaxserve", "jaxserve.*"]),
        *find_packages(where="kernels", include=["jaxserve_kernels", "jaxserve_kernels.*"]),
    ],
    package_dir={"jaxserve": "jaxserve", "jaxserve_kernels": "kernels/jaxserve_kernels"},
    package_data={
        "jaxserve": ["py.typed"],
        "jaxserve.protocols": ["*.proto", "inference.binpb"],
        "jaxserve.server.page": ["*.html", "*.css", "*.js"],
        "jaxserve_kernels": ["py.typed"],
    },
    install_requires=[
        "aiohttp>=3.13",
        "click>=8.1",
        "flax>=0.12",
        # From 1.84 on one header that is not UTF-8 stops a server of grpc.aio for good.
        "grpcio>=1.65,<1.84",
        "jax>=0.10.2",
        "ml_dtypes>=0.5",
        "msgpack>=1.0.8",
        "numba>=0.61",
        "numpy>=2.0",
        "orjson>=3.10",
        "prometheus-client>=0.20",
        "protobuf>=5",
        "python-json-logger>=3",
        "rich>=13",
        "scipy>=1.13",
        "uvloop>=0.21; platform_system != 'Windows'",
    ],
    extras_require={"demo": DEMO, "plot": PLOT, "otel": OTEL, "test": TEST, "docs": DOCS, "dev": DEV},
    entry_points={"console_scripts": ["jaxserve = jaxserve.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
