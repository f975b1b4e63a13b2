//! What of a list is asked for: a namespace's, or those of some names.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use clap::Args;
use kube::core::Selector;
use mesh_api::admin::{CertificateStatus, ConnectionStatus, ServiceStatus, WorkloadStatus};
use mesh_api::manifest::{Kind, ObjectKey};

use crate::labels::{self, Bearers};
use crate::policies::Policy;
use crate::source::{Answers, Mesh, Nodes};

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
    /// Only what has these labels, as kubectl takes them: app=x,tier!=y,env in (a,b),!z. A connection has
    /// those of the pods at its ends, a certificate those of the pods that it is for
    #[arg(short = 'l', long = "selector", value_name = "LABELS", value_parser = labels::parse)]
    labels: Option<Selector>,
    /// Whose agents are asked.
    #[command(flatten)]
    pub nodes: Nodes,
}

/// An item of a list, by the names that it may be asked for with.
pub trait Named {
    /// What one item is called, such as `workload`.
    const WHAT: &str;

    /// Kinds of the objects whose labels count for it.
    fn kinds() -> Vec<Kind>;

    /// Each namespace and name that it goes by.
    fn names(&self) -> Vec<(&str, &str)>;

    /// The objects whose labels count for it, one of which must have them.
    fn labelled(&self) -> Vec<ObjectKey>;
}

impl Selection {
    /// What has the labels that were asked for, if any were.
    pub async fn bearers<T: Named>(&self, mesh: &Mesh) -> Result<Option<Bearers>> {
        let Some(labels) = &self.labels else { return Ok(None) };
        Ok(Some(labels::bearers(mesh, labels, &T::kinds(), self.within()).await?))
    }

    /// Leaves what was asked for of what each node answered. Errors: nothing has a name that was given.
    pub fn choose<T: Named>(
        &self,
        mut answers: Answers<Vec<T>>,
        bearers: Option<&Bearers>,
    ) -> Result<Answers<Vec<T>>> {
        self.retain(answers.iter_mut().map(|(_, items)| items), bearers)?;
        Ok(answers)
    }

    /// The same of one list.
    pub fn among<T: Named>(&self, mut items: Vec<T>, bearers: Option<&Bearers>) -> Result<Vec<T>> {
        self.retain(std::iter::once(&mut items), bearers)?;
        Ok(items)
    }

    fn within(&self) -> Option<&str> {
        self.namespace.as_deref().filter(|_| !self.all_namespaces)
    }

