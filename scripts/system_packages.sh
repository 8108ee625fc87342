#!/bin/sh
# Sees to it that this machine has what the build and its tests need besides Python packages. make calls it first, and
# setup.py with --check.
#
#   scripts/system_packages.sh [--check] PIECE...     the pieces are those of requirements/system.txt
#
# On Debian and Ubuntu root gets what is missing from apt-get; failing that, GoogleTest is fetched. What is missing then,
# or with --check, is named in one sentence with the command that installs it, and the status is 1. PYTHON and CXX select
# another Python and another compiler. It is a shell script, since Python is one of the pieces.
# shellcheck disable=SC2046,SC2086 # lists are words
set -u
CDPATH='' cd -- "$(dirname -- "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
tried= # what was tried in vain, and why

# The compiler that CMake will choose.
compiler() {
  if [ -n "${CXX:-}" ]; then
    echo "$CXX"
  else
    command -v c++ || command -v g++ || command -v clang++ || echo c++
  fi
}

# --- one check a piece ---------------------------------------------------------------------------------------------

compile() {
  printf '#include <omp.h>\n#include <span>\n' |
    $(compiler) ${CXXFLAGS:-} -std=c++20 -fopenmp -fsyntax-only -x c++ -
}

has_compiler() {
  case ${CMAKE_ARGS:-} in
    *CMAKE_CXX_COMPILER* | *CMAKE_TOOLCHAIN_FILE*) return 0 ;; # CMake's to judge
  esac
  compile 2>/dev/null
}

least_python() {
  sed -n 's/^requires-python = ">=\(.*\)"$/\1/p' pyproject.toml
}

has_python() {
  least=$(least_python)
  "$PYTHON" -c "import sys; sys.exit(sys.version_info < (${least%.*}, ${least#*.}))" 2>/dev/null
}

has_venv() {
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null
}

has_headers() {
  "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null
}

has_git() {
  command -v git >/dev/null
}

# The headers, and the library; or the archive that was fetched.
has_googletest() {
  look_up_googletest
  [ -e "$googletest_archive" ] && return
  [ -n "${GTest_DIR:-}${GTest_ROOT:-}${CMAKE_PREFIX_PATH:-}" ] && return # CMake's to judge
  echo '#include <gtest/gtest.h>' | $(compiler) ${CXXFLAGS:-} -std=c++20 -M -x c++ - >/dev/null 2>&1 &&
    echo 'int main() {}' | $(compiler) ${CXXFLAGS:-} -x c++ - -x none -lgtest -o /dev/null 2>/dev/null
}

# lacking PIECE...: those of them that this machine lacks.
lacking() {
  found_missing=
  for piece in "$@"; do
    "has_$piece" || found_missing=${found_missing:+$found_missing }$piece
  done
  echo "$found_missing"
}

is_missing() {
  case " $missing " in
    *" $1 "*) return 0 ;;
    *) return 1 ;;
  esac
}

# --- the list of packages ------------------------------------------------------------------------------------------

# look_up PIECE: sets `package`, its name for the system's package manager, and `description`.
look_up() {
  while read -r name apt_get dnf pacman description; do
    [ "$name" = "$1" ] || continue
    case $manager in
      dnf) package=$dnf ;;
      pacman) package=$pacman ;;
      *) package=$apt_get ;;
    esac
    return 0
  done <requirements/system.txt
  say "system_packages.sh: PIECE must be one of requirements/system.txt, got '$1'"
  exit 2
}

# What the names of $PYTHON's packages begin with: python3, or python3.12 if that is another one.
python_package() {
  case ${PYTHON##*/} in
    python3.[0-9]*) echo "${PYTHON##*/}" && return ;;
  esac
  print='import sys; print("python%d.%d" % sys.version_info[:2])'
  own=$("$PYTHON" -c "$print" 2>/dev/null) || own=
  [ "$own" = "$(python3 -c "$print" 2>/dev/null)" ] && own=
  echo "${own:-python3}"
}

# Where GoogleTest is fetched from and to: cpp_tests/CMakeLists.txt unpacks it.
look_up_googletest() {
  {
    read -r _
    read -r googletest_address
    read -r googletest_sha256
  } <requirements/googletest.txt
  googletest_archive=build/googletest-$googletest_sha256.tar.gz
}

