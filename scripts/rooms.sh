#!/usr/bin/env bash
# The rooms of a crate and who imports whom: fails where rooms lean on each other in a circle, which
# Cargo cannot see. usage: scripts/rooms.sh [--graph]   (--graph prints every arrow with its count)
#
# A room is a top-level module of a crate. An arrow is a path `crate::..` outside tests, or one with
# as many `super::` as lead to the crate's root, resolved through the re-exports of lib.rs. lib.rs is
# the facade of all rooms, not a room.
#
# The rules, one per row: a crate's sources | the rooms to check, or `all`.
rules() {
    cat <<'ROWS'
vmm/src | all
guest/kmem/src | kern vm
ROWS
}
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ $# -eq 0 ] || [ "$*" = --graph ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }

# Prints `ROOM ROOM COUNT`, one arrow per line, for the crate whose sources are in $1.
arrows() {
    # Sources without tests: neither files of tests nor the part after `#[cfg(test)] mod .. {`.
    find "$1" -name '*.rs' ! -name main.rs ! -path '*/cli/*' ! -path '*/tests/*' ! -name tests.rs \
        ! -path '*/damaged/*' | LC_ALL=C sort | xargs awk -v root="$1/" '
        # The room of file `path`.
        function room_of(path) {
            sub(root, "", path)
            sub(/\/.*|\.rs$/, "", path)
            return path
        }
        # As many `super::` as lead from the module of file `path` to the root of the crate.
        function up_from(path,    levels, n, up) {
            sub(root, "", path)
            sub(/\/mod\.rs$/, "", path)
            for (n = split(path, levels, "/"); n > 0; n--) up = up "super::"
            return up
        }
        # One `crate::` path in the current file, whose first name is `name`.
        function arrow(name) {
            if (name != "") used[here, name]++
        }
        # All first names after `crate::` in the text of an item.
        function paths(text,    rest, list, n, i, depth, c, name) {
            rest = text
            gsub(up, "crate::", rest)
            while (match(rest, /crate::/)) {
                if (RSTART > 1 && substr(rest, RSTART - 1, 1) ~ /[A-Za-z_]/) {
                    rest = substr(rest, RSTART + RLENGTH)
                    continue
                }
                rest = substr(rest, RSTART + RLENGTH)
                if (substr(rest, 1, 1) != "{") {
                    match(rest, /^[A-Za-z_0-9]+/)
                    arrow(substr(rest, 1, RLENGTH))
                    continue
                }
                # `crate::{a::b, c::{d, e}, F}`: the names at the outermost depth.
                depth = 0; name = ""
                for (i = 1; i <= length(rest); i++) {
                    c = substr(rest, i, 1)
                    if (c == "{") depth++
                    else if (c == "}") { if (--depth == 0) break }
                    else if (depth == 1 && c ~ /[A-Za-z_0-9]/ && !past) name = name c
                    else if (depth == 1 && c == ":") past = 1
                    else if (depth == 1 && c == ",") { arrow(name); name = ""; past = 0 }
                }
                arrow(name)
                past = 0
                rest = substr(rest, i)
            }
        }
        FNR == 1 { finish(); here = room_of(FILENAME); up = up_from(FILENAME); is_lib = FILENAME == root "lib.rs"; over = 0 }
        function finish() { if (item != "") { take(item); item = "" } }
        # A complete item: one of the facade is kept, any other is an arrow.
        function take(text,    from, names, n, i, name) {
            if (!is_lib) { paths(text); return }
            if (match(text, /pub use (self|crate)::[a-z_0-9]+/)) {
                from = substr(text, RSTART, RLENGTH)
                sub(/.*::/, "", from)
                sub(/.*pub use (self|crate)::[a-z_0-9]+/, "", text)
                gsub(/[^A-Za-z_0-9]+/, " ", text)
                n = split(text, names, " ")
                for (i = 1; i <= n; i++) hands_on[names[i]] = from
            }
        }
        over { next }
        /^ *\/\// { next }
        /^#\[cfg\(test\)\]/ { tests = 1; next }
        tests && /^(pub(\([a-z]+\))? )?mod [a-z_]+ *\{/ { over = 1; next }
        { tests = 0 }
        is_lib && /^(pub(\([a-z]+\))? )?mod / {
            name = $0; sub(/.*mod /, "", name); sub(/[ ;{].*/, "", name); next
        }
        # A `use` may take several lines; everything else is read line by line.
        item != "" { item = item " " $0; if (/;/) finish(); next }
        /^ *(pub(\([a-z]+\))? )?use / { item = $0; if (/;/) finish(); next }
        { if (!is_lib) paths($0) }
        END {
            finish()
            for (key in used) {
                split(key, ends, SUBSEP)
                to = ends[2]
                if (to in hands_on) to = hands_on[to]
                rooms[ends[1]] = 1
                count[ends[1] " " to] += used[key]
            }
            for (key in count) print key, count[key]
        }' | LC_ALL=C sort
}

# Keeps the arrows between the rooms of $1 (files or folders there) that $2 selects.
between() {
    awk -v looked="$2" -v root="$1/" '
        function is_room(name) {
            if (name in known) return known[name]
            file = root name ".rs"; folder = root name "/mod.rs"
            known[name] = (getline line < file) >= 0 || (getline line < folder) >= 0
            return known[name]
        }
        BEGIN { n = split(looked, names, " "); for (i = 1; i <= n; i++) wanted[names[i]] = 1 }
        $1 != $2 && $1 != "lib" && is_room($1) && is_room($2) \
            && (looked == "all" || ($1 in wanted && $2 in wanted))'
}

# Prints the rooms that import each other in a cycle, one cycle per line.
circles() {
    awk '
        { rooms[$1] = rooms[$2] = 1; reach[$1, $2] = 1 }
        END {
            for (k in rooms) for (i in rooms) if ((i, k) in reach)
                for (j in rooms) if ((k, j) in reach) reach[i, j] = 1
            for (i in rooms) if ((i, i) in reach && !(i in told)) {
                line = ""
                for (j in rooms) if ((i, j) in reach && (j, i) in reach) { line = line " " j; told[j] = 1 }
                print substr(line, 2)
            }
        }'
}

bad=0
while IFS='|' read -r root looked; do
    root=${root// /}
    looked=$(xargs <<<"$looked")
    graph=$(arrows "$root" | between "$root" "$looked")
    if [ "${1:-}" = --graph ]; then
        awk '{ printf "%s -> %s (%d)\n", $1, $2, $3 }' <<<"$graph"
    fi
    found=$(circles <<<"$graph")
    rooms=$(awk '{ print $1; print $2 }' <<<"$graph" | sort -u | wc -l)
    knots=$([ -z "$found" ] || wc -l <<<"$found")
    echo "$root: $rooms rooms, $(wc -l <<<"$graph") arrows, ${knots:-0} circles"
    if [ -n "$found" ]; then
        sed 's/^/  circle: /' <<<"$found" >&2
        bad=1
    fi
done < <(rules)
exit "$bad"
