#!/bin/sh
# Planted bugs: applies each patch of this folder to a copy of the tree, runs the command in its
# header, and tells whether the suite caught it. Exit 1 if one survives, does not apply, or does not
# compile.
#
#   crates/e2e/mutants/score.sh            all of them
#   crates/e2e/mutants/score.sh NAME...    these
#
# MUTANTS_TARGET_DIR is where the copy is built, kept between runs if set.
set -eu

mutants=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$mutants/../../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
CARGO_TARGET_DIR=${MUTANTS_TARGET_DIR:-$work/target}
# A mutant is compiled once.
CARGO_INCREMENTAL=0
# A test that fails is what is wanted here: no saved seeds, no long backtraces, and soon.
RUST_BACKTRACE=0
PROPTEST_DISABLE_FAILURE_PERSISTENCE=1
export CARGO_TARGET_DIR CARGO_INCREMENTAL RUST_BACKTRACE PROPTEST_DISABLE_FAILURE_PERSISTENCE

mkdir "$work/tree"
(cd "$root" && git ls-files -z --cached --others --exclude-standard |
    xargs -0 sh -c 'for file do [ ! -e "$file" ] || printf "%s\0" "$file"; done' sh |
    tar --null --files-from=- --create --file=-) | tar --extract --file=- --directory="$work/tree"
cd "$work/tree"
# Newer than whatever an earlier run has left in the target folder: cargo goes by the time.
find . -type f -exec touch {} +

if [ $# -eq 0 ]; then
    set -- $(cd "$mutants" && ls *.patch | sed 's/\.patch$//')
fi

# Each command must pass without a mutant, or it proves nothing.
for name; do
    sed -n 's/^# run: //p' "$mutants/$name.patch"
done | sort -u >"$work/commands"
while read -r command; do
    if ! timeout 600 sh -c "$command" >"$work/log" 2>&1 </dev/null; then
        echo "fails without a mutant: $command"
        tail -n 40 "$work/log"
        exit 1
    fi
done <"$work/commands"

caught=0
total=0
bad=0
for name; do
    total=$((total + 1))
    patch=$mutants/$name.patch
    command=$(sed -n 's/^# run: //p' "$patch")
    if ! patch --strip=1 --forward --silent --fuzz=3 <"$patch" >"$work/log" 2>&1; then
        echo "does not apply  $name"
        bad=$((bad + 1))
        # Whatever a half applied patch has left.
        for file in $(sed -n 's|^+++ b/||p' "$patch"); do
            cp "$root/$file" "$file"
        done
        continue
    fi
    compile=$(echo "$command" | sed 's/ -- .*//')
    if ! timeout 600 sh -c "$compile --no-run" >"$work/log" 2>&1 </dev/null; then
        echo "does not compile  $name"
        tail -n 20 "$work/log"
        bad=$((bad + 1))
    elif timeout 600 sh -c "$command" >"$work/log" 2>&1 </dev/null; then
        echo "SURVIVED        $name: $(sed -n '1s/^# //p' "$patch")"
        bad=$((bad + 1))
    else
        echo "caught          $name"
        caught=$((caught + 1))
    fi
    patch --strip=1 --reverse --silent --fuzz=3 <"$patch"
done
echo "$caught of $total caught"
[ "$bad" -eq 0 ]
