//! Names of hosts, and which includes which.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::document::cursor::Cursor;
use crate::resource::metadata::is_label;

/// Reads `hosts`.
pub(super) fn read_list(at: &Cursor<'_>) -> Vec<String> {
    let items = at.non_empty_strings();
    let hosts: Vec<_> = items.iter().filter_map(|(at, text)| Some((at, read(at, text)?))).collect();
    let all: HashSet<_> = hosts.iter().map(|(_, host)| host.as_str()).collect();
    let mut seen = HashSet::new();
    for (at, host) in &hosts {
        if let Some(wider) = wider(host).find(|wider| all.contains(wider.as_str())) {
            at.error(format!("{wider:?} includes this host"), "remove one of the two");
        } else if !seen.insert(host.as_str()) {
            at.error("this host is already there", "remove one of the two");
        }
    }
    hosts.into_iter().map(|(_, host)| host).collect()
}

/// Reads one of `hosts`: a name, also with `*.` in front, or an address.
pub(super) fn read(at: &Cursor<'_>, text: &str) -> Option<String> {
    let host = normal(text);
    let is_good = host == "*" || is_name(&host) || text.parse::<IpAddr>().is_ok();
    if !is_good {
        let fix = "write a service's name, a full host name, one that begins with `*.`, or an IP address";
        at.error(format!("{text:?} is not a host"), fix);
    }
    is_good.then_some(host)
}

/// Names do not differ by case, nor by the dot that ends a full one.
pub(super) fn normal(text: &str) -> String {
    text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase()
}

/// Whether `host`, in its normal form, is a name, also with `*.` in front.
pub(super) fn is_name(host: &str) -> bool {
    host.len() <= 253 && host.strip_prefix("*.").unwrap_or(host).split('.').all(is_label)
}

/// Whether one of `hosts` is `host` or includes it.
pub(super) fn include(hosts: &HashSet<&str>, host: &str) -> bool {
    hosts.contains(host) || wider(host).any(|wider| hosts.contains(wider.as_str()))
}

/// What includes `host` beside itself, from the narrowest on.
fn wider(host: &str) -> impl Iterator<Item = String> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let parents = name.match_indices('.').map(move |(dot, _)| format!("*{}", &name[dot..]));
    parents.chain((host != "*").then(|| "*".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_included_by_itself_and_by_wider_ones() {
        let includes = |wide: &str, host: &str| include(&HashSet::from([wide]), host);
        for (wide, host) in [
            ("a.example", "a.example"),
            ("*.example", "a.example"),
            ("*.example", "a.b.example"),
            ("*.example", "*.b.example"),
            ("*", "*.example"),
            ("*", "*"),
        ] {
            assert!(includes(wide, host), "{wide} {host}");
        }
        for (wide, host) in
            [("*.example", "example"), ("a.example", "*.example"), ("*.b", "a.bb"), ("a", "*")]
        {
            assert!(!includes(wide, host), "{wide} {host}");
        }
    }
}
