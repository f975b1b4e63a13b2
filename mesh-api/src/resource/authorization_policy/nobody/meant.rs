//! What was probably meant by a value that can match nobody.

use super::{Pattern, is_principal};
use crate::identity::is_trust_domain;
use crate::resource::metadata::{is_label, is_subdomain};

/// How a person would name the first character that no name has; none if there is none such.
pub(super) fn stranger(text: &str) -> Option<String> {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._/*:".contains(c);
    let odd = text.chars().find(|c| !known(*c))?;
    Some(match odd {
        ' ' => "a blank".to_owned(),
        odd if odd.is_ascii_uppercase() => format!("the capital `{odd}`"),
        odd if odd.is_ascii_graphic() => format!("the character `{odd}`"),
        odd => {
            format!("the character {} (U+{:04X}), which is not of ASCII", odd.escape_debug(), u32::from(odd))
        }
    })
}

/// What to write instead of a principal.
pub(super) fn principal(pattern: &Pattern) -> String {
    let text = cleaned(&pattern.to_string());
    if is_principal(&Pattern::from(text.as_str())) {
        return format!("write {text:?}");
    }
    let guess = if text.contains('*') { None } else { complete(&text) };
    guess.unwrap_or_else(|| {
        "write it like `cluster.local/ns/shop/sa/frontend`, without `spiffe://`; `*` may stand at one end"
            .to_owned()
    })
}

/// What to write instead of a namespace.
pub(super) fn namespace(pattern: &Pattern) -> String {
    let text = cleaned(&pattern.to_string()).replace('_', "-");
    let text = text.strip_prefix("ns/").unwrap_or(&text);
    // As in `shop.svc.cluster.local`.
    let first = text.split('.').next().unwrap_or_default();
    match [text, first].into_iter().find(|text| super::is_part(&Pattern::from(*text), is_label)) {
        Some(name) => format!("write {name:?}"),
        None => "write the namespace's name as `kubectl get namespaces` shows it".to_owned(),
    }
}

/// What to write instead of a trust domain.
pub(super) fn trust_domain(pattern: &Pattern) -> String {
    let text = cleaned(&pattern.to_string());
    let first = text.split('/').next().unwrap_or_default();
    if super::is_part(&Pattern::from(first), is_trust_domain) {
        return format!("write {first:?}");
    }
    "write it like `cluster.local`".to_owned()
}

/// What to write instead of the name of a service account.
pub(super) fn service_account(name: &str) -> String {
    let text = cleaned(name);
    if is_subdomain(&text) {
        return format!("write {text:?}");
    }
    "write its name as `kubectl get serviceaccounts` shows it, or `NAMESPACE/NAME`".to_owned()
}

/// What to write for a principal of which parts are missing or in another order.
fn complete(text: &str) -> Option<String> {
    let text = text.replace(':', "/");
    let text = text.strip_prefix("system/serviceaccount/").unwrap_or(&text);
    let segments: Vec<_> = text.split('/').filter(|part| !part.is_empty()).collect();
    let after = |word: &str| {
        let at = segments.iter().position(|part| *part == word)?;
        segments.get(at + 1).copied()
    };
    let first = segments.first().copied()?;
    let domain = (!matches!(first, "ns" | "sa")).then_some(first);
    let name = is_subdomain;
    let domain_or_star = domain.unwrap_or("*");
    match (after("ns"), after("sa"), segments.as_slice()) {
        (Some(ns), Some(sa), _) if is_label(ns) && name(sa) => {
            Some(format!("write \"{domain_or_star}/ns/{ns}/sa/{sa}\""))
        }
        (None, Some(sa), _) if name(sa) => Some(match domain {
            Some(domain) => {
                format!("write \"{domain}/ns/NAMESPACE/sa/{sa}\", or \"*/sa/{sa}\" for every namespace's")
            }
            None => {
                format!("write \"*/sa/{sa}\", or `serviceAccounts: [\"{sa}\"]` for that of this namespace")
            }
        }),
        (Some(ns), None, _) if is_label(ns) => Some(match domain {
            Some(domain) => format!("write \"{domain}/ns/{ns}/*\" for all of the namespace"),
            None => format!("write `namespaces: [\"{ns}\"]` for all of the namespace"),
        }),
        (None, None, [sa]) if name(sa) => Some(format!(
            "for the service account write `serviceAccounts: [\"{sa}\"]`, or \"*/sa/{sa}\" for every namespace's; for the \
             namespace, `namespaces: [\"{sa}\"]`"
        )),
        (None, None, [ns, sa]) if is_label(ns) && name(sa) => Some(format!("write \"*/ns/{ns}/sa/{sa}\"")),
        _ => None,
    }
}

/// The text without what slips in unseen: a scheme, blanks, slashes at the ends, capitals, letters of other
/// scripts.
fn cleaned(text: &str) -> String {
    let plain: String = text.chars().filter_map(ascii).flat_map(char::to_lowercase).collect();
    let plain = plain.strip_prefix("spiffe://").unwrap_or(&plain);
    plain.trim_matches('/').to_owned()
}

/// The character of ASCII that one looks like; none for what can't be seen.
fn ascii(odd: char) -> Option<char> {
    const ALIKE: [(char, &str); 25] = [
        ('a', "\u{430}\u{410}\u{3b1}\u{391}\u{251}"),
        ('b', "\u{412}\u{392}"),
        ('c', "\u{441}\u{421}\u{3f2}"),
        ('d', "\u{501}"),
        ('e', "\u{435}\u{415}\u{395}"),
        ('g', "\u{261}"),
        ('h', "\u{4bb}\u{41d}\u{397}"),
        ('i', "\u{456}\u{406}\u{3b9}\u{399}\u{131}"),
        ('j', "\u{458}\u{408}"),
        ('k', "\u{43a}\u{41a}\u{3ba}\u{39a}"),
        ('l', "\u{4cf}\u{4c0}"),
        ('m', "\u{41c}\u{39c}"),
        ('n', "\u{578}\u{39d}"),
        ('o', "\u{43e}\u{41e}\u{3bf}\u{39f}"),
        ('p', "\u{440}\u{420}\u{3c1}\u{3a1}"),
        ('q', "\u{51b}"),
        ('s', "\u{455}\u{405}"),
        ('t', "\u{422}\u{3a4}"),
        ('u', "\u{57d}\u{3c5}"),
        ('v', "\u{3bd}\u{475}"),
        ('w', "\u{51d}"),
        ('x', "\u{445}\u{425}\u{3c7}\u{3a7}"),
        ('y', "\u{443}\u{423}\u{3a5}"),
        ('-', "\u{2010}\u{2011}\u{2012}\u{2013}\u{2014}\u{2212}"),
        ('/', "\u{2044}\u{2215}\\"),
    ];
    const UNSEEN: &str = "\u{ad}\u{200b}\u{200c}\u{200d}\u{200e}\u{200f}\u{2060}\u{feff}";
    if odd.is_whitespace() || odd.is_control() || UNSEEN.contains(odd) {
        return None;
    }
    if let full @ '\u{ff01}'..='\u{ff5e}' = odd {
        return char::from_u32(u32::from(full) - 0xfee0);
    }
    Some(ALIKE.iter().find(|(_, alike)| alike.contains(odd)).map_or(odd, |(plain, _)| *plain))
}