# packages_of PIECE...: their packages, each once.
packages_of() {
  packages=
  for piece in "$@"; do
    look_up "$piece"
    case $package in
      python3*) package=$(python_package)${package#python3} ;;
    esac
    case " $packages " in
      *" $package "*) ;;
      *) packages=${packages:+$packages }$package ;;
    esac
  done
  echo "$packages"
}

# --- what is done about a missing piece ----------------------------------------------------------------------------

# What a compiler that will not do says: " (c++ fails: error: ...)"; nothing if there is none.
complaint() {
  command -v $(compiler) >/dev/null || return
  error=$(compile 2>&1 | grep -m 1 error)
  echo " ($(compiler) fails${error:+: $error})"
}

# What the user selected is for the user to mend.
refuse_selection() {
  if is_missing compiler && [ -n "${CXX:-}" ]; then
    say "hyenarec needs a C++20 compiler with OpenMP, and CXX names none: '$CXX'$(complaint)"
    exit 1
  fi
  is_missing python || return 0
  if command -v "$PYTHON" >/dev/null; then
    answer="answers '$("$PYTHON" --version 2>&1 | head -n 1)'"
  else
    case $PYTHON in
      python3 | python3.[0-9]*) return 0 ;; # may be a package
      *) answer="is no program" ;;
    esac
  fi
  case $PYTHON in
    *.venv*/bin/python) remedy="remove that environment (make clean)" ;;
    *) remedy="select another one, as in make demo PYTHON=python$(least_python)" ;;
  esac
  say "hyenarec needs Python $(least_python) or later, and $PYTHON $answer: $remedy"
  exit 1
}

# Without waiting between tries, so that a machine without network hears of it at once.
apt_get() {
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=1 -o Acquire::Retries::Delay=false \
    -o DPkg::Lock::Timeout=60 "$@" </dev/null
}

# One by one: what can't be had keeps nothing else away.
install_with_apt() {
  echo "Installing with apt-get what this machine lacks: $*"
  log=$(
    apt_get update 2>&1
    for package in "$@"; do
      apt_get install --yes --no-install-recommends "$package" 2>&1
    done
  )
  reason=$(printf '%s\n' "$log" | grep -m 1 'Failed to fetch' || printf '%s\n' "$log" | grep -m 1 '^E:')
  tried=${reason:+apt-get: $reason}
}

fetch_googletest() {
  look_up_googletest
  echo "Fetching GoogleTest, which this machine lacks, from $googletest_address"
  reason=$("$PYTHON" scripts/fetch.py "$googletest_address" "$googletest_sha256" "$googletest_archive" 2>&1) ||
    tried=${tried:+$tried; }$reason
}

say() {
  printf '%s\n' "$1" >&2
}

# fail PIECE...: the one sentence.
fail() {
  names=
  for piece in "$@"; do
    look_up "$piece"
    case $piece in
      compiler) description=$description$(complaint) ;;
      python)
        description="$description $(least_python) or later"
        [ "$PYTHON" = python3 ] || description="$description as $PYTHON"
        ;;
    esac
    names=${names:+$names, }$description
  done
  case $names in
    *", "*) names="${names%, *} and ${names##*, }" ;;
  esac
  [ "$(id -u)" = 0 ] && sudo= || sudo='sudo '
  packages=$(packages_of "$@")
  case $manager in
    apt-get | dnf) command="$sudo$manager install $packages" ;;
    pacman) command="${sudo}pacman -S $packages" ;;
    *) command="install what Debian calls $packages" ;;
  esac
  say "hyenarec needs $names, which this machine lacks${tried:+ ($tried)}: $command"
  exit 1
}

# --- the order of things -------------------------------------------------------------------------------------------

manager=$(command -v apt-get || command -v dnf || command -v pacman || true)
manager=${manager##*/}
check=
if [ "${1:-}" = --check ]; then
  check=yes
  shift
fi
for piece in "$@"; do
  look_up "$piece"
done
missing=$(lacking "$@")

refuse_selection
if [ -n "$missing" ] && [ -z "$check" ] && [ "$manager" = apt-get ] && [ "$(id -u)" = 0 ]; then
  install_with_apt $(packages_of $missing)
  missing=$(lacking $missing)
  refuse_selection
fi
if [ "$missing" = googletest ] && [ -z "$check" ]; then
  fetch_googletest
  missing=$(lacking googletest)
fi
[ -z "$missing" ] || fail $missing
