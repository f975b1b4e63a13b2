//! Our plugin in a network list (`*.conflist`): put in behind the last plugin, and taken out.
//!
//! The file is somebody else's, so its text is not written anew but cut: what is not ours stays byte for
//! byte, and a list that our plugin was taken out of is as it was before.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::TYPE;
use crate::call::VERSIONS;

/// Why our plugin can't be put into a configuration.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is no JSON, or no network.
    NoNetwork(String),
    /// It is one plugin's, and not a list.
    Single,
    /// Our plugin does not know this version of the specification.
    Version(String),
}

/// A network list, or a network of one plugin.
#[derive(Deserialize)]
struct Network<'a> {
    #[serde(rename = "cniVersion", borrow, default)]
    version: Cow<'a, str>,
    #[serde(borrow, default)]
    plugins: Option<Vec<&'a RawValue>>,
    #[serde(rename = "type", borrow, default)]
    kind: Option<Cow<'a, str>>,
}

/// Only what says whose a plugin is.
#[derive(Deserialize)]
struct Plugin<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Cow<'a, str>,
}

/// The list with our plugin, which `entry` is the JSON of; none if it has exactly that already.
pub fn chain(text: &str, entry: &str) -> Result<Option<String>, Refused> {
    let plugins = plugins(text)?;
    let ours: Vec<_> = plugins.iter().filter(|plugin| is_ours(&text[(*plugin).clone()])).collect();
    match ours[..] {
        [one] if text[one.clone()] == *entry => return Ok(None),
        [] => {}
        // Another version of us, or several: all are taken out, and one is put in.
        _ => {
            let without = unchain(text).unwrap_or_default();
            return chain(&without, entry).map(|with| with.or(Some(without)));
        }
    }
    let end = plugins.last().map_or(0, |last| last.end);
    Ok(Some(format!("{}, {entry}{}", &text[..end], &text[end..])))
}

/// The list without our plugin; none if it has none.
pub fn unchain(text: &str) -> Option<String> {
    let plugins = spans(text, &serde_json::from_str::<Network<'_>>(text).ok()?.plugins?);
    let ours = plugins.iter().position(|plugin| is_ours(&text[plugin.clone()]))?;
    // With the comma and the space before it, or after it where it is the first.
    let cut = match (ours.checked_sub(1), plugins.get(ours + 1)) {
        (Some(before), _) => plugins[before].end..plugins[ours].end,
        (None, Some(next)) => plugins[ours].start..next.start,
        (None, None) => plugins[ours].clone(),
    };
    let without = format!("{}{}", &text[..cut.start], &text[cut.end..]);
    Some(unchain(&without).unwrap_or(without))
}

/// Where in the text of a list each of its plugins is.
fn plugins(text: &str) -> Result<Vec<Range<usize>>, Refused> {
    let network: Network<'_> =
        serde_json::from_str(text).map_err(|error| Refused::NoNetwork(error.to_string()))?;
    match &network.plugins {
        Some(plugins) if !plugins.is_empty() => {
            if VERSIONS.contains(&&*network.version) {
                Ok(spans(text, plugins))
            } else {
                Err(Refused::Version(network.version.into_owned()))
            }
        }
        None if network.kind.is_some() => Err(Refused::Single),
        _ => Err(Refused::NoNetwork("it names no plugin".to_owned())),
    }
}

/// The plugins were borrowed from the text, so they are parts of it.
fn spans(text: &str, plugins: &[&RawValue]) -> Vec<Range<usize>> {
    let start = |part: &str| part.as_ptr() as usize - text.as_ptr() as usize;
    plugins.iter().map(|plugin| start(plugin.get())..start(plugin.get()) + plugin.get().len()).collect()
}

fn is_ours(plugin: &str) -> bool {
    serde_json::from_str::<Plugin<'_>>(plugin).is_ok_and(|plugin| plugin.kind == TYPE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"type": "nodemesh-cni", "socket": "/s", "state": "/t"}"#;
    /// With what a rewriting would change: order, spaces, numbers, a field that nobody knows.
    const LIST: &str = r#"{
      "name": "k8s",   "cniVersion": "0.4.0",
      "unheardOf": 1.50e3,
      "plugins": [
        {"type": "bridge", "mtu": 9000, "x": {"type": "nodemesh-cni"}},
        {"type": "portmap", "capabilities": {"portMappings": true}}
      ]
    }
"#;

    #[test]
    fn it_is_put_in_behind_the_last_and_everything_else_stays() {
        let with = chain(LIST, ENTRY).unwrap().unwrap();
        assert_eq!(with, LIST.replace("true}}\n", &format!("true}}}}, {ENTRY}\n")));
        let parsed: serde_json::Value = serde_json::from_str(&with).unwrap();
        assert_eq!(parsed["plugins"][2]["type"], TYPE);
        assert_eq!(chain(&with, ENTRY).unwrap(), None, "once is enough");
        assert_eq!(unchain(&with).as_deref(), Some(LIST), "byte for byte");
        assert_eq!(unchain(LIST), None);
    }

    #[test]
    fn another_version_of_it_is_replaced() {
        let newer = ENTRY.replace("/s", "/run/s");
        let with = chain(LIST, ENTRY).unwrap().unwrap();
        let replaced = chain(&with, &newer).unwrap().unwrap();
        assert_eq!(replaced, chain(LIST, &newer).unwrap().unwrap());
        let twice = with.replace(ENTRY, &format!("{ENTRY}, {ENTRY}"));
        assert_eq!(chain(&twice, ENTRY).unwrap().as_deref(), Some(&*with));
        assert_eq!(unchain(&twice).as_deref(), Some(LIST));
    }

    #[test]
    fn what_others_put_behind_it_stays() {
        let others = LIST.replace(
            r#"{"type": "bridge""#,
            &format!(r#"{ENTRY}, {{"type": "tuning"}}, {{"type": "bridge""#),
        );
        assert_eq!(chain(&others, ENTRY).unwrap(), None);
        assert_eq!(unchain(&others).unwrap(), others.replace(&format!("{ENTRY}, "), ""));
        let alone = format!(r#"{{"cniVersion": "1.0.0", "plugins": [{ENTRY}]}}"#);
        assert_eq!(unchain(&alone).unwrap(), r#"{"cniVersion": "1.0.0", "plugins": []}"#);
    }

    #[test]
    fn what_is_no_list_is_refused_for_a_reason() {
        assert_eq!(chain(r#"{"cniVersion": "0.4.0", "type": "bridge"}"#, ENTRY), Err(Refused::Single));
        for none in ["", "[]", "{", "{}", r#"{"cniVersion": "0.4.0", "plugins": []}"#, r#"{"plugins": 7}"#] {
            assert!(matches!(chain(none, ENTRY), Err(Refused::NoNetwork(_))), "{none}");
        }
        for version in ["", "0.2.0", "2.0.0"] {
            let list = LIST.replace("0.4.0", version);
            assert_eq!(chain(&list, ENTRY), Err(Refused::Version(version.into())));
        }
    }
}
