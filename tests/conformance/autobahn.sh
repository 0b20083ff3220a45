#!/usr/bin/env bash
#
# Run the Autobahn|Testsuite fuzzing client (RFC 6455 and RFC 7692 conformance)
# against a WebSocket echo server, and hold it to the strict reading of the RFCs.
#
#   autobahn.sh URL OUTDIR [CASES...]
#
#   URL     ws:// or wss:// address of a running server that echoes messages
#   OUTDIR  folder for the reports (index.html, index.json, one file per case,
#           wstest.log); created if missing
#   CASES   case ids or patterns such as 1.1.1 '7.*' (quote them); default: all
#
# Environment, all optional:
#   AUTOBAHN_EXCLUDE  patterns of cases to leave out, separated by blanks or
#                     commas, such as "9.* 12.* 13.*"
#   AUTOBAHN_TIMEOUT  seconds after which the whole run is given up (3600)
#   AUTOBAHN_AGENT    name of the server in the reports ("server")
#   AUTOBAHN_VENV     virtual environment that holds the suite; made on first use
#                     (${XDG_CACHE_HOME:-$HOME/.cache}/autobahntestsuite-VERSION)
#   AUTOBAHN_PYTHON   the Python 2.7 to make it from (default: search for one)
#
# Exit status: 0  every case ran, and its behavior and closing behavior are both OK.
#                 Cases 7.1.6, 7.13.1 and 7.13.2 may be INFORMATIONAL: the RFC leaves
#                 what they try to the server, so that the suite can never say OK.
#              1  some case has another outcome, NON-STRICT among them, or was not
#                 run; the output says which
#              2  wrong usage, or the suite could not be installed or run
#
# The suite needs Python 2.7. Where there is none, one is unpacked beside the
# virtual environment from the packages of Debian 11, taken from the Debian
# mirror that this machine's apt uses; that changes nothing on the system. The
# first run also needs python3 with the venv module, a C compiler and PyPI.

set -euo pipefail

version=25.10.1
virtualenv_version=20.21.1 # the last series that makes Python 2.7 environments is 20.21

die() {
  echo "autobahn: $*" >&2
  exit 2
}

usage() {
  sed -n '3,/^$/s/^# \{0,1\}//p' "$0"
}

