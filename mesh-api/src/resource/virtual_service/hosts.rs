//! The hosts of a virtual service, and which includes which.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::document::cursor::{Cursor, quoted};
use crate::resource::host;

/// Reads `hosts`. `None`: one can't be read, so that it is not known what they include.
pub(super) fn read_list(at: &Cursor<'_>) -> Option<Vec<String>> {
    let items = at.items();
    let read = |at: &Cursor<'_>| read(at, at.non_empty_string()?);
    let hosts: Vec<Option<String>> = items.iter().map(read).collect();
    refuse_overlaps(items.iter().zip(&hosts).filter_map(|(at, host)| Some((at, host.as_deref()?))));
    hosts.into_iter().collect::<Option<Vec<_>>>().filter(|hosts| !hosts.is_empty())
}

fn refuse_overlaps<'a>(hosts: impl Iterator<Item = (&'a Cursor<'a>, &'a str)> + Clone) {
    let all: HostSet<'_> = hosts.clone().map(|(_, host)| host).collect();
    let mut seen = HashSet::new();
    for (at, host) in hosts {
        if let Some(end) = all.wider(host) {
            at.error(format!("\"*{end}\" includes this host"), "remove one of the two");
        } else if !seen.insert(host) {
            at.error("this host is already there", "remove one of the two");
        }
    }
}

/// Reads one of `hosts`: a name, also with a wildcard in front, or an address.
pub(super) fn read(at: &Cursor<'_>, text: &str) -> Option<String> {
    let is_as_written = text == "*" || text.parse::<IpAddr>().is_ok();
    let host = if is_as_written { Some(text.to_ascii_lowercase()) } else { host::parse(text) };
    if host.is_none() {
        let fix = "write a service's name, a full host name, one that begins with `*.`, or an IP address";
        at.error(format!("{} is not a host", quoted(text)), fix);
    }
    host
}

/// Hosts by what they include.
pub(super) struct HostSet<'a> {
    all: HashSet<&'a str>,
    /// What is behind the star of those that have one.
    ends: HashSet<&'a str>,
}

impl<'a> FromIterator<&'a str> for HostSet<'a> {
    fn from_iter<I: IntoIterator<Item = &'a str>>(hosts: I) -> Self {
        let all: HashSet<_> = hosts.into_iter().collect();
        let ends = all.iter().filter_map(|host| host.strip_prefix('*')).collect();
        Self { all, ends }
    }
}

impl<'a> HostSet<'a> {
    pub fn new(hosts: &'a [String]) -> Self {
        hosts.iter().map(String::as_str).collect()
    }

    /// Whether one of them is `host` or includes it.
    pub fn include(&self, host: &str) -> bool {
        self.all.contains(host) || self.wider(host).is_some()
    }

    /// What is behind the star of one that includes `host` and is another: any that `host` ends with.
    fn wider<'h>(&self, host: &'h str) -> Option<&'h str> {
        let name = host.strip_prefix('*');
        let first = usize::from(name.is_some());
        let name = name.unwrap_or(host);
        (first..=name.len()).filter_map(|start| name.get(start..)).find(|end| self.ends.contains(*end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_included_by_itself_and_by_wider_ones() {
        let includes = |wide: &str, host: &str| HostSet::from_iter([wide]).include(host);
        for (wide, host) in [
            ("a.example", "a.example"),
            ("*.example", "a.example"),
            ("*.example", "a.b.example"),
            ("*.example", "*.b.example"),
            ("*", "*.example"),
            ("*", "*"),
            ("*-eu.example", "a-eu.example"),
            ("*-eu.example", "*-b-eu.example"),
            ("*example", "example"),
            ("*example", "*.example"),
        ] {
            assert!(includes(wide, host), "{wide} {host}");
        }
        for (wide, host) in [
            ("*.example", "example"),
            ("a.example", "*.example"),
            ("*.b", "a.bb"),
            ("a", "*"),
            ("*-a.b", "*.b"),
        ] {
            assert!(!includes(wide, host), "{wide} {host}");
        }
    }
}
