//! The first packet of a server (manual, "Protocol::HandshakeV10"), and what this client can do.

use super::reader::{Malformed, Reader};

/// What this client says that it can do. MariaDB takes the lowest bit as a promise to leave its own extensions alone.
pub const CAPABILITIES: u32 = LONG_PASSWORD | LONG_FLAG | TRANSACTIONS | NEEDED;
/// What the server must have: the 4.1 protocol, its passwords, and the names of their plugins.
pub const NEEDED: u32 = PROTOCOL_41 | SECURE_CONNECTION | PLUGIN_AUTH;
/// The connection can be encrypted.
pub const SSL: u32 = 1 << 11;

const LONG_PASSWORD: u32 = 1;
const LONG_FLAG: u32 = 1 << 2;
const PROTOCOL_41: u32 = 1 << 9;
const TRANSACTIONS: u32 = 1 << 13;
const SECURE_CONNECTION: u32 = 1 << 15;
const PLUGIN_AUTH: u32 = 1 << 19;

/// What a server says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Greeting {
    /// Such as `9.7.4` or `5.5.5-10.11.19-MariaDB`.
    pub server_version: String,
    /// Of the session.
    pub thread_id: u32,
    /// What the server can do.
    pub capabilities: u32,
    /// What the password is hashed with.
    pub nonce: Vec<u8>,
    /// How it wants to be convinced.
    pub plugin: String,
}

impl Greeting {
    /// Reads the packet.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        if reader.u8()? != 10 {
            return Err(Malformed("the server speaks another version of the protocol"));
        }
        let server_version = String::from_utf8_lossy(reader.until_zero()?).into_owned();
        let thread_id = reader.u32()?;
        let mut nonce = reader.bytes(8)?.to_vec();
        reader.bytes(1)?;
        let low = reader.u16()?;
        reader.bytes(3)?;
        let capabilities = u32::from(reader.u16()?) << 16 | u32::from(low);
        let nonce_length = usize::from(reader.u8()?);
        reader.bytes(10)?;
        // The second part has at least 13 bytes, the last of which is zero.
        let rest = reader.bytes(nonce_length.saturating_sub(8).max(13))?;
        nonce.extend_from_slice(rest.strip_suffix(&[0]).unwrap_or(rest));
        let plugin = reader.until_zero().unwrap_or(reader.rest());
        let plugin = String::from_utf8_lossy(plugin).into_owned();
        Ok(Self { server_version, thread_id, capabilities, nonce, plugin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read() {
        let mut body = b"\x0a5.5.5-10.11.19-MariaDB\0\x07\0\0\0abcdefgh\0\xfe\xf7\x08\x02\0\xff\xa1\x15".to_vec();
        body.extend([0; 10]);
        body.extend(b"ijklmnopqrst\0mysql_native_password\0");
        let greeting = Greeting::parse(&body).unwrap();
        assert_eq!((greeting.thread_id, greeting.server_version.as_str()), (7, "5.5.5-10.11.19-MariaDB"));
        assert_eq!(greeting.nonce, b"abcdefghijklmnopqrst");
        assert_eq!(greeting.plugin, "mysql_native_password");
        assert_eq!(greeting.capabilities & NEEDED, NEEDED);
        assert!((0..body.len() - 23).all(|short| Greeting::parse(&body[..short]).is_err()));
    }
}
