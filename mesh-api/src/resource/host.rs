//! Names of hosts, as Istio's kinds for traffic have them.

use super::metadata::is_label;

/// What a host may begin with instead of its first label, or a part of it (Istio,
/// `pkg/config/labels/instance.go`).
const WILDCARDS: [&str; 3] = ["*.", "*-", "*"];

/// Most characters of a host, as in the name system.
const MAX_LENGTH: usize = 253;

/// The host that `text` names, in the form in which hosts are compared: in lower case, since names do not
/// differ by case, nor by the dot that ends a full one. It may be for all that ends so: `*.x`, `*-x`, `*x`.
/// `*` alone is none: not every kind takes it.
pub(super) fn parse(text: &str) -> Option<String> {
    let host = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let end = WILDCARDS.into_iter().find_map(|wildcard| host.strip_prefix(wildcard));
    (host.len() <= MAX_LENGTH && is_domain(end.unwrap_or(&host))).then_some(host)
}

/// Whether `text` is labels in lower case with dots between them.
pub(super) fn is_domain(text: &str) -> bool {
    text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn hosts_are_what_istio_takes_for_hosts() {
        for (text, host) in [
            ("web", "web"),
            ("API.bank.example", "api.bank.example"),
            ("*.bank.example", "*.bank.example"),
            ("*-EU.bank.example", "*-eu.bank.example"),
            ("*bank.example", "*bank.example"),
            ("bank.example.", "bank.example"),
        ] {
            assert_eq!(parse(text).as_deref(), Some(host), "{text}");
        }
        let long = vec!["a"; 128].join(".");
        for bad in
            ["", "*", "*.", "*-", "**", "*.*", "a..b", "-a", "a_b", "a.*.b", ".", "a.b..", long.as_str()]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
