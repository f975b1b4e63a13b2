//! Where the head of a message ends.

use super::Malformed;

/// Most bytes of a head, with its last empty line.
pub const MAX_HEAD: usize = 60 * 1024;
/// Most fields of a head.
pub const MAX_FIELDS: usize = 100;

/// Returns the length of the head that `bytes` begin with, its last empty line included; none if that has not
/// come yet. `searched` is how many bytes were looked at before; it is updated. Errors: a line does not end
/// in CR LF, or the head is too large.
pub fn find_head_end(bytes: &[u8], searched: &mut usize) -> Result<Option<usize>, Malformed> {
    let from = *searched;
    *searched = bytes.len();
    for (index, _) in bytes.iter().enumerate().skip(from).filter(|(_, byte)| **byte == b'\n') {
        let line_start =
            bytes[..index].iter().rposition(|byte| *byte == b'\n').map_or(0, |before| before + 1);
        match &bytes[line_start..index] {
            b"\r" => return if index < MAX_HEAD { Ok(Some(index + 1)) } else { Err(Malformed::TooLarge) },
            [.., b'\r'] => {}
            _ => return Err(Malformed::Invalid("a line of the head ends without CR")),
        }
    }
    if bytes.len() > MAX_HEAD { Err(Malformed::TooLarge) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_ends_with_an_empty_line_however_it_comes() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody\r\n\r\n";
        let mut searched = 0;
        for end in 0..27 {
            assert_eq!(find_head_end(&head[..end], &mut searched), Ok(None), "{end}");
        }
        assert_eq!(find_head_end(head, &mut searched), Ok(Some(27)));
    }

    #[test]
    fn a_line_without_cr_is_refused_as_soon_as_it_comes() {
        for bad in ["GET / HTTP/1.1\n", "GET / HTTP/1.1\r\nHost: a\n", "A\r\n\n", "\n"] {
            assert!(find_head_end(bad.as_bytes(), &mut 0).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_head_that_does_not_end_is_bounded() {
        let line = b"X: 1234567890\r\n".repeat(MAX_HEAD / 15 + 1);
        assert_eq!(find_head_end(&line, &mut 0), Err(Malformed::TooLarge));
    }
}
