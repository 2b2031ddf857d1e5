#!/usr/bin/env bash
# Checks that the book refers to things that exist: every relative link leads to a file, and every
# link to a source file whose text is a name, such as [`a_test`](path/file.rs), leads to a file that
# defines that function or is the module of that name. A proof in docs/fidelity.md must be a test or
# a check of the self-test, and every row of its tables must have a proof or `-`. The same holds for
# docs/faults.md, where each column from `simulated` on needs a proof, and which has a row for each
# `fault=` of the kernel, as scripts/selftest.sh has a boot. Prose has at most 100 columns.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

links=0
broken=0
complain() {
    printf '%s: %s\n' "$1" "$2" >&2
    broken=$((broken + 1))
}

for page in ./*.md docs/*.md docs/decisions/*.md {*,guest/*,vmm/*}/README.md; do
    [ -f "$page" ] || continue
    # Tables, samples, markers for scripts, and text printed by the command may be wider.
    wide=$(awk '/^<!-- book:/ { printed = 1 } /^<!-- \/book/ { printed = 0 }
        length > 100 && !printed && !/^(\||    |<!--)/ { printf " %d", FNR }' "$page")
    [ -z "$wide" ] || complain "$page" "more than 100 columns in line$wide"
    # Code blocks show commands and output, not links.
    text=$(sed '/^ *```/,/^ *```/d' "$page")
    while IFS= read -r link; do
        [ -n "$link" ] || continue
        label=${link%%](*}
        label=${label#[}
        target=${link#*](}
        target=${target%)}
        target=${target%%#*}
        case $target in
            '' | http://* | https://*) continue ;;
        esac
        links=$((links + 1))
        file=$(dirname "$page")/$target
        if [ ! -e "$file" ]; then
            complain "$page" "no file $target"
            continue
        fi
        name=${label//\`/}
        [ "$label" = "\`$name\`" ] || continue
        case $name:$target in
            *[!a-z0-9_]*:* | "$name:"*"/$name.rs" | "$name:"*"/$name/mod.rs") ;;
            *.rs) grep -qE "fn $name\b" "$file" || complain "$page" "no function $name in $target" ;;
        esac
        case $page:$name:$target in
            *:*[!a-z0-9_]*:* | *:*/selftest/* | *:*/fault_test.rs) ;;
            docs/fidelity.md:*.rs | docs/faults.md:*.rs)
                grep -B3 -E "fn $name\b" "$file" | grep -qF '#[test]' || complain "$page" "$name in $target is no test"
                ;;
        esac
    done < <(grep -oE '\[[^]]*\]\([^)]+\)' <<<"$text" || true)
done

while IFS= read -r row; do
    complain docs/fidelity.md "a row without a proof: $row"
done < <(grep -E '^\|' docs/fidelity.md | grep -vE '^\|(---\|)+$|proof \|$' | grep -vE '\]\([^)]+\) \|$|\| - \|$' || true)

while IFS= read -r row; do
    complain docs/faults.md "a row without a proof in each column: $row"
done < <(awk -F ' [|] ' '/^\|.*\| simulated/ { for (first = 1; $first !~ /^simulated/; first++); next }
    /^\|(---\|)+$/ { next }
    /^\|/ { for (i = first; i <= NF; i++) if ($i !~ /\]\(/) { print; next } }' docs/faults.md)
for fault in $(sed -n '/pub enum FatalFault/,/^}/s/.*=> "\([a-z-]*\)",/\1/p' shared/src/crash.rs); do
    grep -qF "| \`$fault\` |" docs/faults.md || complain docs/faults.md "no row for fault=$fault"
    grep -q "^dies $fault " scripts/selftest.sh || complain scripts/selftest.sh "no boot with fault=$fault"
done

echo "docs: $links links, $broken broken"
[ "$broken" -eq 0 ]