case ${1-} in -h | --help) usage && exit 0 ;; esac
[ $# -ge 2 ] || { usage >&2 && exit 2; }

url=$1 outdir=$2
shift 2
[ $# -gt 0 ] || set -- '*'
case $url in ws://?* | wss://?*) ;; *) die "not a ws:// or wss:// address: $url" ;; esac

venv=${AUTOBAHN_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/autobahntestsuite-$version}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
timeout=${AUTOBAHN_TIMEOUT:-3600}
debian=$venv.python2.7 # where Debian's Python 2.7 is unpacked, if it comes to that
stamp=$venv/.installed-$version

# Everything that the suite pulls in, at the versions it is known to work with, but
# for argparse, which Python 2.7 has itself.
constraints() {
  cat <<'END'
attrs==21.4.0
autobahn==0.10.9
Automat==22.10.0
cffi==1.15.1
constantly==15.1.0
cryptography==3.3.2
enum34==1.1.10
hyperlink==21.0.0
idna==2.10
incremental==16.10.1
ipaddress==1.0.23
Jinja2==2.11.3
klein==17.10.0
linecache2==1.0.0
MarkupSafe==1.1.1
pyasn1==0.5.1
pyasn1-modules==0.3.0
pycparser==2.21
PyHamcrest==1.10.1
pyOpenSSL==19.1.0
service-identity==18.1.0
setuptools==44.0.0
six==1.16.0
traceback2==1.4.0
Twisted==19.10.0
txaio==2.1.0
typing==3.10.0.0
ujson==2.0.3
unittest2==1.1.0
Werkzeug==1.0.1
wsaccel==0.6.6
zope.interface==4.6.0
END
}

is_python27() {
  "$1" -c 'import sys, ssl, zlib; sys.exit(sys.version_info[:2] != (2, 7))' >/dev/null 2>&1
}

# Debian's Python 2.7 is run where it was unpacked, so the loader and the compiler
# have to be told.
use_debian_python() {
  local dir
  for dir in "$debian"/usr/lib/*-linux-gnu*; do
    [ ! -d "$dir" ] || export LD_LIBRARY_PATH="$dir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  done
  export CPATH="$debian/usr/include/python2.7:$debian/usr/include${CPATH:+:$CPATH}"
}

# Unpacks Debian 11's Python 2.7 into $debian.
unpack_debian_python() {
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
  local mirror deb apt=$debian/apt
  mirror=$(apt-get --print-uris update | sed -n "s|^'\(.*/debian\)/dists/.*|\1|p" | sort -u | sed 1q)
  [ -n "$mirror" ] || return 1
  rm -rf -- "$debian"
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  echo "deb $mirror bullseye main" >"$apt/sources.list"
  set -- -qq -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=
  apt-get "$@" update || return 1
  (cd "$apt" && apt-get "$@" download python2.7 python2.7-minimal libpython2.7-minimal \
    libpython2.7-stdlib libpython2.7-dev libssl1.1 libffi7) || return 1
  for deb in "$apt"/*.deb; do
    dpkg-deb -x "$deb" "$debian" || return 1
  done
  rm -rf -- "$apt"
  use_debian_python
  is_python27 "$debian/usr/bin/python2.7"
}

find_python27() {
  local candidate
  if [ -n "${AUTOBAHN_PYTHON-}" ]; then
    is_python27 "$AUTOBAHN_PYTHON" || die "not a Python 2.7 with ssl and zlib: $AUTOBAHN_PYTHON"
    python27=$AUTOBAHN_PYTHON
    return
  fi
  # A pyenv shim called python2.7 need not work, so the versions behind it come too.
  for candidate in python2.7 python2 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/2.7*/bin/python2.7; do
    if candidate=$(command -v "$candidate") && is_python27 "$candidate"; then
      python27=$candidate
      return
    fi
  done
  echo "autobahn: no Python 2.7 here, unpacking Debian 11's" >&2
  unpack_debian_python >&2 || die "no Python 2.7 found or unpacked; set AUTOBAHN_PYTHON"
  python27=$debian/usr/bin/python2.7
}

# A transfer may break off.
with_patience() {
  "$@" || "$@" || "$@"
}

install_suite() {
  local work
  if [ -e "$venv" ]; then # an install that was cut short, or someone's other folder
    [ -f "$venv/pyvenv.cfg" ] || rmdir -- "$venv" 2>/dev/null || die "$venv is not a virtual environment"
    rm -rf -- "$venv"
  fi
  find_python27
  echo "autobahn: installing autobahntestsuite $version into $venv" >&2
  work=$(mktemp -d)
  constraints >"$work/constraints.txt"
  if ! {
    python3 -m venv "$work/boot" &&
      with_patience "$work/boot/bin/pip" -q --disable-pip-version-check \
        install "virtualenv==$virtualenv_version" &&
      "$work/boot/bin/virtualenv" -q --no-periodic-update -p "$python27" "$venv" &&
      with_patience "$venv/bin/pip" -q --disable-pip-version-check install \
        -c "$work/constraints.txt" "autobahntestsuite==$version"
  } >"$work/log" 2>&1; then
    tail -n 40 "$work/log" >&2
    rm -rf -- "$work"
    die "could not install the suite"
  fi
  rm -rf -- "$work"
  : >"$stamp"
}

mkdir -p "$(dirname "$venv")" "$outdir"
if [ -d "$debian/usr" ]; then use_debian_python; fi
if [ ! -e "$stamp" ]; then
  ( # one installation at a time
    if command -v flock >/dev/null; then flock 9; fi
    [ -e "$stamp" ] || install_suite
  ) 9>"$venv.lock"
  if [ -d "$debian/usr" ]; then use_debian_python; fi
fi
python=$venv/bin/python

# The suite itself takes no notice of a pattern that matches nothing, skips what is
# left when a connection fails, and ends with status 0 whatever happened. So list
# the cases first, and look for each of them in the report afterwards.
rm -f -- "$outdir/index.json" "$outdir/index.html"
"$python" - "$outdir" "$url" "${AUTOBAHN_AGENT:-server}" "${AUTOBAHN_EXCLUDE-}" "$@" <<'END' || exit 2
import json, os, sys
from autobahntestsuite.case import Cases
from autobahntestsuite.caseset import CaseSet

outdir, url, agent, exclude = sys.argv[1:5]
wanted, exclude = sys.argv[5:], exclude.replace(',', ' ').split()
case_set = CaseSet('Case', 'Case', Cases, {}, {})
for pattern in wanted + exclude:
    found = case_set.resolveCasePatternList([pattern])
    if not found or not set(found) <= set(case_set.CasesById):
        sys.exit('autobahn: no such case: ' + pattern)
spec = {'outdir': outdir, 'servers': [{'agent': agent, 'url': url}],
        'cases': wanted, 'exclude-cases': exclude}
spec['cases'] = case_set.parseSpecCases(spec)
if not spec['cases']:
    sys.exit('autobahn: every case is excluded')
with open(os.path.join(outdir, 'spec.json'), 'w') as f:
    json.dump(spec, f, indent=1)
END

status=0
SECONDS=0
timeout --foreground "$timeout" "$python" -u "$venv/bin/wstest" -m fuzzingclient -s "$outdir/spec.json" \
  >"$outdir/wstest.log" 2>&1 || status=$?
if [ "$status" -ne 0 ] || [ ! -s "$outdir/index.json" ]; then
  tail -n 20 "$outdir/wstest.log" >&2
  if [ "$status" -eq 124 ]; then die "gave up after $timeout seconds"; fi
  die "wstest ended with status $status and no report; see $outdir/wstest.log"
fi

PYTHONIOENCODING=utf-8 "$python" - "$outdir" "$url" "$SECONDS" <<'END'
from __future__ import print_function
import collections, io, json, os, sys
from autobahntestsuite.case import CaseCategories, Cases, CaseSubCategories
from autobahntestsuite.caseset import CaseSet

outdir, url, seconds = sys.argv[1:4]
# The cases of which the suite can only tell what the server does.
INFORMATIONAL = ('7.1.6', '7.13.1', '7.13.2')

def load(name):
    with io.open(os.path.join(outdir, name), encoding='utf-8') as f:
        return json.load(f)

def counts(counter):
    return ', '.join('%d %s' % (counter[k], k) for k in sorted(counter, key=lambda k: (-counter[k], k)))

def passes(case, outcome):
    return outcome == 'OK' or outcome == 'INFORMATIONAL' and case in INFORMATIONAL

def describe(case, result):
    detail = load(result['reportfile'])
    reasons = [detail['result']] * (not passes(case, result['behavior'])) + \
              [detail['resultClose']] * (not passes(case, result['behaviorClose']))
    print('%s: %s, closing %s (%s)' % (case, result['behavior'], result['behaviorClose'], '; '.join(reasons)))
    print('    ' + ' '.join(detail['description'].split('<')[0].split()))

spec = load('spec.json')
results = load('index.json').get(spec['servers'][0]['agent'])
if not results:
    with io.open(os.path.join(outdir, 'wstest.log'), encoding='utf-8') as f:
        print('autobahn: no case was run: ' + f.read().splitlines()[-1], file=sys.stderr)
    sys.exit(2)
behavior, closing = collections.Counter(), collections.Counter()
failed, informational, skipped = [], [], collections.OrderedDict()
for case in spec['cases']:
    result = results.get(case, {'behavior': 'NOT RUN', 'behaviorClose': 'NOT RUN'})
    outcome, close = result['behavior'], result['behaviorClose']
    behavior[outcome] += 1
    closing[close] += 1
    if passes(case, outcome) and passes(case, close):
        if 'INFORMATIONAL' in (outcome, close):
            informational.append(case)
    elif outcome == 'NOT RUN' or outcome == 'UNIMPLEMENTED' and passes(case, close):
        # There is nothing to say of the single case, and they come in the hundreds.
        skipped.setdefault((case.rpartition('.')[0], outcome), []).append(case)
    else:
        failed.append((case, result))

print('Autobahn|Testsuite: %d cases against %s in %s s' % (len(spec['cases']), url, seconds))
print('behavior: ' + counts(behavior))
print('closing:  ' + counts(closing))
if informational:
    print('INFORMATIONAL by their nature: ' + ' '.join(informational))
for case, result in failed:
    describe(case, result)
for (group, outcome), cases in skipped.items():
    span = cases[0] if len(cases) == 1 else '%s to %s (%d cases)' % (cases[0], cases[-1], len(cases))
    title = CaseSubCategories.get(group, CaseCategories.get(group))
    print('%s: %s%s' % (span, outcome, '\n    ' + title if title else ''))
print('report: ' + os.path.join(outdir, 'index.html'))
bad = len(failed) + sum(map(len, skipped.values()))
print('failed: %d of %d cases' % (bad, len(spec['cases'])) if bad else 'passed')
sys.exit(1 if bad else 0)
END
