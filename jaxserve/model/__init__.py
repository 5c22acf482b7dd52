"""What is served: a named Flax module or function, its params, its signature, its buckets."""

from jaxserve.model.buckets import Bucket
from jaxserve.model.model import Model
from jaxserve.model.signature import TensorSpec

__all__ = ["Bucket", "Model", "TensorSpec"]
