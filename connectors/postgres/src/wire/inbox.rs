//! Bytes received from the server, and the frames in them (a tag, a length, a body).
//!
//! One buffer, filled by reads as large as it has room for; frames are handed out where they lie.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::reader::Malformed;

/// Room for reads: larger ones do not make the walsender or the COPY cheaper.
pub const ROOM: usize = 256 << 10;

const CLOSED: &str = "the server closed the connection";

/// The largest frame that is taken. PostgreSQL itself builds no message above 1 GiB.
const FRAME_BYTES_MAX: usize = (1 << 30) + (1 << 20);

/// Received bytes.
#[derive(Debug)]
pub struct Inbox {
    data: Vec<u8>,
    start: usize,
    end: usize,
}

/// The frame at the front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The message's type.
    pub tag: u8,
    /// Length of the body, the length field not included.
    pub body: usize,
}

impl Inbox {
    /// An empty one.
    pub fn new() -> Self {
        Self { data: vec![0; ROOM], start: 0, end: 0 }
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> &[u8] {
        self.data.get(self.start..self.end).unwrap_or_default()
    }

    /// The header at the front, if it is there.
    #[inline]
    pub fn header(&self) -> Result<Option<Header>, Malformed> {
        let Some(&[tag, a, b, c, d]) = self.waiting().first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(4..=FRAME_BYTES_MAX).contains(&length) {
            return Err(Malformed("a frame has an impossible length"));
        }
        Ok(Some(Header { tag, body: length - 4 }))
    }

    /// Whether a whole frame is at the front.
    #[inline]
    pub fn has_frame(&self) -> Result<bool, Malformed> {
        Ok(self.header()?.is_some_and(|header| self.end - self.start >= header.body + 5))
    }

    /// Takes the frame at the front, if it is whole.
    #[inline]
    pub fn frame(&mut self) -> Result<Option<(u8, &[u8])>, Malformed> {
        let Some(header) = self.header()? else { return Ok(None) };
        let (from, to) = (self.start + 5, self.start + 5 + header.body);
        if to > self.end {
            return Ok(None);
        }
        self.start = to;
        Ok(self.data.get(from..to).map(|body| (header.tag, body)))
    }

    /// Takes bytes at the front, of which the caller knows that they are whole frames.
    #[inline]
    pub fn pass(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
    }

    /// Makes room for a read. The buffer grows with the bytes that came, never with a length that was announced.
    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.data.len() > ROOM {
                // A huge message has passed; give its memory back.
                self.data = vec![0; ROOM];
            }
        } else if self.data.len() - self.end < ROOM / 4 && self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.data.len() - self.end < ROOM / 8 {
            // Twice as much, but of a message whose length is known no more than it needs.
            let needed = match self.header() {
                Ok(Some(header)) => self.start + header.body + ROOM,
                _ => usize::MAX,
            };
            let larger = (self.data.len() * 2).min(needed).max(self.data.len() + ROOM / 2);
            self.data.resize(larger, 0);
        }
    }

    /// Reads once, as much as there is and fits. An end of the stream is an error.
    pub fn poll_fill<R: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, from: &mut R) -> Poll<io::Result<usize>> {
        self.make_room();
        let mut room = ReadBuf::new(self.data.get_mut(self.end..).unwrap_or_default());
        match Pin::new(from).poll_read(cx, &mut room) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {
                let count = room.filled().len();
                self.end += count;
                Poll::Ready(if count == 0 {
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, CLOSED))
                } else {
                    Ok(count)
                })
            }
        }
    }

    /// Reads once by a call that does not wait; 0 if it would have to.
    pub fn fill_from(&mut self, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        self.make_room();
        match read(self.data.get_mut(self.end..).unwrap_or_default()) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, CLOSED)),
            Ok(count) => {
                self.end += count;
                Ok(count)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Waits for bytes. Safe to cancel.
    pub async fn fill<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx, from)).await
    }

    /// Reads what is there without waiting; 0 if there is nothing.
    pub async fn fill_now<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> io::Result<usize> {
        poll_fn(|cx| match self.poll_fill(cx, from) {
            Poll::Pending => Poll::Ready(Ok(0)),
            ready => ready,
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn frames_come_out_whole_however_they_came_in() {
        block_on(async {
            let large = vec![7_u8; ROOM * 3];
            let bytes = [frame(b'A', b"one"), frame(b'B', &large), frame(b'C', b"")].concat();
            let mut inbox = Inbox::new();
            let mut from = &bytes[..];
            let mut seen = vec![];
            while seen.len() < 3 {
                match inbox.frame().unwrap() {
                    Some((tag, body)) => seen.push((tag, body.len())),
                    None => assert!(inbox.fill(&mut from).await.unwrap() > 0),
                }
            }
            assert_eq!(seen, [(b'A', 3), (b'B', ROOM * 3), (b'C', 0)]);
            assert_eq!(inbox.fill(&mut from).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        });
    }

    #[test]
    fn an_announced_length_reserves_nothing() {
        block_on(async {
            let mut from = &b"d\x3f\xff\xff\xffabc"[..];
            let mut inbox = Inbox::new();
            inbox.fill(&mut from).await.unwrap();
            assert!(!inbox.has_frame().unwrap());
            assert_eq!(inbox.data.len(), ROOM);
            let mut from = &b"d\x00\x00\x00\x03"[..];
            let mut inbox = Inbox::new();
            inbox.fill(&mut from).await.unwrap();
            assert!(inbox.frame().is_err());
        });
    }
}
