//! Every rule holds in a good guest and fires in a damaged one.

pub(super) mod lab;
mod map_entry;
mod map_index;
mod map_list;
mod map_pool;
mod map_state;
mod object_rules;
mod pages;
mod sleepers;
mod stalls;
mod table_rules;
mod threads;
mod translations;
mod zones;

use self::lab::Lab;

#[test]
fn nothing_is_found_in_a_good_guest() {
    let report = Lab::new().check();
    assert!(report.is_clean() && report.updating.is_empty(), "{report}");
    assert!(report.stats.maps >= 7 && report.stats.entries >= 30, "{:?}", report.stats);
}
