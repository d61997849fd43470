"""Metadata of the `instanas_tf` distribution; settings of tools are in pyproject.toml."""

import pathlib

from setuptools import find_packages, setup

# tflite-runtime has wheels for glibc Linux and Python up to 3.11 only, and needs numpy 1.
_TFLITE_RUNTIME = (
    "sys_platform == 'linux' and python_version < '3.12'"
    " and (platform_machine == 'x86_64' or platform_machine == 'aarch64')"
)
_NO_TFLITE_RUNTIME = (
    "sys_platform != 'linux' or python_version >= '3.12'"
    " or (platform_machine != 'x86_64' and platform_machine != 'aarch64')"
)
_LITERT = "ai-edge-litert>=1.4,<3"
_JAX = "jax>=0.4.34,<0.8"  # From 0.8 on it needs numpy 2.

# With the second runtime and the second backend, so that both of each are tested.
_TEST = ["pytest>=8.2,<10", "hypothesis>=6.100,<7", "ruff==0.17.*", _LITERT, _JAX]

_README = pathlib.Path(__file__).parent / "README.md"

setup(
    name="instanas_tf",
    version="0.1.0",
    description="Instance-aware neural architecture search in TensorFlow, down to TFLite",
    long_description=_README.read_text(encoding="utf-8") if _README.is_file() else "",
    long_description_content_type="text/markdown",
    author="The instanas_tf authors",
    license="Apache-2.0",
    packages=find_packages(
        include=["instanas_tf", "instanas_tf.*", "export", "android_bench", "android_bench.*"]
    ),
    python_requires=">=3.10,<3.14",
    install_requires=[
        "absl-py>=2.1,<3",
        "importlib_resources>=5.12",  # tensorflow-datasets imports it and does not ask for it.
        "flatbuffers>=24.3",  # As TensorFlow asks for; bundles are merged with it.
        "keras>=3.9,<4",
        "keras-tuner>=1.4.8,<1.5",  # Two of its inner methods are overridden.
        "matplotlib>=3.10,<4",
        "ml-collections>=1.0,<2",
        f"numpy>=1.26,<2; {_TFLITE_RUNTIME}",
        f"numpy>=1.26,<3; {_NO_TFLITE_RUNTIME}",
        "pillow>=10.3",
        "scikit-learn>=1.4,<2",
        "tensorboard>=2.19,<2.22",  # For keras.callbacks.TensorBoard; TensorFlow 2.21 has none.
        "tensorflow>=2.19,<2.22",
        "tensorflow-datasets>=4.9.7,<5",
        # From 1.21 on its generated code refuses the protobuf 5 that TensorFlow 2.19 needs.
        "tensorflow-metadata>=1.16,<1.18",
        f"tflite-runtime==2.14.*; {_TFLITE_RUNTIME}",
        f"{_LITERT}; {_NO_TFLITE_RUNTIME}",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "jax": [_JAX],
        "litert": [_LITERT],
        "test": _TEST,
        "dev": [*_TEST, _LITERT, "build>=1.2,<2"],
    },
    entry_points={
        "console_scripts": [
            "export_tflite=export.export_tflite:main",
            "android_bench=android_bench.__main__:main",
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
