//! The password under the server's RSA key, for `caching_sha2_password` over a connection in the clear (manual, "Caching
//! SHA-2 Pluggable Authentication"; RFC 8017, RSAES-OAEP with SHA-1).
//!
//! Only the public half of RSA, which has no secret of its own to leak by its timing: one modular power. Whoever stands
//! between the two can put his own key in the server's place, so only an encrypted and verified connection keeps a password
//! from him.

use millrace_core::{Error, Kind, Result};
use num_bigint::BigUint;
use rustls::crypto::ring;
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use sha1::{Digest, Sha1};

use super::reader::{Malformed, Reader};

const HASH_BYTES: usize = 20;
/// What servers make has 256 bytes; an RSA key of more than 16384 bits is no key.
const KEY_BYTES_MAX: usize = 2048;

/// What to send: the password, with its zero byte and mixed with the nonce, under the key that the server sent as PEM.
pub fn encrypt(password: &[u8], nonce: &[u8], pem: &[u8]) -> Result<Vec<u8>> {
    let failed = |said: &'static str| Error::new(Kind::Protocol, "encrypting the password").with(said);
    let key = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| failed("the server's key is no PEM"))?;
    let (modulus, exponent) = public_key(key.as_ref()).map_err(|_| failed("the server's key is no RSA key"))?;
    if nonce.is_empty() || modulus.len() > KEY_BYTES_MAX {
        return Err(failed("the server's key is impossible"));
    }
    let mixed: Vec<u8> = password.iter().chain(&[0]).zip(nonce.iter().cycle()).map(|(a, b)| a ^ b).collect();
    let mut seed = [0; HASH_BYTES];
    ring::default_provider().secure_random.fill(&mut seed).map_err(|_| failed("there are no random numbers"))?;
    let padded = pad(&mixed, seed, modulus.len()).ok_or_else(|| failed("the password is too long for the key"))?;
    let [modulus_number, exponent] = [modulus, exponent].map(BigUint::from_bytes_be);
    let sealed = BigUint::from_bytes_be(&padded).modpow(&exponent, &modulus_number).to_bytes_be();
    Ok([vec![0; modulus.len() - sealed.len()], sealed].concat())
}

/// Modulus and exponent from a `SubjectPublicKeyInfo` (RFC 3279, section 2.3.1), without zeros in front.
fn public_key(der: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (info, _) = element(0x30, der)?;
    let (_, rest) = element(0x30, info)?;
    let (bits, _) = element(0x03, rest)?;
    let (key, _) = element(0x30, bits.strip_prefix(&[0]).unwrap_or_default())?;
    let (modulus, rest) = element(0x02, key)?;
    let (exponent, _) = element(0x02, rest)?;
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    if modulus.first().is_none_or(|&first| first == 0) {
        return Err(Malformed("a modulus is zero"));
    }
    Ok((modulus, exponent))
}

/// The inside of a DER element with this tag, and what follows it.
fn element(tag: u8, der: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let mut reader = Reader::new(der);
    if reader.u8()? != tag {
        return Err(Malformed("an element of DER is another one"));
    }
    let length = match reader.u8()? {
        short @ 0..=0x7f => u64::from(short),
        long @ 0x81..=0x84 => reader.big(usize::from(long & 0x7f))?,
        _ => return Err(Malformed("a length of DER is impossible")),
    };
    let inside = reader.bytes(usize::try_from(length).map_err(|_| Malformed("a length is impossible"))?)?;
    Ok((inside, reader.rest()))
}

/// EME-OAEP with an empty label (RFC 8017, section 7.1.1); `None` if the message is too long.
fn pad(message: &[u8], mut seed: [u8; HASH_BYTES], key_bytes: usize) -> Option<Vec<u8>> {
    let zeros = key_bytes.checked_sub(message.len() + 2 * HASH_BYTES + 2)?;
    let mut block = Sha1::digest(b"").to_vec();
    block.resize(HASH_BYTES + zeros, 0);
    block.push(1);
    block.extend_from_slice(message);
    mask(&mut block, &seed);
    mask(&mut seed, &block);
    Some([&[0][..], &seed, &block].concat())
}

/// XOR with MGF1 of the seed (RFC 8017, appendix B.2.1).
fn mask(bytes: &mut [u8], seed: &[u8]) {
    for (counter, chunk) in (0_u32..).zip(bytes.chunks_mut(HASH_BYTES)) {
        let stream = Sha1::new().chain_update(seed).chain_update(counter.to_be_bytes()).finalize();
        chunk.iter_mut().zip(stream).for_each(|(byte, stream)| *byte ^= stream);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A key of 512 bits, made with `openssl genrsa 512`, and its private exponent.
    const PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
        MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAOoPbqmi0j8NDX/EPyHkb9yBMcXxtVKQ\n\
        m/F5jnrZFh0F299twuNwkGHoUrstFU75tDsQmcbW+9iNM+TCqKoRBZkCAwEAAQ==\n\
        -----END PUBLIC KEY-----";
    const PRIVATE: &str = "8f291341b4b22e1878ba3e39732c7af2ff1e8778f8b3e07951704d227ca756e5f3cd861d74c0c3bbaaa27af9a90f075e01b4909717badcc747b8a6c84c2ff5f5";

    /// What a server does with what it gets.
    fn opened(sealed: &[u8], nonce: &[u8]) -> Vec<u8> {
        let key = SubjectPublicKeyInfoDer::from_pem_slice(PEM.as_bytes()).unwrap();
        let (modulus, _) = public_key(key.as_ref()).unwrap();
        let private = BigUint::parse_bytes(PRIVATE.as_bytes(), 16).unwrap();
        let plain = BigUint::from_bytes_be(sealed).modpow(&private, &BigUint::from_bytes_be(modulus)).to_bytes_be();
        let padded = [vec![0; modulus.len() - plain.len()], plain].concat();
        let (mut seed, mut block) = (padded[1..=HASH_BYTES].to_vec(), padded[HASH_BYTES + 1..].to_vec());
        mask(&mut seed, &block);
        mask(&mut block, &seed);
        assert_eq!((padded[0], &block[..HASH_BYTES]), (0, &Sha1::digest(b"")[..]));
        let message = block[HASH_BYTES..].iter().position(|&byte| byte == 1).unwrap() + HASH_BYTES + 1;
        let mut text: Vec<u8> = block[message..].iter().zip(nonce.iter().cycle()).map(|(a, b)| a ^ b).collect();
        assert_eq!(text.pop(), Some(0));
        text
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        assert!(encrypt(b"x", b"nonce", b"nothing").is_err());
        assert!(encrypt(b"a password that is longer than the key", b"nonce", PEM.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn the_private_key_opens_it(password in prop::collection::vec(any::<u8>(), 0..=21), nonce: [u8; 20]) {
            let sealed = encrypt(&password, &nonce, PEM.as_bytes()).unwrap();
            prop_assert_eq!(opened(&sealed, &nonce), password);
        }

        #[test]
        fn any_bytes_are_a_key_or_none(bytes: Vec<u8>) {
            let _ = (public_key(&bytes), encrypt(b"password", b"nonce", &bytes));
        }
    }
}
