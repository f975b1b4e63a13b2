//! What Kubernetes promises of a Service, kept by the proxy and on the direct way, as without the mesh.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::world::{World, eventually, mutual_tls};

/// Both are in one namespace's Services: the mesh's, and the reference, which is not in it.
const NAMESPACES: [&str; 2] = ["app", "out"];

/// A client that reaches the pods of `node1` directly and those of `node2` over mutual TLS.
const NEAR_AND_FAR: &str = "neighbour";

/// A pod that says its name to each that connects, and does not stop when it is told to, but only after some
/// seconds.
fn speaker(namespace: &str, name: &str, node: &str, grace: u32) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{set: speakers}}}}\nspec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: {grace}\n  containers:\n  - name: main\n    command: [python3, -c, {SPEAKER:?}, {name}]\n    readinessProbe: {{tcpSocket: {{port: 7100}}, periodSeconds: 1}}\n"
    )
}

const SPEAKER: &str = "
import signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: None)
server = socket.create_server(('::', 7100), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
while True:
    peer, _ = server.accept()
    peer.sendall(sys.argv[1].encode())
    peer.close()
";

fn speakers(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: speakers, namespace: {namespace}}}\nspec: {{selector: {{set: speakers}}, ports: [{{port: 7100}}], ipFamilyPolicy: PreferDualStack{spec}}}\n"
    )
}

/// Connects to a Service so many times, by IPv4 and IPv6 in turn, and says who answered.
const ASK: &str = "
import socket, sys
for turn in range(int(sys.argv[2])):
    family = (socket.AF_INET, socket.AF_INET6)[turn % 2]
    address = socket.getaddrinfo(sys.argv[1], 7100, family, socket.SOCK_STREAM)[0][4]
    peer = socket.socket(family)
    peer.settimeout(5)
    try:
        peer.connect(address)
        print(peer.recv(100).decode() or 'closed')
    except OSError as error:
        print(type(error).__name__)
    peer.close()
";

/// Who answered a pod's connections.
fn answers(world: &World, namespace: &str, pod: &str, count: usize) -> BTreeSet<String> {
    let ran = world.exec(namespace, pod, &["python3", "-c", ASK, "speakers", &count.to_string()]);
    ran.words().into_iter().map(str::to_owned).collect()
}

#[test]
fn a_client_keeps_its_endpoint_where_the_service_says_so() {
    let world = World::new("affinity");
    let mut manifests = String::new();
    for namespace in NAMESPACES {
        for (index, node) in ["node1", "node2", "node1", "node2"].iter().enumerate() {
            manifests += &speaker(namespace, &format!("speaker-{index}"), node, 1);
        }
        manifests += &speakers(namespace, "");
    }
    world.apply(&manifests);
    for namespace in NAMESPACES {
        let all = || answers(&world, namespace, "client", 60);
        eventually(&format!("all four answer in {namespace}"), || {
            all().len() == 4 && !all().contains("closed")
        });
        world.apply(&speakers(namespace, ", sessionAffinity: ClientIP"));
    }
    let mut chosen = BTreeSet::new();
    for pod in ["client", NEAR_AND_FAR, "server"] {
        let own = || answers(&world, "app", pod, 40);
        eventually(&format!("{pod} has one endpoint for both families"), || own().len() == 1);
        chosen.insert((pod, own().pop_first().unwrap()));
    }
    let more = (4..12).fold(String::new(), |mut text, index| {
        let _ = write!(text, "{}", speaker("app", &format!("speaker-{index}"), "node1", 1));
        text
    });
    world.apply(&more);
    let members = || world.admin("node1", "/services").to_string();
    eventually("the new ones take connections", || members().contains("\"readyEndpoints\":12"));
    for (pod, own) in &chosen {
        assert_eq!(answers(&world, "app", pod, 40), BTreeSet::from([own.clone()]), "{pod}: others came");
    }
    for pod in ["client", "neighbour"] {
        let (_, own) = chosen.iter().find(|(name, _)| *name == pod).unwrap();
        world
            .lab
            .delete(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {own}, namespace: app}}\n"))
            .unwrap();
        let now = || answers(&world, "app", pod, 40);
        eventually(&format!("{pod} has another one when its own is gone"), || {
            now().len() == 1 && !now().contains(own)
        });
    }
    let without = answers(&world, "out", "client", 1);
    assert_eq!(without.len(), 1, "{without:?}");
}

#[test]
fn the_last_pods_of_a_service_serve_while_they_end() {
    let world = World::new("ending");
    let all =
        NAMESPACES.map(|namespace| speaker(namespace, "speaker", "node1", 20) + &speakers(namespace, ""));
    world.apply(&all.concat());
    let only = |name: &str| BTreeSet::from([name.to_owned()]);
    for (namespace, pods) in [("app", &["client", NEAR_AND_FAR][..]), ("out", &["client"])] {
        for pod in pods {
            eventually("it serves", || answers(&world, namespace, pod, 2) == only("speaker"));
        }
        world.apply(&mutual_tls(namespace, "STRICT"));
        let name =
            format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: speaker, namespace: {namespace}}}\n");
        std::thread::scope(|scope| {
            let gone = scope.spawn(|| world.lab.delete(&name).unwrap());
            eventually("it ends", || {
                world.pod(namespace, "speaker")["metadata"]["deletionTimestamp"].is_string()
            });
            // Long enough for the news to be everywhere, and shorter than what it has to end in.
            let began = std::time::Instant::now();
            while began.elapsed().as_secs() < 5 {
                for pod in pods {
                    assert_eq!(answers(&world, namespace, pod, 4), only("speaker"), "{namespace}/{pod}");
                }
            }
            world.apply(&speaker(namespace, "next", "node2", 1));
            for pod in pods {
                eventually("whoever is ready comes first", || {
                    answers(&world, namespace, pod, 6) == only("next")
                });
            }
            gone.join().unwrap();
        });
    }
}
