import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{helper}" for helper in ("calls_of_inference", "calls_of_models", "flavours", "plain"))
)
