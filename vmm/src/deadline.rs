//! The instants at which waits end.

use std::time::{Duration, Instant};

/// Longer than any process lives, and short enough for the clock: a hundred years.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The instant `limit` from now on. One that the clock could not tell is [`FOR_EVER`] away.
pub(crate) fn after(limit: Duration) -> Instant {
    Instant::now() + limit.min(FOR_EVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_no_clock_can_tell_is_far_away() {
        let hour = Instant::now() + Duration::from_secs(3600);
        for limit in
            [Duration::MAX, Duration::from_secs(u64::MAX), Duration::from_secs(1 << 63), FOR_EVER]
        {
            assert!(after(limit) > hour, "{limit:?}");
        }
        assert!(after(Duration::from_secs(1)) < hour && after(Duration::ZERO) <= Instant::now());
    }
}
