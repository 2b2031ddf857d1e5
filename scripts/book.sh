#!/usr/bin/env bash
# Puts the tables that the command prints into the book, between `<!-- book:TABLE -->` and `<!--
# /book -->`.
#   scripts/book.sh           writes them
#   scripts/book.sh --check   says which pages are not up to date, and fails if any is
# VMKERN names the command; without it, it is built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=${1:-}
case $mode in '' | --check) ;; *)
    echo "usage: scripts/book.sh [--check]" >&2
    exit 2
    ;;
esac
if [ -z "${VMKERN:-}" ]; then
    cargo build --locked --quiet --package vmkern --bin vmkern
    VMKERN=${CARGO_TARGET_DIR:-target}/debug/vmkern
fi

# Prints the page $1 with its tables replaced.
page() {
    local line table='' text
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            '<!-- book:'*' -->')
                [ -z "$table" ] || { echo "$1: book:$table has no end" >&2 && return 1; }
                table=${line#'<!-- book:'}
                table=${table%' -->'}
                printf '%s\n\n' "$line"
                text=$("$VMKERN" book "$table") || return 1
                printf '%s\n\n' "$text"
                ;;
            '<!-- /book -->')
                [ -n "$table" ] || { echo "$1: an end without its book:TABLE" >&2 && return 1; }
                table=''
                printf '%s\n' "$line"
                ;;
            *) [ -n "$table" ] || printf '%s\n' "$line" ;;
        esac
    done <"$1"
    [ -z "$table" ] || { echo "$1: book:$table has no end" >&2 && return 1; }
}

new=$(mktemp)
trap 'rm -f "$new"' EXIT
pages=0
stale=0
for file in README.md docs/*.md docs/*/*.md vmm/*.md; do
    [ -f "$file" ] && grep -q '^<!-- book:' "$file" || continue
    pages=$((pages + 1))
    page "$file" >"$new"
    cmp -s "$new" "$file" && continue
    stale=$((stale + 1))
    if [ "$mode" = --check ]; then
        diff -u "$file" "$new" | head -n 40 >&2 || true
    else
        cat "$new" >"$file"
    fi
    echo "$file"
done
echo "book: $pages pages with tables, $stale not up to date"
[ "$mode" != --check ] || [ "$stale" -eq 0 ]
