//! Finds enrolled pods that the control plane announces as plain ones: it says that they take no mutual TLS,
//! so peers speak plaintext to them.

use mesh_api::plan::{Snapshot, TunnelProtocol};
use mesh_api::resource::enrolment::{REDIRECTION, REDIRECTION_ENABLED};

use crate::pods::NodePod;

/// Checks in a row that have to find it. The control plane hears of an enrolment a moment later.
const LOOKS: u8 = 2;

/// The finding about one pod.
#[derive(Debug, Default)]
pub(super) struct AnnouncedPlaintextCheck {
    found: u8,
}

impl AnnouncedPlaintextCheck {
    /// Counts a check. Returns whether to report its finding, once until all is well again.
    pub fn record_and_should_report(&mut self, is_plaintext: bool) -> bool {
        self.found = if is_plaintext { self.found.saturating_add(1) } else { 0 };
        self.found == LOOKS
    }

    /// Returns why peers speak plaintext to the pod, if they do.
    pub fn plaintext_reason(&self) -> Option<String> {
        (self.found >= LOOKS).then(|| {
            format!(
                "peers speak plaintext to it: the control plane does not know that it takes mutual TLS. istiod goes by the \
                 annotation {REDIRECTION}={REDIRECTION_ENABLED}, which the agent writes: see its log for why that failed; \
                 mesh-control by the labels, as the agent does"
            )
        })
    }
}

/// Whether the control plane knows the pod as one without mutual TLS. A pod that it does not know at all is
/// not plain: connections to it wait.
pub(super) fn is_announced_as_plaintext(snapshot: &Snapshot, pod: &NodePod) -> bool {
    let workload = pod.addresses.first().and_then(|address| snapshot.workload_by_address(*address));
    workload.is_some_and(|it| {
        it.tunnel_protocol == TunnelProtocol::Plain && it.namespace == pod.namespace && it.name == pod.name
    })
}

#[cfg(test)]
mod tests {
    use mesh_api::identity::SpiffeId;
    use mesh_api::plan::Store;
    use mesh_api::resource::enrolment::Enrolment;
    use mesh_api::wire::type_url;
    use mesh_api::wire::workload::{Address, TunnelProtocol, Workload, address};
    use mesh_api::wire::xds::Resource;
    use prost::Message;
    use prost_types::Any;

    use super::*;

    fn pod(name: &str, address: &str) -> NodePod {
        NodePod {
            uid: "uid".into(),
            namespace: "shop".into(),
            name: name.into(),
            identity: SpiffeId::new("cluster.local", "shop", "web").unwrap(),
            addresses: vec![address.parse().unwrap()],
            probe_ports: Vec::new(),
            enrolment: Enrolment::Selected,
            own_userns: false,
            egress: None,
        }
    }

    /// A mesh that has one pod.
    fn snapshot(tunnel: TunnelProtocol) -> Snapshot {
        let workload = Workload {
            uid: "web".to_owned(),
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            addresses: vec![vec![10, 0, 0, 1]],
            tunnel_protocol: tunnel.into(),
            ..Workload::default()
        };
        let value = Address { r#type: Some(address::Type::Workload(workload)) }.encode_to_vec();
        let any = Any { type_url: type_url::ADDRESS.to_owned(), value };
        let resource = Resource {
            name: "web".to_owned(),
            version: "1".to_owned(),
            resource: Some(any),
            aliases: Vec::new(),
        };
        let mut store = Store::default();
        assert!(store.apply_response(type_url::ADDRESS, vec![resource], Vec::new()).is_empty());
        store.snapshot()
    }

    #[test]
    fn the_control_planes_word_counts_for_the_very_pod() {
        let of = |tunnel, pod: &NodePod| is_announced_as_plaintext(&snapshot(tunnel), pod);
        let web = pod("web", "10.0.0.1");
        assert!(of(TunnelProtocol::None, &web));
        assert!(!of(TunnelProtocol::Hbone, &web));
        assert!(!of(TunnelProtocol::None, &pod("web", "10.0.0.2")), "nobody has told of it yet");
        assert!(!of(TunnelProtocol::None, &pod("api", "10.0.0.1")), "its address was another's");
    }

    #[test]
    fn it_is_told_once_and_shown_for_as_long_as_it_lasts() {
        let mut plain = AnnouncedPlaintextCheck::default();
        assert!(
            !plain.record_and_should_report(true) && plain.plaintext_reason().is_none(),
            "the control plane may be about to hear of it"
        );
        assert!(plain.record_and_should_report(true));
        assert!(
            plain
                .plaintext_reason()
                .is_some_and(|reason| reason.contains("ambient.istio.io/redirection=enabled"))
        );
        for _ in 0..300 {
            assert!(!plain.record_and_should_report(true), "it was told");
        }
        assert!(plain.plaintext_reason().is_some());
        assert!(!plain.record_and_should_report(false) && plain.plaintext_reason().is_none());
        assert!(
            !plain.record_and_should_report(true) && plain.record_and_should_report(true),
            "that is another time"
        );
    }
}
