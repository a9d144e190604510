#!/usr/bin/env bash
# Prints the path of a Python interpreter that runs, or says why there is none (exit 1).
#   tools/find_python.sh            Python 3.11 or newer: $PYTHON if set, else the first found
#   tools/find_python.sh 3.12       exactly this minor version
# A pyenv shim may exist for a version that is not switched on, so every candidate is run once, and
# pyenv's own folder is looked at last.
set -euo pipefail

wanted="${1:-}"
if [ -n "$wanted" ]; then
  accept="import sys; sys.exit(sys.version_info[:2] != tuple(map(int, '$wanted'.split('.'))))"
  candidates=("python$wanted" python3 python)
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON" "${candidates[@]}"); fi
else
  accept="import sys; sys.exit(sys.version_info < (3, 11))"
  candidates=(python3 python3.14 python3.13 python3.12 python3.11 python)
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
fi
pyenv_root="${PYENV_ROOT:-$HOME/.pyenv}"
if [ -z "${PYTHON:-}" ] || [ -n "$wanted" ]; then
  for path in "$pyenv_root"/versions/"${wanted:-3.1[1-9]}"*/bin/python; do
    candidates+=("$path")
  done
fi

tried=()
for candidate in "${candidates[@]}"; do
  if path="$("$candidate" -c 'import sys; print(sys.executable)' 2>/dev/null)" && [ -n "$path" ]; then
    if "$path" -c "$accept" 2>/dev/null; then
      echo "$path"
      exit 0
    fi
    tried+=("$candidate is $("$path" -c 'import platform; print(platform.python_version())')")
  else
    tried+=("$candidate does not run")
  fi
done
printf 'no Python %s here: %s; install one, or name it: make PYTHON=/path/to/python ...\n' \
  "${wanted:-3.11 or newer}" "$(IFS=';'; echo "${tried[*]}" | sed 's/;/; /g')" >&2
exit 1
