//! Bytes received from the server, and the packets in them: three bytes of length, a number, a body. A body of 2^24-1
//! bytes goes on in the next packet (manual, "Sending More Than 16Mb").

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::reader::Malformed;

/// Room for reads.
const ROOM: usize = 256 << 10;
const HEADER: usize = 4;
/// A body of this length goes on.
pub(super) const PIECE: usize = 0xff_ffff;
/// The largest body that is taken: `max_allowed_packet` is at most 1 GiB, and the server adds a little to an event.
const BODY_BYTES_MAX: usize = (1 << 30) + (16 << 20);

/// Received bytes.
#[derive(Debug)]
pub struct Inbox {
    data: Vec<u8>,
    start: usize,
    end: usize,
    /// A body that is put together from several packets.
    large: Vec<u8>,
    /// Whether `large` is whole, and was handed out.
    large_is_done: bool,
    /// The number that the next packet must have.
    sequence: u8,
    /// Where the packet lies that was handed out last; `None` if it is `large`.
    last: Option<(usize, usize)>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { data: vec![0; ROOM], start: 0, end: 0, large: vec![], large_is_done: false, sequence: 0, last: None }
    }
}

impl Inbox {
    /// The next packet has this number.
    pub fn number_from(&mut self, sequence: u8) {
        self.sequence = sequence;
    }

    /// The number of the next packet, whoever sends it.
    pub fn sequence(&self) -> u8 {
        self.sequence
    }

    /// Whether bytes wait that nobody asked for.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Takes the packet at the front, if it is whole; its body is [`Self::body`] until more is read.
    pub fn take(&mut self) -> Result<bool, Malformed> {
        loop {
            let waiting = self.data.get(self.start..self.end).unwrap_or_default();
            let Some(&[a, b, c, number]) = waiting.first_chunk::<HEADER>() else { return Ok(false) };
            let length = u32::from_le_bytes([a, b, c, 0]) as usize;
            if waiting.len() < HEADER + length {
                return Ok(false);
            }
            if number != self.sequence {
                return Err(Malformed("a packet has not the number of its turn"));
            }
            let (from, to) = (self.start + HEADER, self.start + HEADER + length);
            if std::mem::take(&mut self.large_is_done) {
                self.large = vec![];
            }
            if length < PIECE && self.large.is_empty() {
                self.last = Some((from, to));
            } else {
                self.large.extend_from_slice(self.data.get(from..to).unwrap_or_default());
                self.last = None;
            }
            if self.large.len() > BODY_BYTES_MAX {
                return Err(Malformed("a packet is larger than any server sends"));
            }
            self.sequence = self.sequence.wrapping_add(1);
            self.start = to;
            if length < PIECE {
                self.large_is_done = self.last.is_none();
                return Ok(true);
            }
        }
    }

    /// The body that [`Self::take`] found.
    pub fn body(&self) -> &[u8] {
        match self.last {
            Some((from, to)) => self.data.get(from..to).unwrap_or_default(),
            None => &self.large,
        }
    }

    /// Makes room for a read. The buffer grows to one packet at most, which ends below 16 MiB.
    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.data.len() > 4 * ROOM {
                self.data = vec![0; ROOM];
            }
        } else if self.data.len() - self.end < ROOM / 4 && self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.data.len() - self.end < ROOM / 8 {
            self.data.resize(self.data.len() * 2, 0);
        }
        self.last = None;
    }

    fn poll_fill<R: AsyncRead + Unpin + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        let mut room = ReadBuf::new(self.data.get_mut(self.end..).unwrap_or_default());
        match Pin::new(from).poll_read(cx, &mut room) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {
                let count = room.filled().len();
                self.end += count;
                Poll::Ready(match count {
                    0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
                    count => Ok(count),
                })
            }
        }
    }

    /// Waits for bytes. Safe to cancel.
    pub async fn fill<R: AsyncRead + Unpin + ?Sized>(&mut self, from: &mut R) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx, from)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(number: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = (body.len() as u32).to_le_bytes()[..3].to_vec();
        bytes.push(number);
        bytes.extend_from_slice(body);
        bytes
    }

    fn bodies(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut inbox, mut from, mut seen) = (Inbox::default(), bytes, vec![]);
            loop {
                while inbox.take()? {
                    seen.push(inbox.body().to_vec());
                }
                if inbox.fill(&mut from).await.is_err() {
                    return Ok(seen);
                }
            }
        })
    }

    #[test]
    fn packets_come_out_whole() {
        let large = vec![7; PIECE];
        let bytes =
            [packet(0, b"one"), packet(1, &large), packet(2, b"rest"), packet(3, b""), packet(4, b"last")].concat();
        let seen = bodies(&bytes).unwrap();
        assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [3, PIECE + 4, 0, 4]);
        assert_eq!(seen[1].last(), Some(&b't'));
    }

    #[test]
    fn a_packet_out_of_turn_is_refused() {
        assert!(bodies(&[packet(0, b"a"), packet(2, b"b")].concat()).is_err());
    }
}
