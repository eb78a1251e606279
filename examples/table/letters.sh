#!/usr/bin/env bash
# Fetches the letters (Frey and Slate 1991; UCI Machine Learning Repository, DOI 10.24432/C5ZP40): 20,000 rows of 16 measures of a distorted capital
# letter. By way of Debian's r-cran-mlbench, through apt, and the Python package rdata, which reads R's files. Writes target/letters.csv.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get download -qq r-cran-mlbench && dpkg -x ./*.deb .)
python3 -m venv "$work/python"
"$work/python/bin/pip" install -q rdata
mkdir -p target
"$work/python/bin/python" - "$work/usr/lib/R/site-library/mlbench/data/LetterRecognition.rda" target/letters.csv <<'PYTHON'
import sys
import rdata
table = rdata.read_rda(sys.argv[1])["LetterRecognition"]
assert table.shape == (20000, 17), table.shape
table.to_csv(sys.argv[2], index=False)
PYTHON
sha256sum target/letters.csv
