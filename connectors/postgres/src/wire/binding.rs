//! Channel binding: SCRAM over TLS is tied to the certificate of the server that one talks to.

use rustls::{SupportedCipherSuite, crypto::ring};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::reader::Reader;

/// Binds SCRAM to this connection: the hash of the server's certificate (RFC 5929, `tls-server-end-point`). `None` where
/// the certificate is signed with an algorithm whose hash we do not know; then there is no binding.
pub fn server_end_point(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let suite = match signature_hash(certificate)? {
        Hash::Sha256 => ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        Hash::Sha384 => ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
    };
    let SupportedCipherSuite::Tls13(suite) = suite else { return None };
    Some(suite.common.hash_provider.hash(certificate).as_ref().to_vec())
}

#[derive(Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
}

/// The hash that RFC 5929 prescribes for the certificate: that of its signature, and SHA-256 in place of MD5 and SHA-1.
fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    let mut outer = Reader::new(der(&mut Reader::new(certificate), 0x30)?);
    der(&mut outer, 0x30)?;
    let mut algorithm = Reader::new(der(&mut outer, 0x30)?);
    let sha256: [&[u8]; 4] = [
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04", // md5WithRSAEncryption
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", // sha1WithRSAEncryption
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", // sha256WithRSAEncryption
        b"\x2a\x86\x48\xce\x3d\x04\x03\x02",     // ecdsa-with-SHA256
    ];
    let sha384: [&[u8]; 2] = [
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", // sha384WithRSAEncryption
        b"\x2a\x86\x48\xce\x3d\x04\x03\x03",     // ecdsa-with-SHA384
    ];
    let oid = der(&mut algorithm, 0x06)?;
    if sha256.contains(&oid) { Some(Hash::Sha256) } else { sha384.contains(&oid).then_some(Hash::Sha384) }
}

/// Takes one DER element of this tag and gives its content.
fn der<'a>(reader: &mut Reader<'a>, tag: u8) -> Option<&'a [u8]> {
    if reader.u8().ok()? != tag {
        return None;
    }
    let length = match reader.u8().ok()? {
        short @ 0..=0x7f => usize::from(short),
        0x81 => usize::from(reader.u8().ok()?),
        0x82 => usize::from(reader.u16().ok()?),
        _ => return None,
    };
    reader.bytes(length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_hash_of_a_certificates_signature() {
        let oid = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c";
        let algorithm = [&[0x30, oid.len() as u8][..], oid].concat();
        let body = [&[0x30, 0x81, 0x80][..], &[0; 0x80], &algorithm].concat();
        let certificate = [&[0x30, 0x82, 0, body.len() as u8][..], &body].concat();
        assert_eq!(signature_hash(&certificate), Some(Hash::Sha384));
        assert_eq!(signature_hash(&certificate[..20]), None);
        assert_eq!(signature_hash(b""), None);
    }
}
