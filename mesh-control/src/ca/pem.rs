//! PEM texts (RFC 7468) of certificates.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// One certificate.
pub fn encode(certificate: &CertificateDer<'_>) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for chunk in certificate.chunks(48) {
        base64(chunk, &mut text);
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

/// Several, one after the other.
pub fn encode_all<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    certificates.into_iter().map(encode).collect()
}

/// Every certificate of a text; other sections are passed over.
pub fn decode_all(text: &str) -> Result<Vec<CertificateDer<'static>>, rustls_pki_types::pem::Error> {
    CertificateDer::pem_slice_iter(text.as_bytes()).collect()
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8], text: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| chunk.get(at).map_or(0, |byte| usize::from(*byte));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let letter = if at > chunk.len() { b'=' } else { ALPHABET[word >> (18 - 6 * at) & 63] };
            text.push(char::from(letter));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_can_be_decoded() {
        for length in [1, 2, 3, 47, 48, 49, 500] {
            let bytes: Vec<u8> = (0..length).map(|i: u32| i.to_le_bytes()[0].wrapping_mul(37)).collect();
            let one = CertificateDer::from(bytes);
            let text = encode_all([&one, &one]);
            assert_eq!(decode_all(&text).unwrap(), [one.clone(), one]);
        }
    }
}
