//! What of a list is asked for: a namespace's, or those of some names.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use clap::Args;
use mesh_api::admin::{CertificateStatus, ConnectionStatus, ServiceStatus, WorkloadStatus};

use crate::policies::Policy;
use crate::source::{Answers, Nodes};

/// What of a list is asked for.
#[derive(Args, Clone, Debug, Default)]
pub struct Selection {
    /// Only these, each NAME or NAMESPACE/NAME
    // Nodes have names, too, and each argument needs an id of its own.
    #[arg(id = "asked", value_name = "NAME")]
    names: Vec<String>,
    /// Only what is in this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// What is in any namespace, as without -n
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Whose agents are asked.
    #[command(flatten)]
    pub nodes: Nodes,
}

/// An item of a list, by the names that it may be asked for with.
pub trait Named {
    /// What one item is called, such as `workload`.
    const WHAT: &str;

    /// Each namespace and name that it goes by.
    fn names(&self) -> Vec<(&str, &str)>;
}

impl Selection {
    /// Leaves what was asked for of what each node answered. Errors: nothing has a name that was given.
    pub fn choose<T: Named>(&self, mut answers: Answers<Vec<T>>) -> Result<Answers<Vec<T>>> {
        self.retain(answers.iter_mut().map(|(_, items)| items))?;
        Ok(answers)
    }

    /// The same of one list.
    pub fn among<T: Named>(&self, mut items: Vec<T>) -> Result<Vec<T>> {
        self.retain(std::iter::once(&mut items))?;
        Ok(items)
    }

    fn retain<'a, T: Named + 'a>(&self, lists: impl Iterator<Item = &'a mut Vec<T>>) -> Result<()> {
        let mut missing: BTreeSet<&str> = self.names.iter().map(String::as_str).collect();
        let within = self.namespace.as_deref().filter(|_| !self.all_namespaces);
        for items in lists {
            items.retain(|item| {
                let mut names = item.names();
                names.retain(|(namespace, _)| within.is_none_or(|it| it == *namespace));
                let asked: Vec<_> =
                    self.names.iter().filter(|it| names.iter().any(|name| is_meant(it, *name))).collect();
                for name in &asked {
                    missing.remove(name.as_str());
                }
                if self.names.is_empty() { within.is_none() || !names.is_empty() } else { !asked.is_empty() }
            });
        }
        let missing: Vec<_> = missing.into_iter().collect();
        let place = within.map(|it| format!(" in the namespace {it}")).unwrap_or_default();
        ensure!(missing.is_empty(), "there is no {} {}{place}", T::WHAT, missing.join(", "));
        Ok(())
    }
}

/// Whether `asked`, NAME or NAMESPACE/NAME, means what goes by this name.
fn is_meant(asked: &str, (namespace, name): (&str, &str)) -> bool {
    asked == name || asked.split_once('/').is_some_and(|it| it == (namespace, name))
}

impl Named for WorkloadStatus {
    const WHAT: &str = "workload";

    fn names(&self) -> Vec<(&str, &str)> {
        vec![(&self.namespace, &self.name)]
    }
}

impl Named for ServiceStatus {
    const WHAT: &str = "service";

    /// Its host, and the first part of it, which is the service's name.
    fn names(&self) -> Vec<(&str, &str)> {
        let name = self.hostname.split('.').next().unwrap_or_default();
        vec![(&self.namespace, &self.hostname), (&self.namespace, name)]
    }
}

impl Named for Policy {
    const WHAT: &str = "policy";

    fn names(&self) -> Vec<(&str, &str)> {
        vec![(&self.namespace, &self.name)]
    }
}

impl Named for CertificateStatus {
    const WHAT: &str = "certificate of";

    /// Its service account, and the identity as a whole.
    fn names(&self) -> Vec<(&str, &str)> {
        let path = self.identity.split_once("/ns/").map(|(_, rest)| rest);
        let Some((namespace, account)) = path.and_then(|path| path.split_once("/sa/")) else {
            return vec![("", &self.identity)];
        };
        vec![(namespace, account), (namespace, &self.identity)]
    }
}

impl Named for ConnectionStatus {
    const WHAT: &str = "open connection of";

    /// The pods at its ends.
    fn names(&self) -> Vec<(&str, &str)> {
        let ends = [&self.source_workload, &self.destination_workload];
        ends.into_iter().flatten().filter_map(|end| end.split_once('/')).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Endpoint;
    use crate::source::Node;

    struct Item(&'static str, &'static str);

    impl Named for Item {
        const WHAT: &str = "policy";

        fn names(&self) -> Vec<(&str, &str)> {
            vec![(self.0, self.1)]
        }
    }

    fn chosen(selection: &Selection) -> Result<Vec<String>> {
        let node = |name: &str| Node { name: name.into(), endpoint: Endpoint::Unix(name.into()) };
        let answers = vec![
            (node("a"), vec![Item("shop", "web"), Item("shop", "db")]),
            (node("b"), vec![Item("bank", "web")]),
        ];
        let left = selection.choose(answers)?.into_iter().flat_map(|(_, items)| items);
        Ok(left.map(|Item(namespace, name)| format!("{namespace}/{name}")).collect())
    }

    fn selection(namespace: Option<&str>, names: &[&str]) -> Selection {
        Selection {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            namespace: namespace.map(str::to_owned),
            ..Selection::default()
        }
    }

    #[test]
    fn namespaces_and_names_choose() {
        for (namespace, names, expected) in [
            (None, &[][..], "shop/web shop/db bank/web"),
            (Some("shop"), &[], "shop/web shop/db"),
            (Some("none"), &[], ""),
            (None, &["web"], "shop/web bank/web"),
            (None, &["bank/web", "db"], "shop/db bank/web"),
            (Some("bank"), &["web"], "bank/web"),
        ] {
            let left = chosen(&selection(namespace, names)).unwrap();
            assert_eq!(left.join(" "), expected, "{namespace:?} {names:?}");
        }
        let error = chosen(&selection(Some("bank"), &["db", "web"])).unwrap_err().to_string();
        assert_eq!(error, "there is no policy db in the namespace bank");
    }

    #[test]
    fn every_kind_of_item_goes_by_its_names() {
        let certificate = CertificateStatus {
            identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
            state: "valid".into(),
            serial: None,
            not_before: None,
            not_after: None,
            roots: vec![],
            error: None,
        };
        assert!(certificate.names().contains(&("shop", "web")));
        let service = ServiceStatus {
            namespace: "shop".into(),
            hostname: "web.shop.svc.cluster.local".into(),
            addresses: vec![],
            ports: vec![],
            ready_endpoints: 0,
            endpoints: 0,
        };
        assert_eq!(service.names(), [("shop", "web.shop.svc.cluster.local"), ("shop", "web")]);
    }
}
