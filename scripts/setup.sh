#!/bin/sh
# Makes a working environment in the folder given: the package (editable) with the tools of its tests.
set -eu
venv=${1:-.venv}
python=${PYTHON:-python3}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check"
$pip install -q --upgrade "pip>=23" "setuptools>=68" wheel

# A torch that is there already stays; else the one the tests were last run with.
"$venv/bin/python" -c "import torch" 2>/dev/null || $pip install -q -c constraints.txt torch
# The environment builds the engine itself, so that an editable install can rebuild it.
$pip install -q "scikit-build-core>=0.10" "cmake>=3.18" ninja
torch=$("$venv/bin/python" -c "import torch; print(torch.__version__.split('+')[0])")
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
{ grep -v '^torch==' constraints.txt || true; echo "torch==$torch"; } >"$pins"
$pip install -q -c "$pins" --no-build-isolation -e ".[dev,sfm,video]"
"$venv/bin/featuresplat" doctor
