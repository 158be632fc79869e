"""Builds the compiled kernels of deformable attention.

usage: python setup.py build_ext --inplace     beside this file, where models.ops finds them
       python setup.py install                 into the environment
"""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

HERE = Path(__file__).parent
sources = sorted(path.relative_to(HERE).as_posix() for path in HERE.glob("src/**/*.cpp"))

setup(
    name="leandetr_ops",
    version="1.0",
    ext_modules=[
        CppExtension(
            "leandetr_ops",
            sources,
            extra_link_args=["-fopenmp"],
            extra_compile_args=[
                "-O3",
                "-fopenmp",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-ffp-contract=fast",
                "-Wno-psabi",
            ],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
