#!/usr/bin/env bash
# Measures the sources: lengths, comments, widest types, and counts that must stay at zero. It
# relies on the layout of rustfmt: a block that begins at some indentation ends with a brace at the
# same indentation.
#
#     scripts/house.sh              the figures
#     scripts/house.sh --long       functions over 50 lines
#     scripts/house.sh --steps      functions over 30 lines whose steps are not numbered
#     scripts/house.sh --unlocks    unlocks, relocks and waits without a comment
#     scripts/house.sh --wide       lines over 100 columns
#     scripts/house.sh --methods    methods of each type with more than 60
#     scripts/house.sh --check      fails if a frozen figure has grown
#
# Tests, the simulated machine and loom's models count as tests, not as production.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Figures that must not grow: see --check.
most_long=16
most_methods=120

what=${1:---figures}
case $what in --figures | --long | --steps | --unlocks | --wide | --methods | --unsafe | --check) ;; *)
    sed -n '2,13p' "$0" >&2
    exit 2
    ;;
esac
mapfile -t files < <(git ls-files '*.rs' | grep -vE '(^|/)(tests|examples|sim|loom|benches)(/|\.rs$)')

awk -v what="$what" -v most_long="$most_long" -v most_methods="$most_methods" '
    function indent(line) { match(line, /^ */); return RLENGTH }
    function sort(v, n,   i, j, t, gap) {
        for (gap = int(n / 2); gap > 0; gap = int(gap / 2))
            for (i = gap + 1; i <= n; i++) {
                t = v[i]
                for (j = i; j > gap && v[j - gap] > t; j -= gap) v[j] = v[j - gap]
                v[j] = t
            }
    }
    function at(v, n, percent) { return n ? v[int((n - 1) * percent / 100) + 1] : 0 }
    function end_function() {
        lengths[++functions] = FNR - begin + 1
        if (lengths[functions] > 50) {
            long++
            if (what == "--long") printf "%s:%d: %s, %d lines\n", FILENAME, begin, name, lengths[functions]
        }
        if (lengths[functions] > 30) {
            thirty++
            # A body of one expression, a match or a chain, has no steps.
            if (steps < 2 && statements != 1) {
                unnumbered++
                if (what == "--steps") printf "%s:%d: %s, %d lines\n", FILENAME, begin, name, lengths[functions]
            }
        }
        in_function = 0; waiting = ""
    }
    # An unlock, relock or wait without a comment on what may have changed.
    function found_bare(place) {
        bare++
        if (what == "--unlocks") printf "%s:%s\n", FILENAME, place
    }
    # Decides whether the unlock in `waiting` is the last action of its function, from the lines
    # that follow: `return`, a value without `self`, ends of blocks that are not loops.
    function after_unlock(line,   i) {
        i = indent(line)
        if (skipping && i > skipped) return
        if (line ~ /^ *} else/) { skipping = 1; skipped = i; return }
        skipping = 0
        if (line ~ /^ *}/) {
            # end_function handles the end at the level of the function.
            if (i > level && opened[i] ~ /^ *(loop|while|for)/) { found_bare(waiting); waiting = "" }
            return
        }
        if (line ~ /^ *return/) { waiting = ""; return }
        if (line !~ /self/ && line !~ /[;{(,]$/) return
        found_bare(waiting); waiting = ""
    }
    FNR == 1 {
        if (file_lines) file_length[++n_files] = file_lines
        file_lines = 0; in_test = 0; in_function = 0; type = ""; test_next = 0; last = ""
        room = FILENAME; sub(/\/src\/.*/, "", room)
    }
    # Modules of tests within a file.
    in_test { if ($0 ~ /^}/) in_test = 0; next }
    /^#\[cfg\((all\()?(test|loom)/ { test_next = 1; next }
    test_next && /^(pub(\([a-z]*\))? )?mod [a-z_]+ \{/ { in_test = 1; test_next = 0; next }
    test_next && /^#\[/ { next }
    { test_next = 0; file_lines++; all++ }
    length($0) > 100 {
        wide++
        if (what == "--wide") printf "%s:%d: %d columns\n", FILENAME, FNR, length($0)
    }
    /^ *$/ { blank++ }
    /^ *\/\/[\/!]/ { docs++ }
    /^ *\/\/([^\/!]|$)/ { inside++ }
    /^impl/ {
        type = $0
        is_trait = type ~ / for /
        sub(/^impl(<[^>]*>)? /, "", type)
        sub(/[<{ ].*/, "", type)
    }
    /^}/ { type = "" }
    !in_function && /^ *(pub(\([a-z :]*\))? )?(const )?(unsafe )?(extern "[^"]*" )?fn [a-z_0-9]+/ && !/;$/ {
        match($0, /fn [a-z_0-9]+/); name = substr($0, RSTART + 3, RLENGTH - 3)
        begin = FNR; level = indent($0); in_function = 1; steps = 0; statements = 0; in_body = 0
        waiting = ""; said = 0
        if (type != "" && !is_trait && level == 4) methods[room " " type]++
        if ($0 ~ /}$/) end_function()
    }
    in_function && in_body && indent($0) == level + 4 && /^ *[^ })\].\/]/ { statements++ }
    in_function && indent($0) == level && /\{$/ { in_body = 1 }
    waiting != "" && !/^ *\/\// && !/^ *$/ { after_unlock($0) }
    in_function && FNR > begin && indent($0) == level && /^ *(}|.*;$)/ && (/^ *}/ || /;$/) { end_function() }
    in_function && /^ *\/\/ [0-9]+\. / { steps++ }
    # Counts that must stay at zero. Words within comments and strings do not count.
    !/^ *\/\// {
        code = $0; gsub(/"([^"\\]|\\.)*"/, "\"\"", code); sub(/\/\/.*/, "", code)
        if (code ~ /\.unwrap\(\)/) unwraps++
        if (code ~ /todo!|unimplemented!/) todos++
        if (code ~ /#!?\[allow/) allows++
        if (code ~ /(^|[^a-z_])unsafe( \{| impl|$)/) {
            unsafes++
            if (last ~ /SAFETY/ || safety) safe++
            else if (what == "--unsafe") printf "%s:%d: %s\n", FILENAME, FNR, $0
        }
        if (in_function && code ~ /(unlock(ed|_[a-z]+)?\(|drop\([a-z_]*(queues?|lock(ed)?|guard|object)\)|[mt]sleep\(|(page|pagedaemon|taskqueue)_sleep(_[a-z_]+)?\(|mi_switch\(|vm_wait[a-z_]*\(|(a|_)wait_(for_)?transition\()/ &&
            code !~ /fn /) {
            unlocks++
            if (said) {
                # The same comment covers the next line, if that is also an unlock.
                keep = 1
            } else {
                # Another branch unlocks, too: both continue at the same place.
                if (waiting != "" && !skipping) found_bare(waiting)
                waiting = FNR ": " $0; skipping = 0
                # A wait is never the end: its caller continues with changed state.
                if (code !~ /unlock(_[a-z]+)?\(|drop\(/ || code ~ /_and_wait/) {
                    found_bare(waiting); waiting = ""
                }
            }
        }
    }
    # The comment stands above the statement, which may have begun some lines before.
    /^ *\/\/([^\/!]|$)/ { said = 1 }
    !/^ *\/\// && /[;{},]$/ { said = keep; keep = 0 }
    { if ($0 ~ /\{$/ && $0 !~ /^ *\/\//) opened[indent($0)] = $0 }
    /SAFETY:/ { safety = 1 }
    # The comment stands above the statement, which may have begun some lines before the block.
    !/^ *\/\// && /[;{}]$/ { safety = 0 }
    { last = $0 }
    END {
        if (file_lines) file_length[++n_files] = file_lines
        sort(file_length, n_files); sort(lengths, functions)
        for (t in methods) {
            if (methods[t] > widest) { widest = methods[t]; widest_type = t }
            if (what == "--methods" && methods[t] > 60) printf "%4d %s\n", methods[t], t
        }
        code_lines = all - blank - docs - inside
        if (what == "--figures") {
            printf "files %d, code lines %d\n", n_files, code_lines
            printf "file length: median %d, 90 %% %d, longest %d\n", at(file_length, n_files, 50), at(file_length, n_files, 90), file_length[n_files]
            printf "function length: median %d, 90 %% %d, 99 %% %d, longest %d\n", at(lengths, functions, 50), at(lengths, functions, 90), at(lengths, functions, 99), lengths[functions]
            printf "functions over 50 lines: %d of %d\n", long, functions
            printf "functions over 30 lines: %d, without numbered steps %d\n", thirty, unnumbered
            printf "comments: docs %.1f %%, inside code %.2f %% of lines\n", 100 * docs / all, 100 * inside / all
            printf "unlocks, relocks and waits: %d, without a comment %d\n", unlocks, bare
            printf "lines over 100 columns: %d\n", wide
            printf "unwrap %d, todo %d, allow %d\n", unwraps, todos, allows
            printf "unsafe blocks and impls: %d, with SAFETY %.0f %%\n", unsafes, unsafes ? 100 * safe / unsafes : 100
            printf "widest type: %s, %d methods\n", widest_type, widest
        }
        if (what == "--check") {
            if (unwraps + todos + allows) { print "unwrap, todo or allow outside tests"; bad = 1 }
            if (wide) { printf "%d lines over 100 columns: scripts/house.sh --wide\n", wide; bad = 1 }
            if (long > most_long) { printf "%d functions over 50 lines, at most %d: scripts/house.sh --long\n", long, most_long; bad = 1 }
            if (unnumbered) { printf "%d functions over 30 lines without numbered steps: scripts/house.sh --steps\n", unnumbered; bad = 1 }
            if (bare) { printf "%d unlocks, relocks or waits without a comment: scripts/house.sh --unlocks\n", bare; bad = 1 }
            if (safe < unsafes) { printf "%d unsafe without SAFETY: scripts/house.sh --unsafe\n", unsafes - safe; bad = 1 }
            if (widest > most_methods) { printf "%s has %d methods, at most %d\n", widest_type, widest, most_methods; bad = 1 }
            exit bad
        }
    }' "${files[@]}"
