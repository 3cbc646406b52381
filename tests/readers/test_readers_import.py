"""Each reader needs torch and the library of its format alone."""

import subprocess
import sys

import pytest

CODE = """
import sys
def loaded():
    return {"pyarrow", "PIL", "lightning", "softmax_torch.preprocessing"} & sys.modules.keys()
from softmax_torch.readers import idx, numpy_files, tensor_files
assert loaded() == set(), loaded()
from softmax_torch.readers import images
assert loaded() == {"PIL"}, loaded()
from softmax_torch.readers import numpy_tables, delimited, tables
assert loaded() == {"PIL", "pyarrow"}, loaded()
"""


@pytest.mark.slow
def test_readers_import_only_the_library_of_their_format() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
