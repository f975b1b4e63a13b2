//! After an installation: is everything in place, and does it work?

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::Condition;
use mesh_api::admin::{AgentStatus, CertificateStatus, EnrolmentState, PodStatus};
use mesh_api::kind::{Kind, Treatment};

use super::{Finding, resources};
use crate::cluster::{Cluster, OtherControl};
use crate::output::until;
use crate::source::{Mesh, Nodes};
use crate::standing::NotEnrolled;
use crate::status::{self, NodeState, Status};

const TRUST_BUNDLE: &str = "nodemesh-root-cert";
/// Resources that an agent may be behind by without anything being wrong: a change on its way.
const LAG: usize = 100;

/// Looks at everything. An error if there is no mesh to look at.
pub async fn check(cluster: Cluster) -> Result<Vec<Finding>> {
    let mesh = Mesh::Cluster(cluster);
    let Mesh::Cluster(cluster) = &mesh else { return Ok(Vec::new()) };
    if cluster.daemon_set().await?.is_none() && cluster.deployment().await?.is_none() {
        let found = format!("there is no mesh in the namespace {}", cluster.namespace);
        let fix = "`meshctl check --pre` and `meshctl install` put one there; --mesh-namespace NAME says where another is";
        return Ok(vec![Finding::fail("installation", found, fix)]);
    }
    let status = status::gather(&mesh).await?;
    let mut findings = Vec::new();
    findings.push(kinds(cluster).await.unwrap_or_else(|error| Finding::unknown("kinds", &error)));
    let roots = trust_bundle(cluster, status.other_control.as_ref()).await;
    findings.push(roots.unwrap_or_else(|error| Finding::unknown("trust bundle", &error)));
    findings.extend(control(&status));
    if !is_anothers_alone(&status) {
        findings.extend(match crate::resources::of(&mesh).await {
            Ok(of) => resources::findings(&of),
            Err(error) => vec![Finding::unknown("configuration", &error)],
        });
    }
    findings.extend(agents(&status));
    findings.push(versions(&status));
    findings.extend(
        status
            .problems
            .iter()
            .map(|problem| Finding::fail("pods", problem, "`kubectl describe` its Deployment or DaemonSet")),
    );
    if status.nodes.iter().any(|node| node.status.is_some()) {
        findings.extend(pods(&mesh, &status.not_enrolled).await);
        findings.extend(certificates(&mesh).await);
    }
    Ok(findings)
}

async fn kinds(cluster: &Cluster) -> Result<Finding> {
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut missing = Vec::new();
    let used: Vec<_> =
        Kind::with_treatment(Treatment::Used).map(|kind| kind.table_row().crd_name()).collect();
    for name in &used {
        let found = definitions.get_opt(name).await.context("can't read the definitions of kinds")?;
        if !is_crd_established().matches_object(found.as_ref()) {
            missing.push(name.as_str());
        }
    }
    Ok(if missing.is_empty() {
        Finding::ok("kinds", format!("{} of Istio's are served", used.len()))
    } else {
        let found = format!("not served: {}", missing.join(", "));
        Finding::warn(
            "kinds",
            found,
            "install with crds.install=true, or install Istio's own; until then no such policy can be made",
        )
    })
}

/// The roots that agents check their control plane with, and start without in no case.
async fn trust_bundle(cluster: &Cluster, other: Option<&OtherControl>) -> Result<Finding> {
    let name = other.and_then(|other| other.root_config_map.as_deref()).unwrap_or(TRUST_BUNDLE);
    let bundle = cluster.api::<ConfigMap>().get_opt(name).await.context("can't read it")?;
    let namespace = &cluster.namespace;
    Ok(match (bundle, other) {
        (Some(_), None) => Finding::ok("trust bundle", "published"),
        (Some(_), Some(_)) => {
            Finding::ok("trust bundle", format!("ConfigMap {name} of the other control plane"))
        }
        (None, None) => Finding::fail(
            "trust bundle",
            format!("no ConfigMap {name} in {namespace}"),
            "the leader of the control plane publishes it: see its log",
        ),
        (None, Some(_)) => Finding::fail(
            "trust bundle",
            format!("no ConfigMap {name} in {namespace}"),
            "the other control plane publishes it; agent.controlPlane.rootConfigMap names it",
        ),
    })
}

/// Whether there is no control plane but another mesh's: it answers no questions of meshctl's.
fn is_anothers_alone(status: &Status) -> bool {
    status.other_control.is_some() && status.control.is_empty()
}

fn control(status: &Status) -> Vec<Finding> {
    let other = status.other_control.as_ref();
    let mut findings: Vec<_> =
        other.map(|other| Finding::ok("control plane", other.to_string())).into_iter().collect();
    if !is_anothers_alone(status) {
        findings.extend(own_control(status));
    }
    findings
}

