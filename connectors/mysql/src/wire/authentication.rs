//! How a password is proved (manual, "Authentication Method"): `mysql_native_password`, `caching_sha2_password`, and in
//! the clear, where the connection is encrypted or does not leave the machine; elsewhere under the server's key.

use millrace_core::{Error, Kind, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{connection::Connection, password_key};

/// Asks for the server's key.
const REQUEST_KEY: u8 = 2;

/// Who can read what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Everybody on the way.
    Public,
    /// Nobody on the way, but whoever answers may be somebody else.
    Encrypted,
    /// The server alone: its certificate was verified, or it is on this machine.
    Known,
}

/// A method of which the server names the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Native,
    CachingSha2,
    Clear,
}

impl Method {
    fn of(plugin: &str) -> Option<Self> {
        match plugin {
            "mysql_native_password" => Some(Self::Native),
            "caching_sha2_password" => Some(Self::CachingSha2),
            "mysql_clear_password" => Some(Self::Clear),
            _ => None,
        }
    }
}

/// The first proof, by the plugin of the greeting; with another one's name where we do not know it, the server asks anew.
pub fn first_proof(plugin: &str, password: &[u8], nonce: &[u8]) -> (&'static str, Vec<u8>) {
    match Method::of(plugin) {
        Some(Method::CachingSha2) => ("caching_sha2_password", sha256_proof(password, nonce)),
        _ => ("mysql_native_password", native_proof(password, nonce)),
    }
}

/// Answers the server until it is convinced.
pub async fn log_in(connection: &mut Connection, password: &[u8], mut nonce: Vec<u8>, peer: Peer) -> Result<()> {
    loop {
        let body = connection.packet().await?.to_vec();
        match body.split_first() {
            Some((0, _)) => return Ok(()),
            // Another method, with its own nonce.
            Some((0xfe, rest)) => {
                let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
                let plugin = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
                let data = rest.get(end + 1..).unwrap_or_default();
                nonce = data.strip_suffix(&[0]).unwrap_or(data).to_vec();
                let proof = match Method::of(&plugin) {
                    Some(Method::Native) => native_proof(password, &nonce),
                    Some(Method::CachingSha2) => sha256_proof(password, &nonce),
                    Some(Method::Clear) if peer == Peer::Known => clear(password),
                    _ => return Err(unknown(&plugin)),
                };
                connection.send(&proof).await?;
            }
            // caching_sha2_password: 3 is a hit in the server's cache, an OK follows; 4 asks for the password itself.
            Some((1, [3])) => {}
            Some((1, [4])) if peer != Peer::Public => connection.send(&clear(password)).await?,
            Some((1, [4])) => connection.send(&[REQUEST_KEY]).await?,
            Some((1, pem)) if peer == Peer::Public => {
                connection.send(&password_key::encrypt(password, &nonce, pem)?).await?
            }
            _ => return Err(Error::new(Kind::Protocol, "logging in").with("the server's answer makes no sense")),
        }
    }
}

fn unknown(plugin: &str) -> Error {
    Error::new(Kind::Authentication, "logging in")
        .with(format!("the server wants the method {plugin:?}, which is not known or needs a verified connection"))
        .fix("make the user with caching_sha2_password or mysql_native_password, or encrypt and verify: tls: { mode: verify-full }")
}

fn clear(password: &[u8]) -> Vec<u8> {
    [password, &[0]].concat()
}

/// `SHA1(password) XOR SHA1(nonce, SHA1(SHA1(password)))`; nothing for no password.
fn native_proof(password: &[u8], nonce: &[u8]) -> Vec<u8> {
    if password.is_empty() {
        return vec![];
    }
    let once = Sha1::digest(password);
    let salted = Sha1::new().chain_update(nonce).chain_update(Sha1::digest(once)).finalize();
    once.iter().zip(salted).map(|(a, b)| a ^ b).collect()
}

/// `SHA256(password) XOR SHA256(SHA256(SHA256(password)), nonce)`; nothing for no password.
fn sha256_proof(password: &[u8], nonce: &[u8]) -> Vec<u8> {
    if password.is_empty() {
        return vec![];
    }
    let once = Sha256::digest(password);
    let salted = Sha256::new().chain_update(Sha256::digest(Sha256::digest(password))).chain_update(nonce).finalize();
    once.iter().zip(salted).map(|(a, b)| a ^ b).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn proofs_are_those_of_the_servers() {
        // Both can be checked by who knows the stored hash: XOR with the salted part gives the hash of the password.
        let nonce = b"0123456789abcdefghij";
        let proof = native_proof(b"secret", nonce);
        let stored = Sha1::digest(Sha1::digest(b"secret"));
        let salted = Sha1::new().chain_update(nonce).chain_update(stored).finalize();
        let once: Vec<u8> = proof.iter().zip(salted).map(|(a, b)| a ^ b).collect();
        assert_eq!(Sha1::digest(once), stored);
        let proof = sha256_proof(b"secret", nonce);
        let stored = Sha256::digest(Sha256::digest(b"secret"));
        let salted = Sha256::new().chain_update(stored).chain_update(nonce).finalize();
        let once: Vec<u8> = proof.iter().zip(salted).map(|(a, b)| a ^ b).collect();
        assert_eq!(Sha256::digest(once), stored);
        assert_eq!(first_proof("something_else", b"", nonce), ("mysql_native_password", vec![]));
    }

    #[tokio::test]
    async fn who_is_not_known_gets_no_password() {
        for (peer, gets) in [(Peer::Public, false), (Peer::Encrypted, false), (Peer::Known, true)] {
            let (near, mut server) = tokio::io::duplex(1 << 10);
            let mut connection = Connection::over(near);
            server.write_all(b"\x16\0\0\0\xfemysql_clear_password\0").await.unwrap();
            server.write_all(b"\x02\0\0\x02\0\0").await.unwrap();
            let logged_in = log_in(&mut connection, b"secret", vec![], peer).await;
            assert_eq!(logged_in.map_err(|error| error.kind).err(), (!gets).then_some(Kind::Authentication));
            drop(connection);
            let mut sent = vec![];
            server.read_to_end(&mut sent).await.unwrap();
            assert_eq!(sent, if gets { &b"\x07\0\0\x01secret\0"[..] } else { b"" });
        }
    }
}
