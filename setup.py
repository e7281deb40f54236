"""The optional C kernel; everything else is in pyproject.toml. If it does not compile, the package is installed without it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "perceivers.kernels._separable",
            ["perceivers/kernels/separable.c"],
            # No -ffast-math: infinities and NaN are used here. Contraction makes a * b + c one operation.
            extra_compile_args=["-O3", "-ffp-contract=fast", "-fno-math-errno", "-pthread", "-Wno-psabi"],
            extra_link_args=["-pthread", "-lm"],
            optional=True,
        )
    ]
)
