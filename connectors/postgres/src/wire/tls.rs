//! TLS by rustls, with libpq's modes.

use std::sync::Arc;

use millrace_core::{Error, Kind, Result, error::Context};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedCipherSuite,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::reader::Reader;
use crate::{Tls, TlsMode};

/// Encrypts a connection on which the server has agreed to do so.
pub async fn encrypt(stream: TcpStream, tls: &Tls, host: &str) -> Result<TlsStream<TcpStream>> {
    let config = client_config(tls)?;
    // Without a check of the name any valid one will do; an address is sent to nobody.
    let unnamed = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    let name = match (ServerName::try_from(host.to_string()), tls.mode) {
        (Ok(name), _) => name,
        (Err(_), TlsMode::Disable | TlsMode::Require | TlsMode::VerifyCa) => unnamed,
        (Err(error), TlsMode::VerifyFull) => {
            return Err(Error::new(Kind::Config, format!("checking the host name {host:?} for TLS")).with(error));
        }
    };
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
        let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some();
        let kind = if refused { Kind::Authentication } else { Kind::Connection };
        Error::new(kind, format!("setting up TLS with {host}"))
            .with(error)
            .fix("name the authority that signed the server's certificate in tls.ca-file, or choose another tls.mode")
    })
}

fn client_config(tls: &Tls) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match tls.mode {
        TlsMode::Disable | TlsMode::Require => Arc::new(Lenient { chain: None, provider: provider.clone() }),
        TlsMode::VerifyCa => {
            Arc::new(Lenient { chain: Some(chain_verifier(tls, &provider)?), provider: provider.clone() })
        }
        TlsMode::VerifyFull => chain_verifier(tls, &provider)?,
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context(Kind::Internal, || "choosing TLS versions")?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

fn chain_verifier(tls: &Tls, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>> {
    let mut roots = RootCertStore::empty();
    match &tls.ca_file {
        Some(path) => {
            let doing = || format!("reading the certificates in {}", path.display());
            for certificate in CertificateDer::pem_file_iter(path).context(Kind::Config, doing)? {
                roots.add(certificate.context(Kind::Config, doing)?).context(Kind::Config, doing)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .context(Kind::Config, || "collecting certificates to trust")
        .map_err(|error| error.fix("set tls.ca-file to a PEM file with the authority's certificate"))
}

/// Checks the chain but not the name (`verify-ca`), or nothing but that the server owns its certificate (`require`).
#[derive(Debug)]
struct Lenient {
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The verifier looks at the name last, when the chain has been found good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

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
