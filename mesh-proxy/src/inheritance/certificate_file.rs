//! Certificates and their keys as bytes. Whoever wrote them is not trusted: every length is checked before it
//! is used, and the caller decides what the contents are good for. This file uses nothing but plain types:
//! the fuzz target `inheritance` includes it.

use std::io::{self, Write};

/// First bytes; another layout has others.
const MAGIC: &[u8; 8] = b"nm-cert\x01";
/// Most bytes of the whole file.
pub const MAX_CERTIFICATE_FILE_BYTES: u64 = 16 << 20;
/// Most roots that are written or read.
pub const MAX_ROOTS: usize = 64;
/// Most identities that are written or read: one for each pod of a node, and the agent's own.
pub const MAX_IDENTITIES: usize = 4097;

/// The contents of the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CertificateFile<'a> {
    /// The roots in force (DER).
    pub roots: Vec<&'a [u8]>,
    /// One entry for each identity.
    pub entries: Vec<CertificateEntry<'a>>,
}

/// An identity's certificate and key.
#[derive(Debug, PartialEq, Eq)]
pub struct CertificateEntry<'a> {
    /// URI of the identity.
    pub uri: &'a str,
    /// The chain without a root, the leaf first (PEM).
    pub chain: &'a str,
    /// The private key (PKCS #8, DER).
    pub key: &'a [u8],
}

/// Writes the contents piece by piece, so that keys are copied nowhere else. Roots and entries beyond the
/// bounds are left out. Errors: those of `to`, or a field is too long (4 GiB).
pub fn write_certificate_file(contents: &CertificateFile<'_>, to: &mut impl Write) -> io::Result<()> {
    let roots = &contents.roots[..contents.roots.len().min(MAX_ROOTS)];
    let entries = &contents.entries[..contents.entries.len().min(MAX_IDENTITIES)];
    to.write_all(MAGIC)?;
    number(roots.len(), to)?;
    roots.iter().try_for_each(|root| field(root, to))?;
    number(entries.len(), to)?;
    entries.iter().try_for_each(|entry| {
        field(entry.uri.as_bytes(), to)?;
        field(entry.chain.as_bytes(), to)?;
        field(entry.key, to)
    })
}

/// Parses the contents; none if the bytes are not of this layout or exceed a bound.
pub fn parse_certificate_file(bytes: &[u8]) -> Option<CertificateFile<'_>> {
    let mut from = Reader(bytes.strip_prefix(MAGIC)?);
    let roots = from.number(MAX_ROOTS)?;
    let roots = (0..roots).map(|_| from.field()).collect::<Option<_>>()?;
    let entries = from.number(MAX_IDENTITIES)?;
    let entries = (0..entries).map(|_| from.entry()).collect::<Option<_>>()?;
    from.0.is_empty().then_some(CertificateFile { roots, entries })
}

fn number(number: usize, to: &mut impl Write) -> io::Result<()> {
    let number = u32::try_from(number).map_err(|_| io::ErrorKind::FileTooLarge)?;
    to.write_all(&number.to_le_bytes())
}

fn field(bytes: &[u8], to: &mut impl Write) -> io::Result<()> {
    number(bytes.len(), to)?;
    to.write_all(bytes)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self, most: usize) -> Option<usize> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        usize::try_from(u32::from_le_bytes(*number)).ok().filter(|number| *number <= most)
    }

    fn field(&mut self) -> Option<&'a [u8]> {
        let length = self.number(self.0.len())?;
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.field()?).ok()
    }

    fn entry(&mut self) -> Option<CertificateEntry<'a>> {
        Some(CertificateEntry { uri: self.text()?, chain: self.text()?, key: self.field()? })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn example() -> Vec<u8> {
        let entry = |uri| CertificateEntry { uri, chain: "-----BEGIN CERTIFICATE-----", key: b"\x30\x00" };
        let entries = vec![entry("spiffe://td/ns/a/sa/b"), entry("spiffe://td/ns/a/sa/c")];
        let mut bytes = Vec::new();
        write_certificate_file(&CertificateFile { roots: vec![b"one", b""], entries }, &mut bytes).unwrap();
        bytes
    }

    #[test]
    #[ignore = "writes into the tree: the first inputs of the fuzz target `inheritance`"]
    fn write_seeds() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/inheritance");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("two"), example()).unwrap();
        std::fs::write(directory.join("none"), [&MAGIC[..], &[0; 8]].concat()).unwrap();
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = example();
        let contents = parse_certificate_file(&bytes).unwrap();
        assert_eq!(contents.roots, [&b"one"[..], b""]);
        assert_eq!(contents.entries[1].uri, "spiffe://td/ns/a/sa/c");
        let mut again = Vec::new();
        write_certificate_file(&contents, &mut again).unwrap();
        assert_eq!(again, bytes);
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let bytes = example();
        for length in 0..bytes.len() {
            assert_eq!(parse_certificate_file(&bytes[..length]), None, "cut at {length}");
        }
        for place in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut strange = bytes.clone();
                strange[place] = value;
                let _total = parse_certificate_file(&strange);
            }
        }
        assert_eq!(parse_certificate_file(&[&bytes[..], b"x"].concat()), None, "nothing may follow");
        let many = u32::try_from(MAX_IDENTITIES + 1).unwrap().to_le_bytes();
        assert_eq!(parse_certificate_file(&[&MAGIC[..], &[0; 4], &many, &vec![0; 1 << 16]].concat()), None);
    }
}