    fn retain<'a, T: Named + 'a>(
        &self,
        lists: impl Iterator<Item = &'a mut Vec<T>>,
        bearers: Option<&Bearers>,
    ) -> Result<()> {
        let mut missing: BTreeSet<&str> = self.names.iter().map(String::as_str).collect();
        let within = self.within();
        for items in lists {
            if let Some(bearers) = bearers {
                items.retain(|item| item.labelled().iter().any(|it| bearers.contains(it)));
            }
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
        let labels = self.labels.as_ref().map(|it| format!(" with the labels {it}")).unwrap_or_default();
        ensure!(missing.is_empty(), "there is no {} {}{place}{labels}", T::WHAT, missing.join(", "));
        Ok(())
    }
}

/// Whether `asked`, NAME or NAMESPACE/NAME, means what goes by this name.
fn is_meant(asked: &str, (namespace, name): (&str, &str)) -> bool {
    asked == name || asked.split_once('/').is_some_and(|it| it == (namespace, name))
}

fn key(kind: Kind, (namespace, name): (&str, &str)) -> ObjectKey {
    ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

impl Named for WorkloadStatus {
    const WHAT: &str = "workload";

    fn kinds() -> Vec<Kind> {
        vec![Kind::Pod]
    }

    fn names(&self) -> Vec<(&str, &str)> {
        vec![(&self.namespace, &self.name)]
    }

    fn labelled(&self) -> Vec<ObjectKey> {
        vec![key(Kind::Pod, (&self.namespace, &self.name))]
    }
}

impl Named for ServiceStatus {
    const WHAT: &str = "service";

    fn kinds() -> Vec<Kind> {
        vec![Kind::Service]
    }

    /// Its host, and the first part of it, which is the service's name.
    fn names(&self) -> Vec<(&str, &str)> {
        let name = self.hostname.split('.').next().unwrap_or_default();
        vec![(&self.namespace, &self.hostname), (&self.namespace, name)]
    }

    fn labelled(&self) -> Vec<ObjectKey> {
        self.names().into_iter().map(|name| key(Kind::Service, name)).collect()
    }
}

impl Named for Policy {
    const WHAT: &str = "policy";

    fn kinds() -> Vec<Kind> {
        Kind::policies().collect()
    }

    fn names(&self) -> Vec<(&str, &str)> {
        vec![(&self.namespace, &self.name)]
    }

    fn labelled(&self) -> Vec<ObjectKey> {
        vec![key(self.kind, (&self.namespace, &self.name))]
    }
}

impl Named for CertificateStatus {
    const WHAT: &str = "certificate of";

    fn kinds() -> Vec<Kind> {
        vec![Kind::ServiceAccount]
    }

    /// Its service account, and the identity as a whole.
    fn names(&self) -> Vec<(&str, &str)> {
        let path = self.identity.split_once("/ns/").map(|(_, rest)| rest);
        let Some((namespace, account)) = path.and_then(|path| path.split_once("/sa/")) else {
            return vec![("", &self.identity)];
        };
        vec![(namespace, account), (namespace, &self.identity)]
    }

    fn labelled(&self) -> Vec<ObjectKey> {
        self.names().into_iter().map(|name| key(Kind::ServiceAccount, name)).collect()
    }
}

impl Named for ConnectionStatus {
    const WHAT: &str = "open connection of";

    fn kinds() -> Vec<Kind> {
        vec![Kind::Pod]
    }

    /// The pods at its ends.
    fn names(&self) -> Vec<(&str, &str)> {
        let ends = [&self.source_workload, &self.destination_workload];
        ends.into_iter().flatten().filter_map(|end| end.split_once('/')).collect()
    }

    fn labelled(&self) -> Vec<ObjectKey> {
        self.names().into_iter().map(|name| key(Kind::Pod, name)).collect()
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

        fn kinds() -> Vec<Kind> {
            vec![Kind::Pod]
        }

        fn names(&self) -> Vec<(&str, &str)> {
            vec![(self.0, self.1)]
        }

        fn labelled(&self) -> Vec<ObjectKey> {
            vec![key(Kind::Pod, (self.0, self.1))]
        }
    }

    fn chosen(selection: &Selection, bearers: Option<&Bearers>) -> Result<Vec<String>> {
        let node = |name: &str| Node { name: name.into(), endpoint: Endpoint::Unix(name.into()) };
        let answers = vec![
            (node("a"), vec![Item("shop", "web"), Item("shop", "db")]),
            (node("b"), vec![Item("bank", "web")]),
        ];
        let left = selection.choose(answers, bearers)?.into_iter().flat_map(|(_, items)| items);
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
            let left = chosen(&selection(namespace, names), None).unwrap();
            assert_eq!(left.join(" "), expected, "{namespace:?} {names:?}");
        }
        let error = chosen(&selection(Some("bank"), &["db", "web"]), None).unwrap_err().to_string();
        assert_eq!(error, "there is no policy db in the namespace bank");
    }

    #[test]
    fn labels_choose_besides_names() {
        let bearers = Bearers::from([key(Kind::Pod, ("shop", "web")), key(Kind::Service, ("bank", "web"))]);
        let asked = |names: &[&str]| Selection {
            labels: Some(labels::parse("app=web").unwrap()),
            ..selection(None, names)
        };
        assert_eq!(chosen(&asked(&[]), Some(&bearers)).unwrap(), ["shop/web"], "a service is no pod");
        assert_eq!(chosen(&asked(&["web"]), Some(&bearers)).unwrap(), ["shop/web"]);
        let error = chosen(&asked(&["db"]), Some(&bearers)).unwrap_err().to_string();
        assert_eq!(error, "there is no policy db with the labels app=web");
    }

    fn connection(source: Option<&str>, destination: Option<&str>) -> ConnectionStatus {
        ConnectionStatus {
            direction: "outbound".into(),
            source: "10.0.0.1:1".into(),
            source_workload: source.map(ToOwned::to_owned),
            source_identity: None,
            destination: "10.0.0.2:80".into(),
            destination_workload: destination.map(ToOwned::to_owned),
            destination_service: None,
            upstream: "10.0.0.2:15008".into(),
            transport: "hbone".into(),
            policy: None,
            age_seconds: 1,
        }
    }

    #[test]
    fn a_connection_is_that_of_the_pods_at_both_ends() {
        let all =
            || vec![connection(Some("shop/client"), Some("shop/web")), connection(None, Some("bank/web"))];
        let left = |selection: &Selection, bearers: Option<&Bearers>| {
            selection.among(all(), bearers).map(|left| left.len())
        };
        assert_eq!(left(&selection(None, &["web"]), None).unwrap(), 2);
        assert_eq!(left(&selection(None, &["shop/web"]), None).unwrap(), 1);
        assert_eq!(left(&selection(Some("shop"), &["client"]), None).unwrap(), 1);
        let bearers = Bearers::from([key(Kind::Pod, ("bank", "web"))]);
        assert_eq!(left(&Selection::default(), Some(&bearers)).unwrap(), 1);
        let error = left(&selection(None, &["nobody"]), None).unwrap_err().to_string();
        assert_eq!(error, "there is no open connection of nobody");
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
        assert!(certificate.labelled().contains(&key(Kind::ServiceAccount, ("shop", "web"))));
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
