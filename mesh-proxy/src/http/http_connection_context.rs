//! The connection that requests come on.

use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use mesh_api::plan::Workload;

use crate::connection_address_types::{ClientAddress, OriginalDestination};
use crate::local_pod_identity::LocalPod;
use crate::telemetry::{RequestFlag, RequestRecord};
use crate::worker::Worker;

/// What is known of a connection that is read as HTTP.
#[derive(Clone)]
pub struct HttpConnection {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// The client.
    pub pod: Arc<LocalPod>,
    /// The client's workload when it connected.
    pub workload: Arc<Workload>,
    /// Where the client connected from.
    pub client: ClientAddress,
    /// Where the client connected to.
    pub original: OriginalDestination,
}

impl HttpConnection {
    /// Starts the record of a request, which its client's workload sends as it is now.
    pub(super) fn new_record(&self, workload: &Arc<Workload>) -> RequestRecord {
        let (client, original) = (self.client.address(), self.original.address());
        let mut record = RequestRecord::new(&self.worker.metrics, client, original);
        record.details.set_source_workload(workload);
        record
    }

    /// Records what came and is no request.
    pub(super) fn record_malformed(&self, status: StatusCode, reason: &str) {
        self.new_record(&self.workload).end(status, Some(RequestFlag::ClientProtocolError), reason);
    }
}
