//! Connections that a pod of this node takes: each is registered, then the policy is asked, and asked again
//! whenever the configuration changes.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use mesh_api::identity::SpiffeId;
use mesh_api::plan::policy::{self, Decision, Denial, DryRun, Peer, Permit, Verdict};
use mesh_api::plan::{Snapshot, Workload};
use tokio::sync::Notify;

/// The connections of one worker that the policy allowed.
#[derive(Default)]
pub struct Authorizations {
    entries: RefCell<HashMap<u64, Rc<Entry>>>,
    /// Number of connections of each pod, by its workload's uid.
    pods: RefCell<HashMap<Arc<str>, usize>>,
    next: Cell<u64>,
}

/// An access request: a client and the workload and port that it wants.
#[derive(Clone, Debug)]
pub struct AccessRequest {
    /// The client's identity, if mutual TLS proved it.
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

/// What the access log says of a connection that is allowed.
#[derive(Debug)]
pub struct Notes {
    /// `namespace/name` of the AUDIT policies that matched.
    pub audited: Vec<Arc<str>>,
    /// What policies in dry run would have done.
    pub dry_run: Vec<DryRun>,
}

/// A connection that is allowed, until it is dropped or the policy changes its mind.
pub struct Authorized {
    authorizations: Rc<Authorizations>,
    id: u64,
    entry: Rc<Entry>,
    permit: Permit,
}

impl Authorizations {
    /// Registers a connection, then asks the policy: in this order no change in between is missed. `snapshot`
    /// is called after the registration. Errors: the decision that denies it.
    pub fn authorize(
        self: &Rc<Self>,
        request: AccessRequest,
        snapshot: impl FnOnce() -> Arc<Snapshot>,
    ) -> Result<(Authorized, Notes), Box<Decision>> {
        let id = self.next.replace(self.next.get() + 1);
        let entry = Rc::new(Entry { request, revoked: Notify::new(), denial: RefCell::default() });
        self.insert(id, &entry);
        let Decision { verdict, audited, dry_run } = entry.request.decide(&snapshot());
        match verdict {
            Verdict::Allow(permit) => {
                let authorized = Authorized { authorizations: Rc::clone(self), id, entry, permit };
                Ok((authorized, Notes { audited, dry_run }))
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
    pub fn recheck(&self, snapshot: &Snapshot, since: &Snapshot) -> usize {
        let same_policies = snapshot.has_policies_of(since);
        let changed: HashSet<Arc<str>> = {
            let pods = self.pods.borrow();
            let changed = pods.keys().filter(|uid| !same_policies || !snapshot.has_workload_of(since, uid));
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
    /// Asks the policy as `snapshot` has it.
    pub fn decide(&self, snapshot: &Snapshot) -> Decision {
        let peer = Peer {
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

impl Authorized {
    /// Returns the policy's permit.
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Returns when the policy takes its permit back, with the reason.
    pub async fn revoked(&self) -> Denial {
        loop {
            if let Some(denial) = self.entry.denial.take() {
                return denial;
            }
            self.entry.revoked.notified().await;
        }
    }
}

impl Drop for Authorized {
    fn drop(&mut self) {
        self.authorizations.remove(self.id, &self.entry);
    }
}
