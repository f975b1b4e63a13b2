//! What is made of which kinds is what the table of kinds says.

use super::super::{affected::AffectedObjects, object_store::ObjectStore};
use super::*;
use crate::kind::{Kind, Treatment};

const EXAMPLE: &str = include_str!("../../../../fuzz/src/example.yaml");

const OTHERS: &str = "---
apiVersion: v1
kind: Node
metadata: {name: node1}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.2]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: web}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: web}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: web, namespace: shop}
spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: bank}], to: [{group: '', kind: Service}]}
";

#[test]
fn of_each_kind_that_the_mesh_uses_something_is_made_and_of_no_other() {
    let parsed = manifest::parse("example.yaml", &format!("{EXAMPLE}{OTHERS}"));
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    let objects: Vec<_> = parsed.objects.into_iter().map(Arc::new).collect();
    let mut store = ObjectStore::default();
    for object in &objects {
        store.set(&object.value.key(), Some(object));
    }
    for kind in Kind::ALL {
        let is_used =
            !matches!(kind.table_row().treatment, Treatment::FromManifests | Treatment::ReadNotUsed);
        let mut affected = AffectedObjects::default();
        let object = objects.iter().find(|object| object.value.kind() == kind);
        assert!(!is_used || object.is_some(), "this test has no {kind} to try");
        if let Some(object) = object {
            affected.add_change(&store, &MeshConfig::default(), &object.value.key(), [None, Some(object)]);
        }
        let affects = format!("{affected:?}") != format!("{:?}", AffectedObjects::default());
        assert_eq!(
            affects, is_used,
            "{kind}: `AffectedObjects::add_change` does not do as mesh-api/src/kind.rs says"
        );
    }
}
