"""Writes the reference, as HTML, from the docstrings: `python docs/build_reference.py [--output DIRECTORY]`.

Needs the `docs` extra (`pip install -e '.[docs]'`). The stable names are those of `jaxserve` itself; every room of the
package has a page beside it.
"""

import argparse
import pkgutil
from pathlib import Path

import pdoc
import pdoc.render

import jaxserve

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Imports the packages and renders every public name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "reference", help="directory to write to")
    output = parser.parse_args().output
    for name in jaxserve.__all__:
        # Public names load on first use; pdoc lists only what a module already holds.
        getattr(jaxserve, name)
    # pdoc follows `__all__`, which names one room; the others are named here. Commands document themselves: --help.
    left_out = {"__main__", "cli", *jaxserve.__all__}
    rooms = [f"jaxserve.{room.name}" for room in pkgutil.iter_modules(jaxserve.__path__) if room.name not in left_out]
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("jaxserve", *rooms, "jaxserve_kernels", output_directory=output)
    print(f"wrote {output / 'index.html'}")


if __name__ == "__main__":
    main()
