//! Fields that concern one connection and end here (RFC 9110, 7.6.1).

use super::Malformed;

/// What the `Connection` fields of a message say.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionOptions {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
    /// Names of fields that end here, too; in lower case.
    named: Vec<String>,
}

/// Most fields that a message may name as ending here.
const MAX_NAMED: usize = 32;

/// Fields that a `Connection` field can't take away: they frame or route the message, or say who sends it.
const PROTECTED: [&str; 13] = [
    "authorization",
    "baggage",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "te",
    "transfer-encoding",
    "via",
    "x-request-id",
];

impl ConnectionOptions {
    /// Returns the number of bytes that memory is kept for, about.
    pub fn capacity(&self) -> usize {
        self.named.capacity() * size_of::<String>()
    }

    pub fn clear(&mut self) {
        self.named.clear();
        (self.close, self.keep_alive, self.upgrade) = (false, false, false);
    }

    /// Reads one `Connection` field. Errors: it is no list of tokens.
    pub fn read(&mut self, value: &[u8]) -> Result<(), Malformed> {
        let text = std::str::from_utf8(value).map_err(|_| Malformed::Invalid("Connection is no list"))?;
        for option in
            text.split(',').map(|option| option.trim_matches([' ', '\t'])).filter(|it| !it.is_empty())
        {
            match option.to_ascii_lowercase().as_str() {
                "close" => self.close = true,
                "keep-alive" => self.keep_alive = true,
                "upgrade" => self.upgrade = true,
                name if PROTECTED.contains(&name) || name.starts_with("x-forwarded-") => {}
                name if self.named.iter().any(|it| it == name) => {}
                _ if self.named.len() == MAX_NAMED => {
                    return Err(Malformed::Invalid("Connection names too many fields"));
                }
                name => self.named.push(name.to_owned()),
            }
        }
        Ok(())
    }

    /// Whether a field ends here. `TE` and `Upgrade` do as well, but each has a meaning that is kept.
    pub fn ends_here(&self, name: &str) -> bool {
        const ALWAYS: [&str; 6] =
            ["connection", "keep-alive", "proxy-connection", "te", "upgrade", "http2-settings"];
        ALWAYS.iter().any(|it| name.eq_ignore_ascii_case(it))
            || self.named.iter().any(|it| name.eq_ignore_ascii_case(it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_fields_end_here_but_not_those_that_matter() {
        let mut options = ConnectionOptions::default();
        options.read(b"close, X-Hop ,host,, X-Forwarded-For, Content-Length").unwrap();
        options.read(b"Upgrade").unwrap();
        assert!(options.close && options.upgrade && !options.keep_alive);
        for (name, ends) in [
            ("x-hop", true),
            ("Host", false),
            ("x-forwarded-for", false),
            ("content-length", false),
            ("Keep-Alive", true),
            ("Connection", true),
            ("accept", false),
        ] {
            assert_eq!(options.ends_here(name), ends, "{name}");
        }
        options.clear();
        assert!(!options.close && !options.ends_here("x-hop"));
    }
}
