//! Standby status update: up to where we confirm (manual, "Streaming Replication Protocol").

/// Microseconds between 1970-01-01 and 2000-01-01, the server's epoch.
pub const EPOCH_2000_US: i64 = 946_684_800_000_000;

/// The payload: written, flushed and applied are the same to us, because only what is fsynced counts. With `ask` the
/// server answers with a keepalive.
pub fn status_update(confirmed: u64, now_us: i64, ask: bool) -> [u8; 34] {
    let mut message = [0; 34];
    let mut rest = message.as_mut_slice();
    let mut put = |bytes: &[u8]| {
        let (head, tail) = std::mem::take(&mut rest).split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        rest = tail;
    };
    put(b"r");
    put(&confirmed.to_be_bytes());
    put(&confirmed.to_be_bytes());
    put(&confirmed.to_be_bytes());
    put(&now_us.saturating_sub(EPOCH_2000_US).to_be_bytes());
    put(&[u8::from(ask)]);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_positions_are_the_confirmed_one() {
        let message = status_update(0x1_0000_00AB, EPOCH_2000_US + 1, true);
        let lsn = [0, 0, 0, 1, 0, 0, 0, 0xAB];
        assert_eq!(message.to_vec(), [&b"r"[..], &lsn, &lsn, &lsn, &1_i64.to_be_bytes(), &[1]].concat());
    }
}
