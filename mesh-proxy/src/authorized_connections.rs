//! Connections that a pod of this node takes: each is registered, then the policy is asked, and asked again
//! whenever the configuration changes.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use mesh_api::identity::SpiffeId;
use mesh_api::plan::policy::{self, ConnectionAttributes, Decision, Denial, DryRunResult, Permit, Verdict};
use mesh_api::plan::{Snapshot, Workload};
use tokio::sync::Notify;

/// The connections of one worker that the policy allowed.
#[derive(Default)]
pub struct AuthorizedConnections {
    entries: RefCell<HashMap<u64, Rc<Entry>>>,
    /// Number of connections of each pod, by its workload's uid.
    pods: RefCell<HashMap<Arc<str>, usize>>,
    next: Cell<u64>,
}

/// An access request: a client and the workload and port that it wants.
#[derive(Clone, Debug)]
pub struct AccessRequest {
    /// The client's identity, if mutual TLS or this very node proved it; none in plaintext.
    pub identity: Option<SpiffeId>,
    /// The client's address.
    pub source: IpAddr,
    /// The pod's address and port.
    pub destination: SocketAddr,
    /// The pod, as the mesh knows it.
    pub workload: Arc<Workload>,
}

struct Entry {
    request: AccessRequest,
    revoked: Notify,
    denial: RefCell<Option<Denial>>,
}

/// What is logged of a connection that is allowed, besides its line in the access log.
#[derive(Debug)]
pub struct AuditNotes {
    /// `namespace/name` of the AUDIT policies that matched.
    pub audited: Vec<Arc<str>>,
    /// What policies in dry run would have done.
    pub dry_run: Vec<DryRunResult>,
}

/// A connection that is allowed, until it is dropped or the policy changes its mind.
pub struct AuthorizedConnection {
    authorizations: Rc<AuthorizedConnections>,
    id: u64,
    entry: Rc<Entry>,
    permit: Permit,
}

impl AuthorizedConnections {
    /// Registers a connection, then asks the policy: in this order no change in between is missed. `snapshot`
    /// is called after the registration. Errors: the decision that denies it.
    pub fn authorize(
        self: &Rc<Self>,
        request: AccessRequest,
        snapshot: impl FnOnce() -> Arc<Snapshot>,
    ) -> Result<(AuthorizedConnection, AuditNotes), Box<Decision>> {
        let id = self.next.replace(self.next.get() + 1);
        let entry = Rc::new(Entry { request, revoked: Notify::new(), denial: RefCell::default() });
        self.insert(id, &entry);
        let Decision { verdict, audited, dry_run } = entry.request.decide(&snapshot());
        match verdict {
            Verdict::Allow(permit) => {
                let authorized = AuthorizedConnection { authorizations: Rc::clone(self), id, entry, permit };
                Ok((authorized, AuditNotes { audited, dry_run }))
            }
            denied @ Verdict::Deny(_) => {
                self.remove(id, &entry);
                Err(Box::new(Decision { verdict: denied, audited, dry_run }))
            }
        }
    }

    /// Asks the policy again for each connection that a change since an earlier snapshot may concern, and
    /// revokes those that it now denies. Returns their number.
    ///
    /// Most changes are of other nodes' pods: they cost one look-up for each pod with connections here.
    pub fn revoke_denied(&self, snapshot: &Snapshot, since: &Snapshot) -> usize {
        let same_policies = snapshot.has_same_policies(since);
        let changed: HashSet<Arc<str>> = {
            let pods = self.pods.borrow();
            let changed = pods.keys().filter(|uid| !same_policies || !snapshot.has_same_workload(since, uid));
            changed.cloned().collect()
        };
        if changed.is_empty() {
            return 0;
        }
        let entries = self.entries.borrow();
        let entries = entries.values().filter(|entry| changed.contains(&entry.request.workload.uid));
        let entries: Vec<_> = entries.cloned().collect();
        let mut revoked = 0;
        for entry in entries {
            match entry.request.decide(snapshot).verdict {
                Verdict::Allow(_) => {}
                Verdict::Deny(denial) => {
                    *entry.denial.borrow_mut() = Some(denial);
                    entry.revoked.notify_one();
                    revoked += 1;
                }
            }
        }
        revoked
    }

    fn insert(&self, id: u64, entry: &Rc<Entry>) {
        self.entries.borrow_mut().insert(id, Rc::clone(entry));
        *self.pods.borrow_mut().entry(Arc::clone(&entry.request.workload.uid)).or_default() += 1;
    }