fn own_control(status: &Status) -> Vec<Finding> {
    let ready = status.control.iter().filter(|replica| replica.ready).count();
    let all = status.control.len();
    let mut findings = Vec::new();
    findings.push(match (ready, all) {
        (0, _) => Finding::fail("control plane", "no replica is ready", "see the log of its pods"),
        (ready, all) if ready < all => Finding::warn(
            "control plane",
            format!("{ready} of {all} replicas are ready"),
            "see the log of the others",
        ),
        (1, _) => {
            Finding::warn("control plane", "one replica", "control.replicas=2 keeps it up while a node goes")
        }
        (ready, _) => Finding::ok("control plane", format!("{ready} replicas are ready")),
    });
    if !status.control.iter().any(|replica| replica.leader == Some(true)) {
        let fix = "its replicas need the verbs get, create and update on leases in their namespace";
        findings.push(Finding::warn("control plane", "no replica is the leader", fix));
    }
    findings.extend(status.control.iter().filter_map(|replica| {
        let error = replica.error.as_ref()?;
        Some(Finding::warn("control plane", error, "see the log of this pod"))
    }));
    findings
}

fn agents(status: &Status) -> Vec<Finding> {
    let mut findings: Vec<_> = status.nodes.iter().filter_map(agent).collect();
    let ready = status.nodes.iter().filter(|node| node.is_well() && node.status.is_some()).count();
    if findings.is_empty() && ready > 0 {
        findings.push(Finding::ok("agents", format!("{ready} are ready and connected")));
    }
    if status.nodes.is_empty() {
        findings.push(Finding::fail("agents", "there is none", "`meshctl install` installs the mesh"));
    }
    findings
}

fn agent(node: &NodeState) -> Option<Finding> {
    let check = format!("agent on {}", node.node);
    let Some(agent) = &node.status else {
        let error = node.error.as_deref().unwrap_or("does not answer");
        return Some(if node.expected {
            Finding::fail(
                &check,
                error,
                "its pods' new connections fail or pass the mesh by until it is back; see its log",
            )
        } else {
            Finding::warn(&check, error, "agent.tolerations decides which nodes have one")
        });
    };
    if !agent.control.connected {
        let why = agent.control.error.as_deref().unwrap_or("no reason known");
        let found = format!("has no control plane: {why}");
        let fix = format!(
            "what it has stays in force; see that {} can be reached from the node",
            agent.control.address
        );
        return Some(Finding::fail(&check, found, fix));
    }
    if !agent.ready {
        return Some(Finding::fail(&check, "is not ready", "see its log"));
    }
    if let Some(nack) = &node.last_nack {
        return Some(Finding::warn(
            &check,
            format!("rejected configuration: {nack}"),
            "bring agent and control plane to one version",
        ));
    }
    let lag = node.lag.filter(|lag| *lag > LAG)?;
    Some(Finding::warn(&check, format!("is behind by {lag} resources"), "wait; if it stays, see its log"))
}

fn versions(status: &Status) -> Finding {
    let control = status.control.iter().filter_map(|it| it.status.as_ref()).map(|it| it.version.as_str());
    let agents =
        status.nodes.iter().filter_map(|it| it.status.as_ref()).map(|it: &AgentStatus| it.version.as_str());
    let mut all: Vec<_> = control.chain(agents).chain([env!("CARGO_PKG_VERSION")]).collect();
    all.sort_unstable();
    all.dedup();
    match all.as_slice() {
        [one] => Finding::ok("versions", format!("{one} everywhere, meshctl included")),
        several => {
            let found = format!("of control plane, agents and meshctl: {}", several.join(", "));
            Finding::warn("versions", found, "finish the roll-out, and use the meshctl of the mesh's version")
        }
    }
}

async fn pods(mesh: &Mesh, not_enrolled: &[NotEnrolled]) -> Vec<Finding> {
    let answers = match mesh.ask::<Vec<PodStatus>>(&Nodes::default(), "/pods").await {
        Ok(answers) => answers,
        Err(error) => return vec![Finding::unknown("pods", &error)],
    };
    let all: Vec<PodStatus> = answers.into_iter().flat_map(|(_, pods)| pods).collect();
    let enrolled = all.iter().filter(|pod| pod.state == EnrolmentState::Enrolled).count();
    let mut findings: Vec<_> = not_enrolled.iter().map(missing).collect();
    if findings.is_empty() {
        findings.push(Finding::ok("pods", format!("{enrolled} are in the mesh, and all that should be")));
    }
    findings.extend(all.iter().filter_map(served_as_plain));
    findings.extend(same_node(&all));
    findings
}

/// How connections between pods of one node go, which depends on how these are connected.
fn same_node(pods: &[PodStatus]) -> Option<Finding> {
    let links: Vec<_> = pods.iter().filter_map(|pod| pod.link.as_ref()).collect();
    let count = |way: &str| links.iter().filter(|link| link.way == way).count();
    let (veth, routed, shared) = (count("veth"), count("routed"), count("shared"));
    let obstacle = links.iter().find(|link| link.way == "shared").and_then(|link| link.obstacle.as_deref());
    let found = format!("{veth} pods send from veth to veth, {routed} over routes, {shared} encrypted");
    let why = obstacle.map(|obstacle| format!(": {obstacle}")).unwrap_or_default();
    (!links.is_empty()).then(|| Finding::ok("same node", format!("{found}{why}")))
}

