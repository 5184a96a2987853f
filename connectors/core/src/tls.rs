//! Encryption of a connection to a source, by rustls. When it begins is the protocol's own business.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::error::{Context, Error, Kind, Result};

/// Encryption of the connection to a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// How much is demanded.
    pub mode: TlsMode,
    /// Certificates to trust instead of the system's (PEM).
    pub ca_file: Option<PathBuf>,
}

/// How much is demanded: libpq's `sslmode` without its weaker half; `mysql`'s `--ssl-mode` calls the last three REQUIRED,
/// VERIFY_CA and VERIFY_IDENTITY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// No encryption: the default on loopback and Unix sockets only.
    Disable,
    /// Encrypted, the certificate is not looked at.
    Require,
    /// Encrypted, and the certificate is signed by a trusted authority.
    VerifyCa,
    /// Encrypted, signed, and made out for the host: the default elsewhere.
    VerifyFull,
}

/// Encrypts a connection on which the server has agreed to do so.
pub async fn encrypt<S: AsyncRead + AsyncWrite + Unpin>(stream: S, tls: &Tls, host: &str) -> Result<TlsStream<S>> {
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
