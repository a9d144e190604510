#!/usr/bin/env bash
# Brings a virtual environment to what a target needs, from whatever state it is in.
#   tools/environment.sh VENV EXTRAS [CONSTRAINTS]
# Uses uv when it is on PATH, else venv and pip. A stamp inside VENV holds the digest of everything that
# decides its content, so a second run does nothing. An environment whose interpreter does not run, whose
# installation was interrupted, or that lost files is built anew.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="$1" extras="$2" constraints="${3:-}"
python="$venv/bin/python"
marker="$venv.installing"
stamp="$venv/.installed/$extras"

if command -v flock >/dev/null; then
  exec 9>"$venv.lock"   # two targets of one `make -j` may want the same environment
  flock 9
fi

base="$(tools/find_python.sh ${WANTED_PYTHON:-})"
if command -v uv >/dev/null; then installer=uv; else installer=pip; fi
# pip's extra place to look for files holds for uv too
if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"; fi

digest() {
  { "$base" -c 'import sys; print(sys.version_info[:2])'; pwd; echo "$extras $constraints"
    cat pyproject.toml requirements/*.txt tools/environment.sh; } | sha256sum
}

# Prints why the environment cannot be built upon; fails when it can.
why_unusable() {
  if [ ! -x "$python" ] || ! "$python" -c '' 2>/dev/null; then echo "its interpreter does not run"
  elif [ "$("$python" -c 'import sys; print(sys.version_info[:2])')" != \
         "$("$base" -c 'import sys; print(sys.version_info[:2])')" ]; then echo "it is of another Python"
  elif [ -e "$marker" ]; then echo "its installation was interrupted"
  elif [ "$installer" = pip ] && ! "$python" -m pip --version >/dev/null 2>&1; then echo "it has no pip"
  else
    "$python" - <<'PYTHON'
import importlib.metadata, os, sys
for dist in importlib.metadata.distributions(path=[p for p in sys.path if "site-packages" in p]):
    for file in dist.files or ():
        if not file.name.endswith(".pyc") and not os.path.exists(dist.locate_file(file)):
            sys.exit(print(f"{dist.name} lost {file}"))
sys.exit(1)
PYTHON
  fi
}

if [ -e "$venv" ] || [ -L "$venv" ]; then
  if reason="$(why_unusable)"; then
    echo "$venv: $reason; building it anew"
    rm -rf "$venv"
  fi
fi
rm -f "$marker"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(digest)" ]; then exit 0; fi

echo "$venv: installing gimlax[$extras]${constraints:+ under $constraints} with $installer ($base);" \
  "the first time this takes minutes"
touch "$marker"
if [ ! -e "$venv" ]; then
  if [ "$installer" = uv ]; then
    uv venv --quiet --python "$base" "$venv"
  else
    "$base" -m venv "$venv" || {
      rm -rf "$venv"
      echo "$base cannot make a virtual environment: install its venv module" \
        "(Debian, Ubuntu: apt install python3-venv) or uv" >&2
      exit 1
    }
  fi
fi
install() {
  if [ "$installer" = uv ]; then
    uv pip install --quiet --python "$python" "$@"
  else
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
  fi
}
install ${constraints:+-c "$constraints"} -e ".[$extras]"
install --no-deps --require-hashes -r requirements/demo.txt
for extra in ${extras//,/ }; do
  unresolved="requirements/$extra.no-deps.txt"
  if [ -f "$unresolved" ]; then install --no-deps --require-hashes -r "$unresolved"; fi
done
mkdir -p "$venv/.installed"
digest >"$stamp"
rm "$marker"