/// Of a pod that is in the mesh there is a reason where others may not know it.
fn served_as_plain(pod: &PodStatus) -> Option<Finding> {
    let reason = pod.reason.as_deref().filter(|_| pod.state == EnrolmentState::Enrolled)?;
    let check = format!("pod {}/{}", pod.namespace, pod.name);
    Some(Finding::warn(&check, format!("in the mesh, and {reason}"), "see the log of its node's agent"))
}

fn missing(pod: &NotEnrolled) -> Finding {
    let state = if pod.state == EnrolmentState::Failed { "" } else { " yet" };
    Finding::warn(
        &format!("pod {}", pod.pod),
        format!("is selected and not in the mesh{state}: {}", pod.reason),
        "see the events of the pod",
    )
}

async fn certificates(mesh: &Mesh) -> Vec<Finding> {
    let answers = match mesh.ask::<Vec<CertificateStatus>>(&Nodes::default(), "/certs").await {
        Ok(answers) => answers,
        Err(error) => return vec![Finding::unknown("certificates", &error)],
    };
    let all: Vec<_> = answers
        .into_iter()
        .flat_map(|(node, list)| list.into_iter().map(move |it| (node.name.clone(), it)))
        .collect();
    let mut findings: Vec<_> = all.iter().filter_map(|(node, it)| certificate(node, it)).collect();
    if findings.is_empty() {
        let first = all.iter().filter_map(|(_, it)| it.not_after).min().map(until);
        let first = first.map(|first| format!(", the first ends in {first}")).unwrap_or_default();
        findings.push(Finding::ok("certificates", format!("{} are valid{first}", all.len())));
    }
    findings
}

fn certificate(node: &str, of: &CertificateStatus) -> Option<Finding> {
    let check = format!("certificate on {node}");
    let error = of.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    let found = format!("{} is {}{error}", of.identity, of.state);
    match of.state.as_str() {
        "missing" | "expired" => Some(Finding::fail(
            &check,
            found,
            "the log of the agent and of the control plane say why none is signed",
        )),
        _ if of.error.is_some() => {
            Some(Finding::warn(&check, found, "it is in use until it ends; the agent asks again"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;
    use mesh_api::admin::ControlStreamStatus;

    fn node(connected: bool, lag: usize) -> NodeState {
        let control = ControlStreamStatus {
            address: "a".into(),
            connected,
            since_seconds: 1,
            error: Some("refused".into()),
        };
        let status = AgentStatus {
            node: "n".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: 1,
            keeper: 1,
            proxy: 2,
            ready: true,
            control,
            generation: 1,
            enrolled_pods: 0,
            open_connections: 0,
            workers: 1,
        };
        NodeState {
            node: "n".into(),
            status: Some(status),
            lag: Some(lag),
            expected: true,
            ..NodeState::default()
        }
    }

    #[test]
    fn an_agent_is_judged_by_the_worst_that_it_has() {
        let verdict = |node: &NodeState| agent(node).map(|finding| finding.result);
        assert_eq!(verdict(&node(true, 0)), None);
        assert_eq!(verdict(&node(true, LAG + 1)), Some(Verdict::Warn));
        assert_eq!(verdict(&node(false, 0)), Some(Verdict::Fail));
        let gone = NodeState { expected: true, ..NodeState::default() };
        assert_eq!(verdict(&gone), Some(Verdict::Fail));
        let none = NodeState::default();
        assert_eq!(verdict(&none), Some(Verdict::Warn), "a node where none belongs is told of");
    }

    #[test]
    fn another_control_plane_is_named_and_the_own_one_not_missed() {
        let address = "https://istiod.istio-system.svc:15012";
        let other = OtherControl { address: address.into(), name: None, root_config_map: None };
        let under_istiod = Status { other_control: Some(other), ..Status::default() };
        let found = control(&under_istiod);
        assert_eq!(found, [Finding::ok("control plane", format!("agents use another one, {address}"))]);
        let own = control(&Status::default());
        assert_eq!(own[0].result, Verdict::Fail, "{own:?}");
    }

    #[test]
    fn a_missing_certificate_fails_and_a_late_one_warns() {
        let of = |state: &str, error: Option<&str>| CertificateStatus {
            identity: "spiffe://x".into(),
            state: state.into(),
            serial: None,
            not_before: None,
            not_after: None,
            roots: Vec::new(),
            error: error.map(ToOwned::to_owned),
        };
        assert_eq!(certificate("n", &of("valid", None)), None);
        let verdict = |of: &CertificateStatus| certificate("n", of).map(|it| it.result);
        assert_eq!(verdict(&of("renewing", Some("refused"))), Some(Verdict::Warn));
        assert_eq!(verdict(&of("missing", None)), Some(Verdict::Fail));
    }

    #[test]
    fn another_version_is_told_of() {
        let mut other = node(true, 0);
        if let Some(status) = &mut other.status {
            status.version = "0.0.1".into();
        }
        assert_eq!(versions(&Status { nodes: vec![other], ..Status::default() }).result, Verdict::Warn);
        assert_eq!(versions(&Status { nodes: vec![node(true, 0)], ..Status::default() }).result, Verdict::Ok);
    }
}
