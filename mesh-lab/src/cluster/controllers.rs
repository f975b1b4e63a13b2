//! Runs the controllers whenever something changed, until nothing does.

use std::sync::Arc;

use super::{Placement, Store, deployments, endpoints};

/// Lets each controller do what there is to do now.
pub fn once(store: &Store, placement: &Placement) {
    let result = deployments::reconcile(store, placement).and_then(|()| endpoints::reconcile(store));
    if let Err(error) = result {
        tracing::error!(%error, "a controller could not write");
    }
}

/// Runs for as long as the lab does.
pub async fn run(store: Arc<Store>, placement: Arc<Placement>) {
    let mut changes = store.changes();
    loop {
        changes.borrow_and_update();
        once(&store, &placement);
        if changes.changed().await.is_err() {
            return;
        }
    }
}
