# The environment of ./ops/run and ./ops/test: made once from a lock file, made anew when it changes.
# Sourced with `root` set to the repository. Needs bash and Python, and writes to stderr only.

# What the caller's shell has for another Python must not leak into this one.
unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV VIRTUAL_ENV

venv=$root/.venv
[[ -t 2 ]] && line_end=$'\e[K\r' || line_end=$'\n'

say() { printf '%s\n' "$*" >&2; }
stop() { say "$@"; exit 1; }

# Sets `python` to an interpreter that can make the environment, or says what to install.
find_python() {
  local name found=
  for name in python3 python3.13 python3.12 python3.11; do
    command -v "$name" >/dev/null || continue
    "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info)' 2>/dev/null || continue
    found=$name
    "$name" -c 'import venv, importlib.util as u, sys; sys.exit(not (u.find_spec("ensurepip") or u.find_spec("pip")))' \
      2>/dev/null && { python=$name; return; }
  done
  [[ -n $found ]] && stop "$found has no venv or no pip. Install them, on Debian: apt-get install python3-venv"
  stop "Python 3.11 or newer is needed. Install it, on Debian 12 or newer: apt-get install python3 python3-venv"
}

# What the environment must agree with: where it is, which interpreter it points to, and the lock file.
stamp() { printf '%s\n%s\n%s\n' "$venv" "$(readlink -f "$venv/bin/python" 2>/dev/null)" "$(<"$root/ops/$1")"; }
is_ready() { [[ ! -e $venv/unfinished && -r $venv/$1.stamp && $(<"$venv/$1.stamp") == "$(stamp "$1")" ]]; }

# Install what the lock file says; a second process waits for the first, and what was interrupted is redone.
set_up() {
  is_ready "$1" && return
  find_python
  [[ -w $root ]] || stop "$root is not writable for this user, and .venv is to be made there"
  exec 9<"$root"
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null || {
    say 'waiting for another set-up of .venv to end'
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
  }
  is_ready "$1" || install "$1"
  exec 9<&-
}

install() {
  local log=$venv/setup.log
  is_sound "$1" || { rm -f "$venv/pyvenv.cfg" && rm -rf "$venv"; }
  mkdir -p "$venv" && : > "$venv/unfinished"
  say 'setting up .venv: once, about half a minute'
  make_venv >"$log" 2>&1 || failed "$log"
  install_packages "$1" 9<&- || failed "$log"
  link
  stamp "$1" > "$venv/$1.stamp"
  rm "$venv/unfinished"
}

# An environment that is unfinished or was moved, or whose interpreter is gone or another, is of no use.
is_sound() {
  [[ ! -e $venv/unfinished && -f $venv/pyvenv.cfg ]] && "$venv/bin/python" -c 'import site' 2>/dev/null || return 1
  [[ ! -r $venv/$1.stamp || $(head -n 2 "$venv/$1.stamp") == "$(stamp "$1" | head -n 2)" ]]
}

make_venv() {
  [[ -f $venv/pyvenv.cfg ]] && return
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv "$venv"
  else
    "$python" -m venv --without-pip "$venv"
  fi
}

# Compiling in parallel, and not what only tests of other projects import, saves a third of the time.
install_packages() {
  local pip=("$venv/bin/python" -m pip)
  "${pip[@]}" --version >/dev/null 2>&1 || pip=("$python" -m pip --python "$venv/bin/python")
  [[ -n ${HOME:-} ]] || export PIP_NO_CACHE_DIR=1
  "${pip[@]}" install --require-hashes --no-deps --only-binary :all: --no-compile --no-input --progress-bar off \
    --disable-pip-version-check --root-user-action ignore -r "$root/ops/$1" 2>&1 | tee "$log" | progress "$1" || return
  "$venv/bin/python" -m compileall -q -j 0 -x '/(faker|pip|setuptools)/' "$venv"/lib/python3.*/site-packages >/dev/null
}

failed() {
  tail -n 15 "$1" >&2
  say "Setting up .venv failed; the whole log is in $1."
  stop 'Packages come from the index that pip is configured for: is it reachable? Then start again.'
}

progress() {
  local word name rest done=0 all
  all=$(grep -c '^[a-z0-9].*==' "$root/ops/$1")
  while read -r word name rest; do
    name=${name##*/}
    [[ $name == *.whl ]] && name=${name%%-*}
    case $word in
      Collecting | Requirement | Processing | Ignoring)
        done=$((done + 1))
        printf '  %d of %d  %s%s' "$done" "$all" "${name%%[=:;]*}" "$line_end" >&2
        ;;
      Installing) printf '  installing%s' "$line_end" >&2 ;;
    esac
  done
  [[ $line_end == $'\n' ]] || printf '\e[K' >&2
}

# The project itself is used from where it is: its folder on Python's path, and the command.
link() {
  local site=("$venv"/lib/python3.*/site-packages)
  printf '%s\n' "$root" > "${site[0]}/chatledger.pth"
  cat > "$venv/bin/chatledger" <<END
#!/bin/sh
'''exec' "$venv/bin/python" "\$0" "\$@"
' '''
import sys

from ops.main import main

sys.argv[0] = "chatledger"
sys.exit(main())
END
  chmod +x "$venv/bin/chatledger"
}
