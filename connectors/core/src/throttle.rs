//! The rate limit of full loads, so that a production source is not hurt.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// Bytes per second over all readers that share it; without a limit it never waits.
#[derive(Debug, Default)]
pub struct Throttle {
    limiter: Option<DefaultDirectRateLimiter>,
    burst: u32,
}

impl Throttle {
    /// A limit in bytes per second, or none. One second's worth may pass in one burst.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        let burst = bytes_per_second.and_then(|rate| NonZeroU32::new(rate.min(u64::from(u32::MAX)) as u32));
        let limiter = burst.map(|burst| RateLimiter::direct(Quota::per_second(burst)));
        Self { limiter, burst: burst.map_or(0, NonZeroU32::get) }
    }

    /// Waits until `bytes` may pass.
    pub async fn pass(&self, bytes: usize) {
        let Some(limiter) = &self.limiter else { return };
        let mut left = bytes;
        while left > 0 {
            // The limiter refuses a request above its burst, so a large one goes in pieces.
            let piece = left.min(self.burst as usize);
            if let Some(count) = NonZeroU32::new(piece as u32) {
                let _ = limiter.until_n_ready(count).await;
            }
            left -= piece;
        }
    }
}