    fn remove(&self, id: u64, entry: &Entry) {
        self.entries.borrow_mut().remove(&id);
        let mut pods = self.pods.borrow_mut();
        let uid = &entry.request.workload.uid;
        if let Some(count) = pods.get_mut(uid) {
            *count -= 1;
            if *count == 0 {
                pods.remove(uid);
            }
        }
    }

    /// Returns the number of connections that are open and allowed.
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl AccessRequest {
    /// Returns what the policy decides, as `snapshot` has it.
    pub fn decide(&self, snapshot: &Snapshot) -> Decision {
        let peer = ConnectionAttributes {
            identity: self.identity.as_ref(),
            source_ip: self.source,
            destination_ip: self.destination.ip(),
            destination_port: self.destination.port(),
        };
        // The workload may have new policies by now. One that is gone keeps its last ones until its pod is
        // gone too.
        let now = snapshot.workload(&self.workload.uid);
        policy::authorize(snapshot, now.as_ref().unwrap_or(&self.workload), &peer)
    }
}

impl AuthorizedConnection {
    /// Returns the policy's permit.
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Whether the policy has taken its permit back.
    pub fn is_revoked(&self) -> bool {
        self.entry.denial.borrow().is_some()
    }

    /// Returns when the policy takes its permit back, with the reason.
    pub async fn wait_until_revoked(&self) -> Denial {
        loop {
            if let Some(denial) = self.entry.denial.take() {
                return denial;
            }
            self.entry.revoked.notified().await;
        }
    }
}

impl Drop for AuthorizedConnection {
    fn drop(&mut self) {
        self.authorizations.remove(self.id, &self.entry);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use mesh_api::wire::ext;
    use mesh_api::wire::security::{Action, Authorization, Scope};
    use mesh_api::wire::workload as wire;

    use super::*;
    use crate::fixture::{MeshConfiguration, shop_identity, shop_policy, workload_in_shop};

    fn db() -> wire::Workload {
        workload_in_shop("db", [10, 0, 0, 2].into())
    }

    /// A mesh that knows the pod which connections are to.
    fn mesh() -> MeshConfiguration {
        let mesh = MeshConfiguration::default();
        mesh.set_workload(db());
        mesh
    }

    fn from(name: &str, mesh: &MeshConfiguration) -> AccessRequest {
        AccessRequest {
            identity: Some(shop_identity(name)),
            source: [10, 0, 0, 9].into(),
            destination: "10.0.0.2:80".parse().unwrap(),
            workload: mesh.snapshot.load().workload("db").unwrap(),
        }
    }

    fn allowed(
        all: &Rc<AuthorizedConnections>,
        name: &str,
        mesh: &MeshConfiguration,
    ) -> (AuthorizedConnection, AuditNotes) {
        all.authorize(from(name, mesh), || mesh.snapshot.load_full()).unwrap()
    }

    /// Changes something and has it count. Returns how many connections are revoked.
    fn change(
        all: &AuthorizedConnections,
        mesh: &MeshConfiguration,
        change: impl FnOnce(&MeshConfiguration),
    ) -> usize {
        let before = mesh.snapshot.load_full();
        change(mesh);
        all.revoke_denied(&mesh.snapshot.load(), &before)
    }

    #[test]
    fn a_connection_that_a_later_policy_denies_is_revoked_with_its_words_and_others_are_not() {
        let (all, mesh) = (Rc::<AuthorizedConnections>::default(), mesh());
        let (guest, friend) = (allowed(&all, "guest", &mesh).0, allowed(&all, "friend", &mesh).0);
        let no_guests = shop_policy("no-guests", Action::Deny, &["guest"]);
        assert_eq!(change(&all, &mesh, |mesh| mesh.set_policy(&no_guests)), 1);
        let denial = guest.wait_until_revoked().now_or_never().expect("revoked").to_string();
        assert!(denial.contains("shop/no-guests") && denial.contains("sa/guest"), "{denial}");
        assert!(friend.wait_until_revoked().now_or_never().is_none());
        let asked_again = all.authorize(from("guest", &mesh), || mesh.snapshot.load_full());
        assert_eq!(asked_again.err().unwrap().verdict.to_string(), denial);
    }

    #[test]
    fn a_pod_that_selects_another_policy_is_asked_about_again() {
        let (all, mesh) = (Rc::<AuthorizedConnections>::default(), mesh());
        let nobody = Authorization {
            scope: Scope::WorkloadSelector.into(),
            rules: Vec::new(),
            ..shop_policy("nobody", Action::Allow, &[])
        };
        mesh.set_policy(&nobody);
        let (guest, _) = allowed(&all, "guest", &mesh);
        let another = workload_in_shop("web", [10, 0, 0, 3].into());
        assert_eq!(change(&all, &mesh, |mesh| mesh.set_workload(another)), 0);
        let selecting = wire::Workload { authorization_policies: vec!["shop/nobody".to_owned()], ..db() };
        assert_eq!(change(&all, &mesh, |mesh| mesh.set_workload(selecting)), 1);
        assert!(guest.wait_until_revoked().now_or_never().is_some());
    }

    #[test]
    fn a_change_that_comes_while_the_policy_is_asked_is_not_missed() {
        let (all, mesh) = (Rc::<AuthorizedConnections>::default(), mesh());
        let asked = all.authorize(from("guest", &mesh), || {
            let before = mesh.snapshot.load_full();
            let no_guests = shop_policy("no-guests", Action::Deny, &["guest"]);
            assert_eq!(change(&all, &mesh, |mesh| mesh.set_policy(&no_guests)), 1, "it is registered");
            before
        });
        let (guest, _) = asked.expect("allowed by the older one");
        assert!(guest.wait_until_revoked().now_or_never().is_some());
    }

    #[test]
    fn a_pod_that_is_gone_keeps_its_last_policies() {
        let (all, mesh) = (Rc::<AuthorizedConnections>::default(), mesh());
        let friends = |names: &[&str]| Authorization {
            scope: Scope::WorkloadSelector.into(),
            ..shop_policy("friends", Action::Allow, names)
        };
        mesh.set_policy(&friends(&["friend"]));
        let selecting = wire::Workload { authorization_policies: vec!["shop/friends".to_owned()], ..db() };
        mesh.set_workload(selecting);
        let (friend, _) = allowed(&all, "friend", &mesh);
        let request = from("guest", &mesh);
        assert_eq!(change(&all, &mesh, |mesh| mesh.remove_workload("db")), 0);
        assert!(friend.wait_until_revoked().now_or_never().is_none());
        assert!(all.authorize(request, || mesh.snapshot.load_full()).is_err(), "they deny as before");
        assert_eq!(change(&all, &mesh, |mesh| mesh.set_policy(&friends(&["other"]))), 1);
        assert!(friend.wait_until_revoked().now_or_never().is_some());
    }

    #[test]
    fn what_audit_and_dry_run_say_is_noted_of_those_they_match() {
        let (all, mesh) = (Rc::<AuthorizedConnections>::default(), mesh());
        let dry = |name, action| Authorization { dry_run: true, ..shop_policy(name, action, &["guest"]) };
        let extension = wire::Extension { name: ext::AUDIT.to_owned(), config: None };
        mesh.set_policy(&Authorization { extensions: vec![extension], ..dry("audit", Action::Allow) });
        mesh.set_policy(&dry("dry", Action::Deny));
        let (_guest, notes) = allowed(&all, "guest", &mesh);
        assert_eq!(notes.audited, ["shop/audit".into()]);
        let noted: Vec<_> = notes.dry_run.iter().map(|dry| (&*dry.policy, dry.would.to_string())).collect();
        assert_eq!(noted, [("shop/dry", "deny".to_owned())]);
        let (_friend, notes) = allowed(&all, "friend", &mesh);
        assert!(notes.audited.is_empty() && notes.dry_run.is_empty(), "{notes:?}");
    }

    #[test]
    fn those_that_are_over_or_denied_are_not_counted() {
        let (all, mesh) = (Rc::<AuthorizedConnections>::default(), mesh());
        mesh.set_policy(&shop_policy("no-guests", Action::Deny, &["guest"]));
        let (one, two) = (allowed(&all, "friend", &mesh), allowed(&all, "friend", &mesh));
        assert!(all.authorize(from("guest", &mesh), || mesh.snapshot.load_full()).is_err());
        assert_eq!((all.len(), all.pods.borrow()["db"]), (2, 2));
        drop(one);
        assert_eq!((all.len(), all.pods.borrow()["db"]), (1, 1));
        drop(two);
        assert!(all.is_empty() && all.pods.borrow().is_empty());
    }
}
