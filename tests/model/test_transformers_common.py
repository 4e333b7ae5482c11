"""transformers' own tests of models, configurations, processors and image processors, run on our classes.

Its source package holds them, without the files that need the Hub: those are stubs here.
"""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import transformers

STUBS = {
    "transformers_tests/__init__.py": "",
    "transformers_tests/exporters/__init__.py": "",
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "transformers_tests/generation/__init__.py": "",
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "transformers_tests/utils/__init__.py": "",
    "transformers_tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "utils/fetch_hub_objects_for_ci.py": """
from pathlib import Path
import numpy
from PIL import Image

def url_to_local_path(url):
    file = Path(__file__).with_name("image.png")
    if not file.is_file():
        Image.fromarray(numpy.random.RandomState(0).randint(0, 255, (48, 64, 3), dtype=numpy.uint8)).save(file)
    return str(file)
""",
}


@pytest.fixture(scope="module")
def suite(request):
    """A folder with the package `transformers_tests`, of the installed transformers' version."""
    version = transformers.__version__
    folder = Path(request.config.cache.mkdir(f"transformers-tests-{version}"))
    if not (folder / "complete").is_file():
        archive, pip = folder / f"transformers-{version}.tar.gz", [sys.executable, "-m", "pip"]
        source = [*pip, "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", str(folder)]
        for fetch in (
            [*source, f"transformers=={version}"],
            [
                *pip,
                "install",
                "--no-deps",
                "--upgrade",
                "--target",
                str(folder),
                "parameterized",
            ],  # the tests import it
        ):
            got = subprocess.run(fetch, capture_output=True, text=True)
            if got.returncode:
                pytest.skip(f"transformers' tests cannot be fetched: {got.stderr.strip()[-300:]}")
        start = f"transformers-{version}/tests/"
        with tarfile.open(archive) as packed:
            for member in packed:
                if member.isfile() and member.name.startswith(start):
                    target = folder / "transformers_tests" / member.name.removeprefix(start)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(packed.extractfile(member).read())
        for name, text in STUBS.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        (folder / "complete").touch()
        archive.unlink()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("tests", ["GlipModelTest", "GlipImageProcessingTest", "GlipProcessorTest"])
def test_ours_pass_them(suite, tmp_path, tests):
    root = Path(__file__).parents[2]
    file = Path(__file__).with_name("transformers_suite.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", f"{file}::{tests}"]
    command += [f"--junitxml={tmp_path / 'report.xml'}", f"--basetemp={tmp_path / 'base'}"]
    path = os.pathsep.join([str(root), str(suite), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    cases = ElementTree.parse(tmp_path / "report.xml").iter("testcase")
    outcome = {case.get("name"): [child.tag for child in case] for case in cases}
    failed = [name for name, tags in outcome.items() if {"failure", "error"} & set(tags)]
    assert not failed and result.returncode == 0, result.stdout[-4000:]
    assert sum(not tags for tags in outcome.values()) > 10
