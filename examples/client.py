"""Call a jaxserve server. A client needs numpy and msgpack, and imports neither jax nor flax.

python examples/client.py                      # starts a server of its own, calls it, ends both
python examples/client.py 127.0.0.1:8500       # calls `jaxserve serve examples.serve_function:models`
"""

import asyncio
import contextlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import jaxserve

ROOT = Path(__file__).resolve().parents[1]


def call(address: str) -> None:
    """One call after another."""
    with jaxserve.Client(address) as client:
        for model in client.models():
            print(f"model {model['name']}, default deadline {model['deadline_s']} s")
        answer = client.infer("nearest", {"query": np.zeros((2, 16), np.float32)}, deadline_s=5.0)
        print(f"nearest to zero: {answer['index'][0].tolist()}")
        try:
            client.infer("nearest", {"query": np.zeros((2, 16))})
        except jaxserve.errors.InvalidInput as error:
            print(f"not accepted: {error}")


async def call_many(address: str) -> None:
    """A burst: what cannot be in time is refused at once, what turns out to be late expires, the rest is served."""
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(200, 1, 16)).astype(np.float32)
    async with jaxserve.AsyncClient(address) as client:
        calls = [client.infer("nearest", {"query": query}, deadline_s=0.05) for query in queries]
        results = await asyncio.gather(*calls, return_exceptions=True)
    outcomes = Counter("served" if isinstance(result, dict) else type(result).__name__ for result in results)
    print("burst:", dict(outcomes))


@contextlib.contextmanager
def own_server() -> Iterator[str]:
    """Runs `jaxserve serve` in a child process while the block lasts; yields its address."""
    command = [sys.executable, "-m", "jaxserve", "serve", "examples.serve_function:models", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            said = []
            for line in server.stderr:
                said.append(line)
                if line.startswith("on "):
                    yield line.removeprefix("on ").strip()
                    return
            raise RuntimeError(f"the server ended before it served: {''.join(said)}")
        finally:
            server.terminate()  # it drains, then ends
            server.communicate()


def main() -> None:
    """Calls the server at the address given, or one of its own."""
    with contextlib.ExitStack() as stack:
        address = sys.argv[1] if len(sys.argv) > 1 else stack.enter_context(own_server())
        call(address)
        asyncio.run(call_many(address))


if __name__ == "__main__":
    main()
