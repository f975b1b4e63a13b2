//! Networks, as Istio's kinds name them.

use std::net::IpAddr;

use ipnet::IpNet;

/// An address, or a range of them. Not by `ipnet`'s own parser, which takes an octet like `010`: it means 10
/// to some and 8 to others, and Go, with which Istio reads it, refuses it too.
pub(super) fn parse(text: &str) -> Option<IpNet> {
    let Some((address, length)) = text.split_once('/') else {
        return text.parse::<IpAddr>().ok().map(IpNet::from);
    };
    let is_plain = length == "0" || length.starts_with(|digit: char| matches!(digit, '1'..='9'));
    IpNet::new(address.parse().ok()?, length.parse().ok().filter(|_| is_plain)?).ok()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn an_address_that_means_two_things_is_none() {
        for text in ["10.0.0.0/8", "192.0.2.7", "fd00::/64", "::ffff:192.0.2.7", "0.0.0.0/0"] {
            assert!(parse(text).is_some(), "{text}");
        }
        for text in [
            "010.0.0.0/8",
            "10.0.00.0/8",
            "10.0.0.07",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/33",
            "10.0.0.0/",
        ] {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
