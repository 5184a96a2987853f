//! How eagerly the replication socket is read.
//!
//! The walsender sends every change by itself. To a reader that blocks, each costs it 6.5 µs; to one that leaves the
//! (small) receive buffer full for a while and then reads everything, 2.5 to 3.0 µs, because its sends then only append
//! to its queue. So a quiet source is read at once, and a backlog in bursts, with a sleep in between that grows with the
//! rate (measured on loopback with PostgreSQL 15).
//!
//! Over a network every read is at once: behind each window that a burst empties the next bytes need a round trip, and the
//! kernel puts small sends together anyway while acknowledgements are under way (measured on a line of 1 ms: 200,000
//! changes/s, and 140,000 in bursts).
//!
//! A Unix socket holds 278 small messages at most, so there the sleep is a fixed fraction of a millisecond: it saves the
//! server a wake-up per change, and the reader two system calls.

use std::time::{Duration, Instant};

use crate::wire::Line;

/// tokio's timer has no finer grain.
pub(super) const SLEEP_MIN: Duration = Duration::from_millis(1);
/// Long enough that most of what the server sends meanwhile finds the receive window closed, also at 100,000 changes
/// per second; short enough that its send buffer (4 MiB) does not fill at 200 MB/s.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// Over a Unix socket: the server fills it in 0.7 ms or more. Below the grain of the runtime's timer, so the thread
/// sleeps.
const SLEEP_UNIX: Duration = Duration::from_micros(300);
/// A shorter read in a burst means that the server's queue is drained: to read on would be to wait for single changes,
/// with an open window.
const SHORT_READ: usize = 16 << 10;
/// A backlog is recognised by so many reads within [`WINDOW`], or by one read as large as [`LARGE_READ`]. A thousand
/// small transactions per second make about 3,000 reads per second, and are still read at once.
const READS_MAX: u32 = 64;
const WINDOW: Duration = Duration::from_millis(10);
const LARGE_READ: usize = 32 << 10;
/// Above this rate the sleep doubles; bytes per second.
const RATE_HIGH: f64 = 6e6;
/// Below this rate it halves.
const RATE_LOW: f64 = 2e6;
/// After so many bursts below this rate the backlog is over. A walsender that has to wait for a core is silent for some
/// milliseconds; at the least sleep, patience costs little.
const RATE_SLOW: f64 = 5e5;
const SLOW_BURSTS_MAX: u32 = 16;

/// The state between reads.
#[derive(Debug)]
pub struct Pace {
    line: Line,
    /// Between bursts, while there is a backlog.
    sleep: Option<Duration>,
    /// Live: when the window began. In bursts: when the socket was last found empty.
    since: Instant,
    reads: u32,
    bytes: usize,
    /// Slow bursts in a row.
    slow: u32,
    drained: bool,
}

impl Pace {
    /// Begins live.
    pub fn new(line: Line, now: Instant) -> Self {
        Self { line, sleep: None, since: now, reads: 0, bytes: 0, slow: 0, drained: false }
    }

    /// So much was read at once.
    pub fn read(&mut self, count: usize, now: Instant) {
        self.bytes += count;
        if self.sleep.is_some() {
            self.drained = count < SHORT_READ;
            return;
        }
        if now - self.since > WINDOW {
            (self.since, self.reads) = (now, 0);
        }
        self.reads += 1;
        if self.line != Line::Network && (self.reads >= READS_MAX || count >= LARGE_READ) {
            (self.sleep, self.since, self.bytes, self.slow) = (Some(self.bounds().0), now, 0, 0);
        }
    }

    /// The shortest and the longest sleep.
    fn bounds(&self) -> (Duration, Duration) {
        if self.line == Line::Unix { (SLEEP_UNIX, SLEEP_UNIX) } else { (SLEEP_MIN, SLEEP_MAX) }
    }

    /// Whether the socket counts as empty without asking it.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// The socket was found empty: how long to leave it alone, or `None` to wait for the next byte.
    pub fn dry(&mut self, now: Instant) -> Option<Duration> {
        let sleep = self.sleep?;
        let (min, max) = self.bounds();
        let elapsed_s = (now - self.since).as_secs_f64().max(1e-6);
        let rate = self.bytes as f64 / elapsed_s;
        self.slow = if rate < RATE_SLOW { self.slow + 1 } else { 0 };
        self.sleep = if self.slow >= SLOW_BURSTS_MAX {
            None
        } else if rate >= RATE_HIGH {
            Some((sleep * 2).min(max))
        } else if rate >= RATE_LOW {
            Some(sleep)
        } else {
            Some((sleep / 2).max(min))
        };
        self.drained = false;
        (self.since, self.bytes, self.reads) = (now, 0, 0);
        self.sleep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_quiet_source_is_read_at_once() {
        let mut now = Instant::now();
        let mut pace = Pace::new(Line::Loopback, now);
        for _ in 0..10_000 {
            now += MS;
            pace.read(200, now);
            assert_eq!(pace.dry(now), None);
        }
    }

    #[test]
    fn a_backlog_is_read_in_bursts_until_it_is_over() {
        let mut now = Instant::now();
        let mut pace = Pace::new(Line::Loopback, now);
        pace.read(LARGE_READ, now);
        let mut sleeps = vec![];
        for _ in 0..6 {
            now += 5 * MS;
            pace.read(300_000, now);
            assert!(!pace.is_drained());
            sleeps.push(pace.dry(now).unwrap());
        }
        assert_eq!(sleeps, [2 * MS, 4 * MS, 8 * MS, 16 * MS, 20 * MS, 20 * MS]);
        pace.read(200, now);
        assert!(pace.is_drained());
        // A pause of the walsender is no end; the end is met with short sleeps.
        now += 5 * MS;
        assert_eq!(pace.dry(now), Some(SLEEP_MAX / 2));
        now += 3 * MS;
        pace.read(300_000, now);
        assert_eq!(pace.dry(now), Some(SLEEP_MAX));
        let mut quiet = Duration::ZERO;
        while let Some(sleep) = pace.dry(now) {
            now += sleep;
            quiet += sleep;
            pace.read(10, now);
            assert!(pace.is_drained());
        }
        assert!(quiet < 60 * MS, "a source that went quiet is read at once after {quiet:?}");
    }

    #[test]
    fn a_network_is_read_at_once_also_behind_a_backlog() {
        let mut now = Instant::now();
        let mut pace = Pace::new(Line::Network, now);
        for _ in 0..1000 {
            now += MS / 100;
            pace.read(LARGE_READ, now);
            assert_eq!((pace.dry(now), pace.is_drained()), (None, false));
        }
    }

    #[test]
    fn a_unix_socket_is_left_alone_for_moments_only() {
        let mut now = Instant::now();
        let mut pace = Pace::new(Line::Unix, now);
        pace.read(200, now);
        assert_eq!(pace.dry(now), None);
        pace.read(LARGE_READ, now);
        for _ in 0..6 {
            now += MS;
            pace.read(40_000, now);
            assert_eq!(pace.dry(now), Some(SLEEP_UNIX));
        }
        let quiet = std::iter::from_fn(|| {
            now += SLEEP_UNIX;
            pace.dry(now)
        });
        assert!(quiet.count() <= SLOW_BURSTS_MAX as usize);
    }
}
